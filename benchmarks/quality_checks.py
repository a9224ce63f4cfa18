"""What one number per frame does not tell: lag, cuts, empty rooms, colour at edges, exactness."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from quality_shots import Shot, video_info

from vidmatte.compute.cpu.background import colour_background
from vidmatte.compute.cpu.composite import Compositor, chroma_alpha
from vidmatte.compute.cpu.foreground import estimate_planes
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.evaluation.video_metrics import Comparison, FrameErrors
from vidmatte.frames import Frame, Matte, layout_of, plane_views
from vidmatte.matting import LOOKAHEAD

if TYPE_CHECKING:
    from vidmatte.frames import Samples

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

# A pixel counts as inside or far outside when the truth says so this far around it.
MARGIN_PX = 12
LONGEST_LAG = 6  # frames
# Recovered: no more than 10 % and .3e-3 above the MAD of the same mattes without a memory.
RECOVERED, RECOVERED_MAD = 1.1, 0.3
GREEN = 0, 177, 64
STAGES = "prepare", "temporal", "refine", "composite"


def errors(alphas: Sequence[Picture], truths: Sequence[Picture]) -> list[FrameErrors]:
    """Compare alphas with truths, frame by frame."""
    comparison = Comparison()
    return [comparison.add(a, t) for a, t in zip(alphas, truths, strict=True)]


def exactness(alphas: Sequence[Picture], truths: Sequence[Picture]) -> tuple[float, float]:
    """Return the shares of inside at exactly 255 and of far outside at exactly 0; 1 of nothing."""
    around = np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)
    inside, outside = [], []
    for alpha, truth in zip(alphas, truths, strict=True):
        inside.append(alpha[cv2.erode(truth, around) == 255] == 255)
        outside.append(alpha[cv2.dilate(truth, around) == 0] == 0)
    shares = [np.concatenate(parts) for parts in (inside, outside)]
    return tuple(float(share.mean()) if share.size else 1.0 for share in shares)  # type: ignore[return-value]


def empty_alpha(alphas: Sequence[Picture], truths: Sequence[Picture]) -> float | None:
    """Mean alpha 0..1 over the frames where nobody is there; None without such frames."""
    empty = [a.mean() / 255 for a, t in zip(alphas, truths, strict=True) if not t.any()]
    return float(np.mean(empty)) if empty else None


def start_of_motion(truths: Sequence[Picture]) -> int | None:
    """The first frame whose truth differs after at least two equal ones."""
    moves = [bool((a != b).any()) for a, b in itertools.pairwise(truths)]
    first = moves.index(True) if True in moves else 0
    return first + 1 if first >= 2 else None


def lag_frames(alphas: Sequence[Picture], truths: Sequence[Picture], start: int) -> int:
    """By how many frames mattes trail after a sudden start: the shift that fits the truth best."""
    frames = range(start + 1, min(start + 1 + LONGEST_LAG, len(truths)))

    def misfit(shift: int) -> float:
        pairs = ((alphas[i], truths[max(i - shift, 0)]) for i in frames)
        return float(np.mean([np.abs(a.astype(np.int16) - t).mean() for a, t in pairs]))

    return min(range(LONGEST_LAG + 1), key=misfit)


def cuts(truths: Sequence[Picture]) -> list[int]:
    """The frames that are first of a new shot, of a clip cut at each third."""
    return [-(-len(truths) // 3), -(-2 * len(truths) // 3)]


def recovery_frames(
    mads: Sequence[float], memoryless: Sequence[float], first_frames: Sequence[int]
) -> int:
    """For how many frames after a cut a matte is worse than the same without memory; the worst."""
    good = [
        m <= RECOVERED * alone + RECOVERED_MAD for m, alone in zip(mads, memoryless, strict=True)
    ]
    late = [[*good[first:], True].index(True) for first in first_frames]
    return max(late)


Colouring = Callable[[Sequence["Samples"], "Samples"], list["Samples"]]


def foreground_error(
    shot: Shot, alphas: Sequence[Picture], colouring: Colouring, every: int, *, as_seen: bool
) -> float | None:
    """Mean error of the foreground's colour where the true alpha is .05 to .95, levels of RGB.

    `as_seen` weighs a colour by the matte: one that is not seen does not count.
    """
    found = []
    for index in range(0, len(alphas), every):
        truth = shot.truths[index]
        soft = (truth >= 13) & (truth <= 242)
        seen = alphas[index][soft].astype(np.float32) if as_seen else np.ones(soft.sum())
        if not seen.any():
            continue
        colour = coloured(shot.footage.pictures[index], alphas[index], colouring)
        difference = np.abs(colour.astype(np.int16) - shot.footage.foregrounds[index])
        found.append(float((difference[soft].mean(axis=1) * seen).sum() / seen.sum()))
    return float(np.mean(found)) if found else None


def coloured(picture: av.VideoFrame, alpha: Picture, colouring: Colouring) -> Picture:
    """The foreground's colour, (H, W, 3) RGB, by one way to find it in each plane."""
    layout = layout_of(picture.format.name)
    assert layout is not None
    luma, *chroma = plane_views(picture)
    planes = colouring([luma], alpha) + colouring(chroma, chroma_alpha(alpha, layout))
    result = av.VideoFrame(picture.width, picture.height, picture.format.name)
    result.colorspace, result.color_range = picture.colorspace, picture.color_range
    for own, plane in zip(plane_views(result, writable=True), planes, strict=True):
        own[:] = plane
    return np.asarray(result.to_ndarray(format="rgb24"), np.uint8)


def as_it_is(planes: Sequence[Samples], alpha: Samples) -> list[Samples]:
    """The source's own colour: what shines through stays."""
    return list(planes)


def nearest(planes: Sequence[Samples], alpha: Samples) -> list[Samples]:
    """The colour of the nearest sample that is surely inside."""
    sure = (alpha < 243).astype(np.uint8)
    if sure.all():
        return list(planes)
    _, labels = cv2.distanceTransformWithLabels(
        sure, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(labels.max() + 1, np.int64)
    place[labels[sure == 0]] = np.flatnonzero(sure == 0)
    return [np.ascontiguousarray(p).reshape(-1)[place[labels]] for p in planes]


def blurred_twice(planes: Sequence[Samples], alpha: Samples) -> list[Samples]:
    """Forte & Pitié 2021, arXiv:2106.10983: two rounds of box means, of radius 90 and 6."""
    opacity = alpha * np.float32(1 / 255)
    through = 1 - opacity
    found: list[Samples] = []
    for plane in planes:
        picture = plane.astype(np.float32)
        foreground = background = picture
        for radius in (90, 6):
            foreground, background = _blur_round(
                picture, foreground, background, opacity, through, 2 * radius + 1
            )
        found.append(np.asarray(np.clip(np.rint(foreground), 0, 255), np.uint8))
    return found


def _blur_round(
    picture: Floats,
    foreground: Floats,
    background: Floats,
    opacity: Floats,
    through: Floats,
    side: int,
) -> tuple[Floats, Floats]:
    def mean(values: Floats, weight: Floats) -> Floats:
        box = (side, side)
        total = cv2.blur(values * weight, box) / (cv2.blur(weight, box) + 1e-5)
        return np.asarray(total, np.float32)

    inside, outside = mean(foreground, opacity), mean(background, through)
    rest = picture - opacity * inside - through * outside
    return np.clip(inside + opacity * rest, 0, 255), outside


COLOURINGS: dict[str, Colouring] = {
    "source's own": as_it_is,
    "nearest inside": nearest,
    "two blurs": blurred_twice,
    "ours": estimate_planes,
}


def cost_ms(shot: Shot, lo: float, hi: float, repeat: int = 24) -> dict[str, float]:
    """CPU ms of one thread per frame of each stage but the network; medians.

    For the size of `shot`; over a colour; temporal with its usual look-ahead.
    """
    first = shot.footage.pictures[0]
    info, layout = video_info(first), layout_of(first.format.name)
    assert layout is not None
    height, width, _ = shot.images[0].shape
    preparer = Preparer(info, (height, width))
    background = colour_background(GREEN, info, layout)
    compositor = Compositor(layout, info.width, info.height, background=background)
    temporal = TemporalFilter(lookahead=LOOKAHEAD)
    spent: dict[str, list[float]] = {name: [] for name in STAGES}
    image = np.empty((height, width, 3), np.uint8)
    for index in range(repeat):
        k = index % len(shot.images)
        frame = Frame(shot.footage.pictures[k], index=k, pts=k, time_base=info.time_base)
        marks = [time.thread_time()]
        preparer.prepare(frame.picture, image)
        marks.append(time.thread_time())
        maps = temporal.push(shot.probabilities[k], shot.images[k])
        marks.append(time.thread_time())
        probability = maps[0] if maps else shot.probabilities[k]
        alpha = refine(probability, plane_views(frame.picture), lo=lo, hi=hi)
        marks.append(time.thread_time())
        compositor.composite(Matte(frame, alpha))
        marks.append(time.thread_time())
        for name, (begun, done) in zip(STAGES, itertools.pairwise(marks), strict=True):
            spent[name].append(done - begun)
    return {name: statistics.median(times) * 1e3 for name, times in spent.items()}
