"""What a network sees of a clip, and the ways to make mattes of its answers that are compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import av
import numpy as np
from numpy.typing import NDArray
from quality_clips import Footage

from vidmatte.backends import Backend
from vidmatte.compute.cpu import carry
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.frames import Colour, VideoInfo, plane_views
from vidmatte.matting import LOOKAHEAD

if TYPE_CHECKING:
    from vidmatte.frames import Samples

Map = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shot:
    """A clip as the network and the refinement see it, and its truth."""

    probabilities: list[Map]
    images: list[Picture]
    planes: list[list[Samples]]
    footage: Footage
    times_ms: dict[str, float] = field(default_factory=dict)

    @property
    def truths(self) -> list[Picture]:
        """The true alpha of every frame, (H, W) uint8."""
        return self.footage.truths


def shoot(footage: Footage, backend: Backend) -> Shot:
    """Prepare every picture as a run does and ask the network about it."""
    first = footage.pictures[0]
    preparer = Preparer(video_info(first), backend.input_size)
    shot = Shot([], [], [], footage)
    for picture in footage.pictures:
        image = np.empty((*backend.input_size, 3), np.uint8)
        preparer.prepare(picture, image)
        shot.images.append(image)
        shot.probabilities.append(backend.infer(image[None])[0].copy())
        shot.planes.append(plane_views(picture))
    return shot


def video_info(picture: av.VideoFrame) -> VideoInfo:
    """Describe a source of such pictures: BT.709, limited range."""
    return VideoInfo(
        name="clip",
        width=picture.width,
        height=picture.height,
        pix_fmt=picture.format.name,
        time_base=Fraction(1, 30),
        frame_rate=Fraction(30),
        colour=Colour(matrix=int(picture.colorspace), range=int(picture.color_range)),
    )


def per_frame(shot: Shot) -> list[Map]:
    """The network's answers as they are."""
    return shot.probabilities


def stretched(shot: Shot) -> list[Map]:
    """Each answer stretched to its own minimum and maximum, as U²-Net's own script does."""
    return [(p - p.min()) / np.float32(np.ptp(p) + 1e-8) for p in shot.probabilities]


def ema(shot: Shot, past: float) -> list[Map]:
    """The exponential average over time, with the weight of the past."""
    out = [shot.probabilities[0]]
    for probability in shot.probabilities[1:]:
        out.append(past * out[-1] + (1 - past) * probability)
    return out


def steady(shot: Shot, lookahead: int = LOOKAHEAD) -> list[Map]:
    """The answers through our temporal filter."""
    temporal = TemporalFilter(lookahead=lookahead)
    out: list[Map] = []
    for probability, image in zip(shot.probabilities, shot.images, strict=True):
        out += temporal.push(probability, image)
    return out + temporal.flush()


def bilinear(shot: Shot, maps: Sequence[Map], lo: float, hi: float) -> list[Picture]:
    """Enlarge maps by bilinear interpolation alone."""
    height, width = shot.truths[0].shape
    return [np.asarray(upsample(p, width, height, lo=lo, hi=hi), np.uint8) for p in maps]


def refined(shot: Shot, maps: Sequence[Map], lo: float, hi: float) -> list[Picture]:
    """Enlarge maps by our refinement."""
    pairs = zip(maps, shot.planes, strict=True)
    return [np.asarray(refine(p, planes, lo=lo, hi=hi), np.uint8) for p, planes in pairs]


def _without_cuts() -> AbstractContextManager[object]:
    return mock.patch.object(carry, "CUT", math.inf)


class Variant(NamedTuple):
    """One way from answers to mattes; without `curve` alpha is the probability itself."""

    steadying: Callable[[Shot], list[Map]]
    enlarging: Callable[[Shot, Sequence[Map], float, float], list[Picture]]
    curve: bool = True
    context: Callable[[], AbstractContextManager[object]] = nullcontext


PLAIN, CURVED, STRETCHED = "plain bilinear", "bilinear, our curve", "min-max stretched"
OURS, LIVE = "ours", "ours, live (no look-ahead)"
NO_TEMPORAL, NO_REFINEMENT = "ours without temporal", "ours without refinement"
VARIANTS: dict[str, Variant] = {
    PLAIN: Variant(per_frame, bilinear, curve=False),
    STRETCHED: Variant(stretched, bilinear, curve=False),
    "plain + EMA .3": Variant(partial(ema, past=0.3), bilinear, curve=False),
    "plain + EMA .5": Variant(partial(ema, past=0.5), bilinear, curve=False),
    "plain + EMA .8": Variant(partial(ema, past=0.8), bilinear, curve=False),
    CURVED: Variant(per_frame, bilinear),
    OURS: Variant(steady, refined),
    LIVE: Variant(partial(steady, lookahead=0), refined),
    NO_TEMPORAL: Variant(per_frame, refined),
    NO_REFINEMENT: Variant(steady, bilinear),
    "ours without curve": Variant(steady, refined, curve=False),
    "ours without cut detection": Variant(steady, refined, context=_without_cuts),
}


def mattes(shot: Shot, name: str, lo: float, hi: float) -> list[Picture]:
    """Return the alphas of `shot` by one of VARIANTS; `lo`..`hi` is the model's curve.

    Leaves the CPU time per frame in the shot.
    """
    variant = VARIANTS[name]
    curve = (lo, hi) if variant.curve else (0.0, 1.0)
    started = time.process_time()
    with variant.context():
        alphas = variant.enlarging(shot, variant.steadying(shot), *curve)
    shot.times_ms[name] = (time.process_time() - started) / len(alphas) * 1e3
    return alphas
