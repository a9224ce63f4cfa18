"""Decide what to give up when the machine is too slow, and when to take it back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Level:
    """How much work is done per picture.

    `size` is the longer side of the network's picture in pixels. A mask is computed from every
    `every`-th picture: 1 is frame by frame; above, masks come when they are ready and are carried
    to the pictures in between. `rate_share` is the share of pictures that are used at all.
    """

    size: int
    every: int = 1
    rate_share: Fraction = Fraction(1)


# 192 px and less are no level: `live` takes rough wood for a subject there, MAD 190 against 1 at
# 320 (benchmarks/NOTES.md, Live mattes).
_LAST = (Level(256, 2), Level(256, 3), Level(256, 2, Fraction(1, 2)))
PRESETS: dict[str, tuple[Level, ...]] = {
    "fast": (Level(256), *_LAST),
    "balanced": (Level(320), Level(256), *_LAST),
    "quality": (Level(320), Level(256), Level(256, 1, Fraction(1, 2))),
}
"""What each gives up, in order. `quality` shows fewer pictures rather than carried masks; it starts
no larger than `balanced`, since `live` takes a table for a person from 384 px on."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a session measured over about the last second.

    `period_s` is the time between two pictures at full rate. `busy_s` is what the compute thread
    spends on one it uses (p95), waiting for the network included. `missed` is the share, 0..1, of
    the pictures to be used that it came too late for (not those without an honest mask).
    `network_s` is the network's time for one answer, 0 where unknown.
    """

    period_s: float
    busy_s: float
    missed: float = 0.0
    network_s: float = 0.0


_TIGHT = 1.0  # share of the time for a picture above which it is too slow,
_TIGHT_MISSED = 0.05  # or of pictures missed
_ROOMY = 0.75  # share that the level above may be expected to take
_ROOMY_MISSED = 0.01
_SLOW_S = 1.0  # of being too slow, before a step down
_SETTLE_S = 1.0  # after a step, until measurements are of the new level
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 300.0  # of having room, before a step up
_PROVEN_S = 30.0  # a step up that lasts as long has not failed
_FORGIVING = 4  # after so many waits without a step down the wait is halved
_LONGEST_GAP_S = 0.5  # more time between two updates tells nothing


class Governor:
    """Chooses a level from loads: pure, with its time from outside.

    Goes down one level at a time after a second of being too slow, and up after a wait that
    doubles with every step up that failed. `said` tells the last step in a plain sentence.
    """

    def __init__(self, levels: Sequence[Level], *, level: int = 0) -> None:
        self._levels = tuple(levels)
        self.level = level
        self.said = ""
        self._now_s: float | None = None
        self._settled_s = float("-inf")
        self._slow_s = self._roomy_s = self._steady_s = 0.0
        self._wait_s = _FIRST_WAIT_S
        self._raised_s = float("-inf")

    @property
    def given_up(self) -> str:
        """What the present level lacks against the first, in a few words; empty at the first."""
        best, now = self._levels[0], self._levels[self.level]
        parts = []
        if now.size != best.size:
            parts.append(f"network {now.size} px")
        if now.every != best.every:
            parts.append(f"masks from every {_nth(now.every)} picture")
        if now.rate_share != best.rate_share:
            parts.append(f"{now.rate_share} of the rate")
        return ", ".join(parts)

    def update(self, load: Load, now_s: float, available: Collection[int] | None = None) -> int:
        """Return the level to use from now on; only one of `available` is newly chosen.

        Call it several times a second; `now_s` are seconds of a clock that never goes back.
        """
        passed_s = 0.0 if self._now_s is None else min(now_s - self._now_s, _LONGEST_GAP_S)
        self._now_s = now_s
        if now_s < self._settled_s:
            return self.level
        self._weigh(load, passed_s, self._above(available))
        if self._slow_s >= _SLOW_S:
            self._lower(now_s, available)
        elif self._roomy_s >= self._wait_s:
            self._raise(now_s, self._above(available))
        return self.level

    def _weigh(self, load: Load, passed_s: float, above: int | None) -> None:
        """Add the time that passed to what speaks for a step."""
        allowed_s = load.period_s / float(self._levels[self.level].rate_share)
        slow = load.busy_s > _TIGHT * allowed_s or load.missed > _TIGHT_MISSED
        self._slow_s = max(0.0, self._slow_s + (passed_s if slow else -passed_s))
        roomy = not slow and above is not None and self._has_room(load, above)
        self._roomy_s = (
            0.0 if slow else max(0.0, self._roomy_s + (passed_s if roomy else -passed_s))
        )
        self._steady_s += passed_s
        if self._steady_s >= _FORGIVING * self._wait_s:
            self._wait_s = max(_FIRST_WAIT_S, self._wait_s / 2)
            self._steady_s = 0.0

    def _has_room(self, load: Load, above: int) -> bool:
        """Whether the level above can be expected to fit."""
        now, then = self._levels[self.level], self._levels[above]
        growth = (then.size / now.size) ** 2
        more_s = load.network_s * (growth * (then.every == 1) - (now.every == 1))
        allowed_s = load.period_s / float(then.rate_share)
        return load.busy_s + more_s < _ROOMY * allowed_s and load.missed <= _ROOMY_MISSED

    def _above(self, available: Collection[int] | None) -> int | None:
        better = (n for n in reversed(range(self.level)) if available is None or n in available)
        return next(better, None)

    def _lower(self, now_s: float, available: Collection[int] | None) -> None:
        worse = range(self.level + 1, len(self._levels))
        below = next((n for n in worse if available is None or n in available), None)
        self._slow_s = self._roomy_s = self._steady_s = 0.0
        if below is None:
            return
        if now_s - self._raised_s < _PROVEN_S:
            self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)
            self._raised_s = float("-inf")  # one failure, however far it falls
        self._step(below, now_s, "too slow here")

    def _raise(self, now_s: float, above: int | None) -> None:
        self._roomy_s = 0.0
        if above is not None:
            self._raised_s = now_s
            self._step(above, now_s, "fast enough again")

    def _step(self, level: int, now_s: float, why: str) -> None:
        before, after = self._levels[self.level], self._levels[level]
        self.said = f"{why}: {_change(before, after)}"
        self.level = level
        self._settled_s = now_s + _SETTLE_S


def _change(before: Level, after: Level) -> str:
    """Say what is different now."""
    parts = []
    if after.size != before.size:
        parts.append(f"the network's picture is now {after.size} px wide instead of {before.size}")
    if after.every != before.every:
        parts.append(
            "every picture has a mask of its own"
            if after.every == 1
            else f"masks are made from every {_nth(after.every)} picture and carried to the others"
        )
    if after.rate_share != before.rate_share:
        parts.append(
            "all pictures are shown"
            if after.rate_share == 1
            else f"only {after.rate_share} of the pictures are shown"
        )
    return ", ".join(parts)


def _nth(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
