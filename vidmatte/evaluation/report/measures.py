"""Measure what can be told of a matte without the truth: does it move as the picture does?

All is measured on small pictures, LONGER_SIDE pixels long. Lengths are told in HD pixels, those of
the picture scaled to 1920 on its longer side, so that one threshold serves every resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from vidmatte.compute.cpu.carry import LOOSE, Moment, carry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Picture = NDArray[np.uint8]

LONGER_SIDE = 320
HD_PX = 1920 / LONGER_SIDE  # HD pixels in a small one
SOFT = (0.05, 0.95)  # an alpha between is uncertain
LEAST_AREA = 0.02  # of the picture: a smaller subject's area counts as this
CHANGED = 0.3  # of alpha: a place that changed by more has appeared or vanished


class Box(NamedTuple):
    """A part of the picture in fractions of its width and height, 0..1."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Measures:
    """What one picture's matte shows, alone and against the one before carried along the motion.

    `area`: mean alpha, 0..1. `uncertain_px`: mean width of the edge in HD pixels: the area where
    alpha is between .05 and .95 over the length of all edges, so about the same for any clean
    matte, however large, and many times as much for a smoky one.
    The others are None without a picture before: at the start, at a cut, or where the last one
    was lost. `flicker_px`: how far the edge moved on its own, on average, in HD pixels.
    `area_jump`: change of area that motion does not explain, 0..1. `blob`: area of the largest
    part that appeared or vanished, 0..1 of the picture; `blob_box` says where and `appeared` which.
    """

    area: float
    uncertain_px: float
    is_cut: bool = False
    flicker_px: float | None = None
    area_jump: float | None = None
    blob: float | None = None
    blob_box: Box | None = None
    appeared: bool = False


def small_size(width: int, height: int) -> tuple[int, int]:
    """Return the (height, width) at which a picture of `width` by `height` is measured."""
    longer = max(width, height)
    return tuple(max(32, round(side * LONGER_SIDE / longer)) for side in (height, width))  # type: ignore[return-value]


class Measurer:
    """Measures the mattes of one video in order. Used by one thread."""

    def __init__(self) -> None:
        self._past: Moment | None = None

    def push(self, image: Picture, alpha: Floats) -> Measures:
        """Measure the next matte.

        `image` is the source's picture, (h, w, 3) uint8 RGB in the size of `small_size`; `alpha`
        (h, w) float32 0..1 is its matte. Both are kept until the next call.
        """
        past, self._past = self._past, Moment(alpha, image)
        area, edges = float(alpha.mean()), _edges(alpha)
        soft = float(np.count_nonzero((alpha > SOFT[0]) & (alpha < SOFT[1])))
        uncertain_px = HD_PX * soft / max(float(edges.sum()), min(alpha.shape))
        if past is None:
            return Measures(area, uncertain_px)
        brought = carry(past, image, LOOSE)  # stricter, most of a moving edge is not trusted
        if brought is None:
            return Measures(area, uncertain_px, is_cut=True)
        change = (alpha - brought.value) * brought.trust
        lengths = [float((e * brought.trust).sum()) for e in (edges, _edges(brought.value))]
        areas = [float((value * brought.trust).sum()) for value in (alpha, brought.value)]
        blob, box, appeared = _largest(change)
        return Measures(
            area,
            uncertain_px,
            flicker_px=HD_PX * float(np.abs(change).sum()) / max(*lengths, min(alpha.shape)),
            area_jump=abs(float(change.sum())) / max(*areas, LEAST_AREA * alpha.size),
            blob=blob,
            blob_box=box,
            appeared=appeared,
        )

    def forget(self) -> None:
        """Compare the next matte with none: one is lost in between."""
        self._past = None


def _edges(alpha: Floats) -> Floats:
    """The steepness at each pixel; its sum is the length of all edges, however soft they are.

    The sum is the total variation, the mean length of the contours of all levels (coarea formula,
    Fleming & Rishel 1960).
    """
    across = np.diff(alpha, axis=1, append=alpha[:, -1:])
    down = np.diff(alpha, axis=0, append=alpha[-1:])
    return np.asarray(cv2.magnitude(across, down), np.float32)


def _largest(change: Floats) -> tuple[float, Box | None, bool]:
    """Find the largest part that appeared or vanished: its share, where it is, which of both.

    What is two pixels wide or less is an edge that moved, and left to the flicker.
    """
    changed = (np.abs(change) > CHANGED).astype(np.uint8)
    if not changed.any():
        return 0.0, None, False
    opened = cv2.morphologyEx(changed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return 0.0, None, False
    label = int(np.argmax(areas)) + 1
    left, top, width, height = (int(n) for n in stats[label, :4])
    rows, columns = change.shape
    box = Box(left / columns, top / rows, (left + width) / columns, (top + height) / rows)
    return float(areas[label - 1]) / change.size, box, bool(change[labels == label].mean() > 0)
