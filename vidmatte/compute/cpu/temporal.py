"""Steady the small probability maps over time: along motion, never across a scene cut.

Each map is averaged with its neighbours in time, carried to it by optical flow (carry.py) and
trusted only where the carried picture looks like the present one. Past: the previous steady map, so
the average is recursive. Future: raw maps, if looked ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.carry import Moment, carry, falling, small_grey

if TYPE_CHECKING:
    from vidmatte.compute.cpu.carry import Floats, Picture

_PAST_WEIGHT = 1.5  # against 1 for the present
_FUTURE_WEIGHTS = (0.8, 0.6)
# A moved map may differ this much from the present one; more is a ghost of a wrong flow.
_GHOST = (0.15, 0.4)


class TemporalFilter:
    """Turn per-frame probability maps into steady ones; exactly one out for each one in.

    `lookahead` frames (0, 1 or 2) of the future are used, and outputs come that much later. Used
    by one thread.
    """

    def __init__(self, *, lookahead: int = 0) -> None:
        if not 0 <= lookahead <= len(_FUTURE_WEIGHTS):
            raise ValueError(f"lookahead {lookahead}")
        self._lookahead = lookahead
        self._past: Moment | None = None
        self._waiting: deque[Moment] = deque()

    def push(self, probability: Floats, image: Picture) -> list[Floats]:
        """Take the map of the next frame; return the steady maps that are now known, in order.

        `probability` (h, w) float32 0..1 is copied. `image` (H, W, 3) uint8 RGB shows the same
        picture at any size. Sizes may change between calls: each result has the size of its map.
        """
        self._waiting.append(Moment(probability.copy(), small_grey(image, probability.shape)))
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
        self._past = Moment(steady, now.grey)
        return steady


def _average(now: Moment, neighbours: Iterable[tuple[Moment, float]]) -> Floats:
    total, weight = now.value, np.ones_like(now.value)
    for moment, strength in neighbours:
        brought = carry(moment.at(now.grey.shape), now.grey)
        if brought is None:
            continue
        ghostless = falling(np.abs(brought.value - now.value), *_GHOST)
        trust = np.where(brought.still, brought.trust, brought.trust * ghostless)
        trust *= np.float32(strength)
        total, weight = total + brought.value * trust, weight + trust
    return np.asarray(total / weight, np.float32)
