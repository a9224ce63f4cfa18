"""Steady the small probability maps over time: along motion, never across a scene cut.

Each map is averaged with its neighbours in time, carried to it by dense optical flow (DIS, Kroeger
et al. 2016, arXiv:1603.03590) and trusted only where the carried picture looks like the present
one. Past: the previous steady map, so the average is recursive. Future: raw maps, if looked ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Grey = NDArray[np.uint8]

_PAST_WEIGHT = 1.5  # against 1 for the present
_FUTURE_WEIGHTS = (0.8, 0.6)
# Mean absolute grey difference, levels of 255: trusted fully up to the first, not from the second.
_SAME_PICTURE = (2.5, 6.0)
_STILL = 2.0  # below it without any flow a pixel has not moved,
_STILL_TRUST = 1.0  # and its own history holds, whatever the flow of a neighbour says
_CUT = 14.0  # mean difference after motion that no motion explains
# A moved map may differ this much from the present one; more is a ghost of a wrong flow.
_GHOST = (0.15, 0.4)


@dataclass(frozen=True, slots=True)
class _Moment:
    """A probability map and the picture it belongs to, (h, w) both."""

    probability: Floats
    grey: Grey

    def at(self, shape: tuple[int, ...]) -> _Moment:
        """Resample to `shape`, for when the network's size changes on the way."""
        import cv2

        if self.probability.shape == shape:
            return self
        size = (shape[1], shape[0])
        return _Moment(
            np.asarray(cv2.resize(self.probability, size), np.float32),
            np.asarray(cv2.resize(self.grey, size, interpolation=cv2.INTER_AREA), np.uint8),
        )


class TemporalFilter:
    """Turn per-frame probability maps into steady ones; exactly one out for each one in.

    `lookahead` frames (0, 1 or 2) of the future are used, and outputs come that much later. Used
    by one thread.
    """

    def __init__(self, *, lookahead: int = 0) -> None:
        if not 0 <= lookahead <= len(_FUTURE_WEIGHTS):
            raise ValueError(f"lookahead {lookahead}")
        self._lookahead = lookahead
        self._past: _Moment | None = None
        self._waiting: deque[_Moment] = deque()

    def push(self, probability: Floats, image: Grey) -> list[Floats]:
        """Take the map of the next frame; return the steady maps that are now known, in order.

        `probability` (h, w) float32 0..1 is copied. `image` (H, W, 3) uint8 RGB shows the same
        picture at any size. Sizes may change between calls: each result has the size of its map.
        """
        self._waiting.append(_Moment(probability.copy(), _grey(image, probability.shape)))
        return [self._next()] if len(self._waiting) > self._lookahead else []

    def flush(self) -> list[Floats]:
        """Return the maps still held back; the next `push` starts afresh."""
        rest = [self._next() for _ in range(len(self._waiting))]
        self._past = None
        return rest

    def _next(self) -> Floats:
        now = self._waiting.popleft()
        neighbours = [] if self._past is None else [(self._past, _PAST_WEIGHT)]
        neighbours += zip(self._waiting, _FUTURE_WEIGHTS, strict=False)
        steady = _average(now, neighbours)
        self._past = _Moment(steady, now.grey)
        return steady


def _grey(image: Grey, shape: tuple[int, ...]) -> Grey:
    import cv2

    small = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def _average(now: _Moment, neighbours: Iterable[tuple[_Moment, float]]) -> Floats:
    total, weight = now.probability, np.ones_like(now.probability)
    for moment, strength in neighbours:
        carried, trust = _carry(moment.at(now.grey.shape), now)
        trust *= np.float32(strength)
        total, weight = total + carried * trust, weight + trust
    return np.asarray(total / weight, np.float32)


def _carry(moment: _Moment, now: _Moment) -> tuple[Floats, Floats]:
    """Bring another moment's map to the present; return it and the trust in it."""
    import cv2

    at_x, at_y = _places(now.grey, moment.grey)
    edge = cv2.BORDER_REPLICATE
    looks = cv2.remap(moment.grey, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge)
    carried = np.asarray(
        cv2.remap(moment.probability, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge), np.float32
    )
    error = _difference(now.grey, np.asarray(looks, np.uint8))
    if error.mean() > _CUT:
        return now.probability, np.zeros_like(now.probability)
    height, width = now.grey.shape
    inside = (at_x > -1) & (at_y > -1) & (at_x < width) & (at_y < height)
    same_map = _falling(np.abs(carried - now.probability), *_GHOST)
    trust = _falling(error, *_SAME_PICTURE) * same_map * inside
    still = _difference(now.grey, moment.grey) < _STILL
    return (
        np.where(still, moment.probability, carried),
        np.where(still, np.float32(_STILL_TRUST), trust),
    )


def _places(now: Grey, then: Grey) -> tuple[Floats, Floats]:
    """Where each pixel of `now` was in `then`: (x, y) in pixels."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    motion = np.zeros((*now.shape, 2), np.float32)  # taken as a first guess
    flow.calc(now, then, motion)
    columns, rows = _grid(now.shape)
    return columns + motion[..., 0], rows + motion[..., 1]


def _difference(left: Grey, right: Grey) -> Floats:
    """Mean absolute difference around each pixel, after removing a change of light."""
    import cv2

    change = cv2.subtract(left, right, dtype=cv2.CV_32F)
    change -= np.median(change[::4, ::4])
    return np.asarray(cv2.blur(np.abs(change), (5, 5)), np.float32)


def _falling(value: Floats, full: float, none: float) -> Floats:
    """1 up to `full`, 0 from `none`, linear between."""
    return np.asarray(np.clip((none - value) / (none - full), 0, 1), np.float32)


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    rows, columns = np.indices(shape, np.float32)
    return columns, rows
