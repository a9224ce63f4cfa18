"""The torch module of the U²-Net family, with the official parameter names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.models.table import (
    BN_EPSILON,
    DECODER,
    ENCODER,
    SIDES,
    Network,
    Stage,
    convolutions,
    dilation_of,
)
from vidmatte.models.weights import constant_channels

if TYPE_CHECKING:
    from vidmatte.models.weights import FoldedTensors


def upsample_like(x: Tensor, target: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of `target`."""
    return F.interpolate(x, size=target.shape[2:], mode="bilinear", align_corners=False)


def pool(x: Tensor) -> Tensor:
    """Halve height and width; at multiples of 32 the same as the official ceil_mode=True."""
    return F.max_pool2d(x, 2, stride=2)


class ConvBnRelu(nn.Module):
    """3×3 convolution, batch normalisation (absent when folded), ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int, stride: int, folded: bool
    ) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation
        )
        self.bn_s1 = nn.Identity() if folded else nn.BatchNorm2d(out_channels, eps=BN_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(bn(conv(x))), in the precision of this block's own weights."""
        y: Tensor = self.bn_s1(self.conv_s1(x.to(self.conv_s1.weight.dtype)))
        return F.relu(y)


class ResidualUBlock(nn.Module):
    """RSU-L (U²-Net paper, figure 2e), or RSU-4F where dilation takes the place of pooling."""

    def __init__(self, stage: Stage, *, folded: bool) -> None:
        super().__init__()
        self.height, self.dilated = stage.height, bool(stage.dilated)
        height, in_, mid, out, _ = stage

        def block(source: int, target: int, dilation: int) -> ConvBnRelu:
            return ConvBnRelu(source, target, dilation=dilation, stride=1, folded=folded)

        self.rebnconvin = block(in_, out, 1)
        for level in range(1, height + 1):
            source = out if level == 1 else mid
            self.add_module(f"rebnconv{level}", block(source, mid, dilation_of(stage, level)))
        for level in range(height - 1, 0, -1):
            target = out if level == 1 else mid
            down = block(2 * mid, target, dilation_of(stage, level))
            self.add_module(f"rebnconv{level}d", down)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, decode, and add the block's own first map."""
        x_in = self.rebnconvin(x)
        encoded = [self.get_submodule("rebnconv1")(x_in)]
        for level in range(2, self.height + 1):
            deeper = encoded[-1]
            if not self.dilated and level < self.height:
                deeper = pool(deeper)
            encoded.append(self.get_submodule(f"rebnconv{level}")(deeper))
        x = encoded.pop()
        for level in range(self.height - 1, 0, -1):
            skip = encoded.pop()
            x = torch.cat((upsample_like(x, skip), skip), 1)
            x = self.get_submodule(f"rebnconv{level}d")(x)
        residual: Tensor = x + x_in
        return residual.to(x_in.dtype)


class U2Net(nn.Module):
    """U²-Net (paper, figure 5) for any row of the table.

    Built unfolded it loads official .pth state dicts unchanged and trains; `folded=True` is for
    inference with the tensors of `Model.load()`. Sides of the input are multiples of the row's.
    """

    def __init__(self, network: Network, *, folded: bool = False) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        channels = network.in_channels
        for row in network.stem:
            stem.append(
                ConvBnRelu(channels, row.out_channels, dilation=1, stride=row.stride, folded=folded)
            )
            channels = row.out_channels
        self.stem = nn.Sequential(*stem)
        for name in ENCODER + DECODER:
            self.add_module(name, ResidualUBlock(network.stages[name], folded=folded))
        for index, name in enumerate(SIDES, 1):
            out = network.stages[name].out_channels
            self.add_module(f"side{index}", nn.Conv2d(out, 1, 3, padding=1))
        self.outconv = nn.Conv2d(len(SIDES), 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (d0, d1, … d6), each (N, 1, h, w), of a normalised (N, 3, H, W).

        d0 fuses the six side maps; (h, w) is (H, W) divided by the stem's stride.
        """
        x = self.stem(x)
        encoded: list[Tensor] = []
        for name in ENCODER:
            encoded.append(self.get_submodule(name)(pool(encoded[-1]) if encoded else x))
        decoded = [encoded.pop()]
        for name in DECODER:
            skip = encoded.pop()
            joined = torch.cat((upsample_like(decoded[-1], skip), skip), 1)
            decoded.append(self.get_submodule(name)(joined))
        sides = [self.get_submodule(f"side{i}")(y) for i, y in enumerate(reversed(decoded), 1)]
        sides = [sides[0], *(upsample_like(side, sides[0]) for side in sides[1:])]
        return (self.outconv(torch.cat(sides, 1)), *sides)


def folded_network(
    network: Network, tensors: FoldedTensors, dtype: torch.dtype = torch.float32
) -> U2Net:
    """Build the inference form of `network`, BN folded in float32 and then cast to `dtype`.

    Blocks that make or cancel a large constant stay in float32 (see `constant_channels`). In eval
    mode, on the CPU, channels last.
    """
    with torch.device("meta"):
        module = U2Net(network, folded=True)
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    wide = _float32_blocks(network, tensors)
    cast = {key: value if key.startswith(wide) else value.to(dtype) for key, value in state.items()}
    module.load_state_dict(cast, assign=True)
    module.eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def _float32_blocks(network: Network, tensors: FoldedTensors) -> tuple[str, ...]:
    """Return the key prefixes of the blocks that carry a large constant and of those behind."""
    prefixes = []
    for conv in convolutions(network):
        if constant_channels(conv, tensors).any():
            stage, _, level = conv.name.removesuffix("d").rpartition("rebnconv")
            prefixes += [f"{conv.name}.", f"{stage}rebnconv{int(level) - 1}d."]
    return tuple(prefixes)
