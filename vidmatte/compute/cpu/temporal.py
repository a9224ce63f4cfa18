"""Steady the small probability maps over time: along motion, never across a scene cut.

Each map is averaged with its neighbours in time, carried to it by optical flow (carry.py) and
trusted only where the carried picture looks like the present one. Past: the previous steady map, so
the average is recursive. Future: raw maps, if looked ahead.

At an edge a memory can only blur; there it weighs little, and a large change ends it. Where a map
is flat and unsure, no edge can be smeared: there the memory is long, and parts of a subject that
the network takes and drops from frame to frame stay.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.carry import Moment, carry, falling, small_grey

if TYPE_CHECKING:
    from vidmatte.compute.cpu.carry import Carried, Floats, Picture

PAST_WEIGHT = 1.5  # against 1 for the present
FLAT_PAST_WEIGHT = 8.0  # more, where both maps are flat and not both sure of the same
FUTURE_WEIGHTS = (0.8, 0.6)
# A moved map may differ this much from the present one; more is a ghost of a wrong flow.
GHOST = (0.15, 0.4)
FLAT_GHOST = (0.6, 1.2)
LONGER_PX = 160  # larger maps are averaged smaller; what that changes is added to them
FLAT_CELLS, FLAT_RANGE = 1, 0.5  # flat: so far around, values range over much less


class TemporalFilter:
    """Turn per-frame probability maps into steady ones; exactly one out for each one in.

    `lookahead` frames (0, 1 or 2) of the future are used, and outputs come that much later. Used
    by one thread.
    """

    def __init__(self, *, lookahead: int = 0) -> None:
        if not 0 <= lookahead <= len(FUTURE_WEIGHTS):
            raise ValueError(f"lookahead {lookahead}")
        self._lookahead = lookahead
        self._past: Moment | None = None
        self._age = 0  # frames that the past remembers
        self._waiting: deque[tuple[Floats, Moment]] = deque()

    def push(self, probability: Floats, image: Picture) -> list[Floats]:
        """Take the map of the next frame; return the steady maps that are now known, in order.

        `probability` (h, w) float32 0..1 is copied. `image` (H, W, 3) uint8 RGB shows the same
        picture at any size. Sizes may change between calls: each result has the size of its map.
        """
        small = _small(probability)
        self._waiting.append((probability.copy(), Moment(small, small_grey(image, small.shape))))
        return [self._next()] if len(self._waiting) > self._lookahead else []

    def flush(self) -> list[Floats]:
        """Return the maps still held back; the next `push` starts afresh."""
        rest = [self._next() for _ in range(len(self._waiting))]
        self._past = None
        return rest

    def _next(self) -> Floats:
        probability, now = self._waiting.popleft()
        average = _Average(now)
        known = self._past is not None and average.add_past(self._past, self._age)
        self._age = self._age + 1 if known else 1
        for (_, moment), weight in zip(self._waiting, FUTURE_WEIGHTS, strict=False):
            average.add_future(moment, weight)
        steady = average.value
        self._past = Moment(steady, now.grey)
        return _changed(probability, now.value, steady)


def small_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (h, w) in which a map of `shape` is averaged."""
    shrink = min(1.0, LONGER_PX / max(shape))
    height, width = (max(1, round(side * shrink)) for side in shape)
    return height, width


def _small(probability: Floats) -> Floats:
    """Return a copy with a longer side of at most LONGER_PX."""
    import cv2

    h, w = small_shape(probability.shape)
    if probability.shape == (h, w):
        return probability.copy()
    return np.asarray(cv2.resize(probability, (w, h), interpolation=cv2.INTER_AREA), np.float32)


def _changed(probability: Floats, before: Floats, after: Floats) -> Floats:
    """Change a map as its smaller form was changed; its own edges stay as fine as they are."""
    import cv2

    if probability.shape == after.shape:
        return after
    size = probability.shape[1], probability.shape[0]
    change = cv2.resize(after - before, size)
    return np.asarray(np.clip(probability + change, 0, 1), np.float32)


class _Average:
    """The weighted mean of the present map and others that are carried to it."""

    def __init__(self, now: Moment) -> None:
        self._now = now
        self._total, self._weight = now.value, np.ones_like(now.value)

    @property
    def value(self) -> Floats:
        return np.asarray(self._total / self._weight, np.float32)

    def add_past(self, moment: Moment, age: int) -> bool:
        """Return whether there is anything to remember: False across a cut."""
        brought = self._brought(moment)
        if brought is None:
            return False
        now, then = self._now.value, brought.value
        flat = _flatness(now) * _flatness(then)
        change = np.abs(then - now)
        alike = np.maximum(falling(change, *GHOST), falling(change, *FLAT_GHOST) * flat)
        middle = now + then
        unsure = middle * (2 - middle)  # 1 at a mean of one half, 0 where both are sure
        weight = np.float32(PAST_WEIGHT) + np.float32(FLAT_PAST_WEIGHT) * flat * unsure
        self._add(brought, alike, np.minimum(weight, np.float32(age)))  # young: a plain mean
        return True

    def add_future(self, moment: Moment, weight: float) -> None:
        brought = self._brought(moment)
        if brought is not None:
            alike = falling(np.abs(brought.value - self._now.value), *GHOST)
            self._add(brought, alike, np.float32(weight))

    def _brought(self, moment: Moment) -> Carried | None:
        return carry(moment.at(self._now.grey.shape), self._now.grey)

    def _add(self, brought: Carried, alike: Floats, weight: Floats | np.float32) -> None:
        trust = np.where(brought.still, brought.trust, brought.trust * alike) * weight
        self._total = np.asarray(self._total + brought.value * trust, np.float32)
        self._weight = np.asarray(self._weight + trust, np.float32)


def _flatness(value: Floats) -> Floats:
    """1 where a map is the same all around, 0 near an edge."""
    import cv2

    around = np.ones((2 * FLAT_CELLS + 1,) * 2, np.uint8)
    span = cv2.subtract(cv2.dilate(value, around), cv2.erode(value, around))
    return falling(np.asarray(span, np.float32), 0.0, FLAT_RANGE)
