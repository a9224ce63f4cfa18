"""The U²-Net family as plain data: every network's stages, every model's row.

Torch module, OpenVINO graph, parameter counts and multiply-adds are all made from these rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
ENCODER = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODER = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")
SIDES = ("stage1d", "stage2d", "stage3d", "stage4d", "stage5d", "stage6")
BN_EPSILON = 1e-5


class Stage(NamedTuple):
    """One residual U-block: RSU-`height`, or RSU-4F (dilated instead of pooled) if `dilated`."""

    height: int
    in_channels: int
    mid_channels: int
    out_channels: int
    dilated: int


class StemRow(NamedTuple):
    """One convolution before stage 1."""

    out_channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class Network:
    """An architecture: `stem` rows in order, then the eleven stages of the U²-Net figure."""

    name: str
    stages: dict[str, Stage]
    stem: tuple[StemRow, ...] = ()
    in_channels: int = 3

    @property
    def output_stride(self) -> int:
        """Input pixels per output pixel, along each axis."""
        stride = 1
        for row in self.stem:
            stride *= row.stride
        return stride


class Convolution(NamedTuple):
    """One convolution of a network, 3×3 except the fusing 1×1 `outconv`.

    `name` is the official parameter prefix of the block that holds it; `scale` its output's size
    as a fraction 1/scale of the input; `normalised` whether BN and ReLU follow.
    """

    name: str
    in_channels: int
    out_channels: int
    scale: int
    dilation: int = 1
    stride: int = 1
    kernel: int = 3
    normalised: bool = True

    @property
    def weight_key(self) -> str:
        """State-dict key of the kernel, shape (out, in, k, k)."""
        return f"{self.name}.conv_s1.weight" if self.normalised else f"{self.name}.weight"

    @property
    def bias_key(self) -> str:
        """State-dict key of the bias, shape (out,)."""
        return f"{self.name}.conv_s1.bias" if self.normalised else f"{self.name}.bias"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel."""
        return self.out_channels, self.in_channels, self.kernel, self.kernel

    def bn_key(self, part: str) -> str:
        """State-dict key of a BN tensor: weight, bias, running_mean, running_var."""
        return f"{self.name}.bn_s1.{part}"


def dilation_of(stage: Stage, level: int) -> int:
    """Dilation at `level` 1..height of a block: 1, 2, 4, 8 in RSU-4F, 2 at a pooled bottom."""
    if stage.dilated:
        return int(2 ** (level - 1))
    return 2 if level == stage.height else 1


def _stage_convolutions(name: str, stage: Stage, scale: int) -> Iterator[Convolution]:
    height, in_, mid, out, dilated = stage

    def scale_of(level: int) -> int:
        return scale if dilated else scale * 2 ** (min(level, height - 1) - 1)

    yield Convolution(f"{name}.rebnconvin", in_, out, scale)
    for level in range(1, height + 1):
        source = out if level == 1 else mid
        block = f"{name}.rebnconv{level}"
        yield Convolution(block, source, mid, scale_of(level), dilation_of(stage, level))
    for level in range(height - 1, 0, -1):
        target = out if level == 1 else mid
        block = f"{name}.rebnconv{level}d"
        dilation = dilation_of(stage, level)
        yield Convolution(block, 2 * mid, target, scale_of(level), dilation)


def convolutions(network: Network) -> Iterator[Convolution]:
    """Yield every convolution of `network` in the order of the official state dict."""
    channels, scale = network.in_channels, 1
    for index, row in enumerate(network.stem):
        scale *= row.stride
        yield Convolution(f"stem.{index}", channels, row.out_channels, scale, stride=row.stride)
        channels = row.out_channels
    scales = {}
    for level, name in enumerate(ENCODER):
        scales[name] = scale * 2**level
        scales[f"{name}d"] = scale * 2**level
    for name in ENCODER + DECODER:
        yield from _stage_convolutions(name, network.stages[name], scales[name])
    for index, name in enumerate(SIDES, 1):
        out = network.stages[name].out_channels
        yield Convolution(f"side{index}", out, 1, scales[name], normalised=False)
    yield Convolution("outconv", 6, 1, scale, kernel=1, normalised=False)


def range_names(network: Network) -> list[str]:
    """Return the blocks and stages whose largest output int8 has to know."""
    blocks = [conv.name for conv in convolutions(network) if conv.normalised]
    return blocks + list(network.stages)


def parameter_count(network: Network) -> int:
    """Count trainable parameters, BN unfolded."""
    return sum(
        c.out_channels * (c.in_channels * c.kernel**2 + (3 if c.normalised else 1))
        for c in convolutions(network)
    )


def multiply_adds(network: Network, width: int, height: int) -> int:
    """Count the convolutions' multiply-adds for one picture of `width` × `height`."""
    return sum(
        c.out_channels * c.in_channels * c.kernel**2 * (width // c.scale) * (height // c.scale)
        for c in convolutions(network)
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Alpha ≤ `lo` → 0, ≥ `hi` → 1, linear between; 0 ≤ lo < hi ≤ 1."""

    lo: float
    hi: float


class Download(NamedTuple):
    """A public file whose URL and SHA-256 are both published; `cited` says where we read them.

    `hosts` are the domains, apart from the URL's own host, that redirects may lead to.
    """

    url: str
    sha256: str
    cited: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model: its network, how its input is prepared and its output read, where it is from.

    `mean` and `std` normalise RGB/255. `sha256` pins embedded weights; None elsewhere. `download`
    is None where no public source gives both URL and hash: the model is import only.
    """

    name: str
    network: Network
    curve: Curve
    licence: str
    source: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    multiple_of: int = 32
    sha256: str | None = None
    download: Download | None = None


U2NET = Network(
    "u2net",
    {
        "stage1": Stage(7, 3, 32, 64, 0),
        "stage2": Stage(6, 64, 32, 128, 0),
        "stage3": Stage(5, 128, 64, 256, 0),
        "stage4": Stage(4, 256, 128, 512, 0),
        "stage5": Stage(4, 512, 256, 512, 1),
        "stage6": Stage(4, 512, 256, 512, 1),
        "stage5d": Stage(4, 1024, 256, 512, 1),
        "stage4d": Stage(4, 1024, 128, 256, 0),
        "stage3d": Stage(5, 512, 64, 128, 0),
        "stage2d": Stage(6, 256, 32, 64, 0),
        "stage1d": Stage(7, 128, 16, 64, 0),
    },
)

U2NETP = Network(
    "u2netp",
    {
        "stage1": Stage(7, 3, 16, 64, 0),
        "stage2": Stage(6, 64, 16, 64, 0),
        "stage3": Stage(5, 64, 16, 64, 0),
        "stage4": Stage(4, 64, 16, 64, 0),
        "stage5": Stage(4, 64, 16, 64, 1),
        "stage6": Stage(4, 64, 16, 64, 1),
        "stage5d": Stage(4, 128, 16, 64, 1),
        "stage4d": Stage(4, 128, 16, 64, 0),
        "stage3d": Stage(5, 128, 16, 64, 0),
        "stage2d": Stage(6, 128, 16, 64, 0),
        "stage1d": Stage(7, 128, 16, 64, 0),
    },
)

_OFFICIAL = "https://github.com/xuebinqin/U-2-Net"
# Where each URL and hash was read; none of these files was ever fetched by this project, so a wrong
# one can only fail the check. u2net_human_seg stays import only: no source that names itself gives
# a direct URL together with a SHA-256.
_U2NET_PTH = Download(
    "https://huggingface.co/Carve/u2net-universal/resolve/"
    "10305d785481cf4b2eee1d447c39cd6e5f43d74b/full_weights.pth",
    "10025a17f49cd3208afc342b589890e402ee63123d6f2d289a4a0903695cce58",
    "URL: carvekit (OPHoperHPO/image-background-remove-tool), carvekit/utils/download_models.py; "
    "SHA-256 of the official u2net.pth: linxiaohui/image-service, U-2-Net/README.md",
    ("huggingface.co", "hf.co"),
)
_U2NETP_PTH = Download(
    "https://drive.google.com/uc?export=download&id=1rbSTGKAE-MTxBYHd-51l2hMOQPT_7EPy",
    "e7567cde013fb64813973ce6e1ecc25a80c05c3ca7adbc5a54f3c3d90991b854",
    "link and SHA-256 of the official u2netp.pth: linxiaohui/image-service, U-2-Net/README.md",
    ("google.com", "googleusercontent.com"),
)
# Chosen with u2netp on generated and real clips (benchmarks/NOTES.md, Matte quality): from .05-.95
# it takes MAD 6.78 to 5.46 and exact ones inside 96.3 to 99.5 %. u2net itself was not measured.
_OFFICIAL_CURVE = Curve(0.2, 0.8)


@cache
def _live() -> ModelRow:
    """Read the row of `live`, whose numbers are stored beside its weights."""
    facts = json.loads((WEIGHTS_FOLDER / "live.json").read_text("utf-8"))
    table, inputs = facts["table"], facts["input"]
    stages = {name: Stage(*row) for name, row in table["stages"].items()}
    stem = tuple(StemRow(*row) for row in table["stem"])
    return ModelRow(
        "live",
        Network("live", stages, stem, table["in_ch"]),
        Curve(facts["curve"]["lo"], facts["curve"]["hi"]),
        licence="none stated (see vidmatte/weights/MODEL_CARD.md)",
        source="trained by this project",
        mean=tuple(inputs["mean"]),
        std=tuple(inputs["std"]),
        multiple_of=inputs["multiple_of"],
        sha256=facts["sha256"],
    )


@cache
def models() -> dict[str, ModelRow]:
    """Return every known model by name, the embedded default first."""
    rows = [
        _live(),
        ModelRow("u2netp", U2NETP, _OFFICIAL_CURVE, "Apache-2.0", _OFFICIAL, download=_U2NETP_PTH),
        ModelRow("u2net", U2NET, _OFFICIAL_CURVE, "Apache-2.0", _OFFICIAL, download=_U2NET_PTH),
        ModelRow("u2net_human_seg", U2NET, _OFFICIAL_CURVE, "Apache-2.0", _OFFICIAL),
    ]
    return {row.name: row for row in rows}


def network_size(width: int, height: int, row: ModelRow, longer: int = 320) -> tuple[int, int]:
    """Return the (width, height) in pixels that a picture is stretched to for the network.

    The longer side becomes `longer`, the shorter keeps the aspect as nearly as multiples of
    `row.multiple_of` allow, at least one multiple.
    """
    step = row.multiple_of

    def rounded(pixels: float) -> int:
        return max(step, int(pixels / step + 0.5) * step)

    scale = longer / max(width, height)
    return rounded(width * scale), rounded(height * scale)
