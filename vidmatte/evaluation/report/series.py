"""Keep what a chart of any length of video needs: the worst value of each of a few hundred bins."""

from __future__ import annotations

from dataclasses import dataclass, field

BINS = 600
MOST_TIMES = 200


@dataclass(slots=True)
class Times:
    """How often something happened, and the first times, in seconds."""

    count: int = 0
    first: list[float] = field(default_factory=list)

    def add(self, time_s: float) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < MOST_TIMES:
            self.first.append(time_s)


class Series:
    """A number over time: its worst values in up to BINS bins, its mean, its worst of all.

    Bins are `step_s` wide, from `start_s` on: at first around each of pictures that are `step_s`
    apart, the first at `first_s`. Where they no longer suffice, two become one.
    """

    def __init__(self, first_s: float, step_s: float) -> None:
        self.start_s, self.step_s = first_s - step_s / 2, step_s
        self.bins: list[float | None] = []
        self.worst: tuple[float, float] | None = None
        self._sum, self._count = 0.0, 0

    def add(self, time_s: float, value: float) -> None:
        """Take the value of a picture at `time_s`, not before earlier ones."""
        if self.worst is None or value > self.worst[0]:
            self.worst = (value, time_s)
        self._sum, self._count = self._sum + value, self._count + 1
        while (place := int((time_s - self.start_s) / self.step_s)) >= BINS:
            pairs = zip(self.bins[::2], [*self.bins[1::2], None], strict=False)
            self.bins = [_more(a, b) for a, b in pairs]
            self.step_s *= 2
        self.bins += [None] * (place + 1 - len(self.bins))
        self.bins[place] = _more(self.bins[place], value)

    def time_of(self, place: int) -> float:
        """The middle of a bin, in seconds."""
        return self.start_s + (place + 0.5) * self.step_s

    @property
    def mean(self) -> float:
        """The mean over all pictures, or 0 for none."""
        return self._sum / self._count if self._count else 0.0


def _more(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)
