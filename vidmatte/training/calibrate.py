"""The largest values of a network's maps on photographs, which 8-bit inference has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidmatte.models.network import ConvBnRelu, ResidualUBlock, folded_network
from vidmatte.models.weights import mean_magnitude

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.registry import Model

QUANTILE = 0.9999


def int8_facts(
    model: Model, images: Sequence[NDArray[np.uint8]], quantile: float = QUANTILE
) -> dict[str, Any]:
    """Return what `NAME_int8.json` holds: per block and stage the largest `quantile` of its output.

    `images` are (H, W, 3) uint8 RGB, of sizes that the network takes.
    """
    tensors = model.load()
    module = folded_network(model.row.network, tensors)
    ranges: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
            values = output.flatten()
            rank = max(1, round(quantile * values.numel()))
            ranges[name] = max(ranges.get(name, 0.0), float(values.kthvalue(rank).values))

        return hook

    for name, block in module.named_modules():
        if isinstance(block, (ConvBnRelu, ResidualUBlock)):
            block.register_forward_hook(watch(name))
    mean, std = np.array(model.row.mean), np.array(model.row.std)
    with torch.inference_mode():
        for image in images:
            x_HW3 = (image / 255 - mean) / std
            module(torch.from_numpy(x_HW3)[None].float().permute(0, 3, 1, 2))
    return {
        "model": model.name,
        "weights_sha256": model.sha256,
        "mean_magnitude": mean_magnitude(tensors),
        "pictures": len(images),
        "quantile": quantile,
        "ranges": {name: round(value, 4) for name, value in ranges.items()},
    }
