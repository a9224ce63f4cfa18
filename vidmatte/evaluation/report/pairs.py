"""Find the output's picture for every picture of the input, by time, and what is lost or extra.

Times are compared as they are written in the files, as players do. Numbered pictures have none:
they are paired in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from vidmatte.evaluation.report.series import Times
from vidmatte.frames import Frame, VideoInfo


@dataclass(slots=True)
class Rhythm:
    """When the pictures of one file are shown; times and gaps in seconds."""

    tick_s: float
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    shortest_s: float = float("inf")
    longest_s: float = 0.0

    def add(self, time_s: float) -> None:
        """Hear when the next picture is shown."""
        if self.count == 0:
            self.first_s = time_s
        else:
            gap_s = time_s - self.last_s
            self.shortest_s = min(self.shortest_s, gap_s)
            self.longest_s = max(self.longest_s, gap_s)
        self.last_s = time_s
        self.count += 1

    @property
    def is_constant(self) -> bool:
        """Whether all gaps are equal, as far as the file's ticks can tell."""
        return self.longest_s - self.shortest_s <= 2 * self.tick_s + 1e-9

    @property
    def rate(self) -> float:
        """Pictures per second on average, or 0 for a single one."""
        length_s = self.last_s - self.first_s
        return (self.count - 1) / length_s if length_s > 0 else 0.0


@dataclass(slots=True)
class Comparison:
    """How the times of a file differ from the input's; all in seconds of the input.

    `lost`: pictures of the input that the file lacks. `extra`: pictures that the input lacks, by
    their own times. `first_shift_s` and `last_shift_s` are of the first and last pair; a shift is
    positive where the file is late, and 0 where it is within `tolerance`.
    """

    tolerance: Fraction
    rhythm: Rhythm
    matched: int = 0
    shifted: int = 0
    worst_shift_s: float = 0.0
    worst_shift_at_s: float = 0.0
    first_shift_s: float = 0.0
    last_shift_s: float = 0.0
    lost: Times = field(default_factory=Times)
    extra: Times = field(default_factory=Times)
    lost_at_start: int = 0
    lost_at_end: int = 0
    extra_at_start: int = 0
    extra_at_end: int = 0

    @property
    def tolerance_s(self) -> float:
        """What times may differ by, as the files' ticks are coarse."""
        return float(self.tolerance)

    @property
    def drift_s(self) -> float:
        """How much later the end is than the beginning."""
        return self.last_shift_s - self.first_shift_s

    @property
    def displaced(self) -> int:
        """By how many pictures the whole file is late, or early if negative; else 0.

        Then as many are lost at one end as are extra at the other, and none between.
        """
        late = self.lost_at_start, self.extra_at_end
        early = self.lost_at_end, self.extra_at_start
        if late == (self.lost.count, self.extra.count) and late[0] == late[1]:
            return late[0]
        if early == (self.lost.count, self.extra.count) and early[0] == early[1]:
            return -early[0]
        return 0

    def missed(self, time_s: float) -> None:
        """Note a picture that the file lacks."""
        self.lost.add(time_s)
        self.lost_at_start += self.matched == 0
        self.lost_at_end += 1

    def had_more(self, time_s: float) -> None:
        """Note a picture that the input lacks."""
        self.extra.add(time_s)
        self.extra_at_start += self.matched == 0
        self.extra_at_end += 1

    def met(self, time: Fraction, own: Fraction) -> None:
        """Note a pair."""
        shift_s = 0.0 if abs(own - time) <= self.tolerance else float(own - time)
        self.first_shift_s = shift_s if self.matched == 0 else self.first_shift_s
        self.last_shift_s = shift_s
        self.matched += 1
        self.lost_at_end = self.extra_at_end = 0
        self.shifted += shift_s != 0.0
        if abs(shift_s) > abs(self.worst_shift_s):
            self.worst_shift_s, self.worst_shift_at_s = shift_s, float(time)


class Follower:
    """Hands out, for the input's pictures in turn, those of another file that belong to them.

    `in_order` pairs the n-th with the n-th, whatever their times. Errors of `frames` pass through.
    """

    def __init__(
        self, frames: Iterator[Frame], info: VideoInfo, source: VideoInfo, *, in_order: bool
    ) -> None:
        self._frames = frames
        self._in_order = in_order
        self._next: Frame | None = None
        self._is_begun = False
        ticks = info.time_base, source.time_base
        self.found = Comparison(max(ticks), Rhythm(float(ticks[0])))

    def take(self, time: Fraction, since: Fraction, until: Fraction) -> Frame | None:
        """Return the picture nearest to `time`, from `since` to before `until`, or None.

        All in seconds. Pictures before, and all but the nearest, are extra.
        """
        if self._in_order:
            return self._settled(time, self._pop())
        best: Frame | None = None
        while (frame := self._peek()) is not None and _time(frame) < until:
            self._pop()
            if _time(frame) < since:
                self.found.had_more(frame.time_s)
            elif best is None:
                best = frame
            else:
                near, far = sorted((best, frame), key=lambda f: abs(_time(f) - time))
                self.found.had_more(far.time_s)
                best = near
        return self._settled(time, best)

    def finish(self) -> None:
        """Count what is left when the input has ended."""
        while (frame := self._pop()) is not None:
            self.found.had_more(frame.time_s)

    def _settled(self, time: Fraction, frame: Frame | None) -> Frame | None:
        if frame is None:
            self.found.missed(float(time))
        else:
            self.found.met(time, time if self._in_order else _time(frame))
        return frame

    def _peek(self) -> Frame | None:
        if not self._is_begun:
            self._advance()
        return self._next

    def _pop(self) -> Frame | None:
        frame = self._peek()
        if frame is not None:
            self._advance()
        return frame

    def _advance(self) -> None:
        self._is_begun = True
        self._next = next(self._frames, None)
        if self._next is not None:
            self.found.rhythm.add(self._next.time_s)


def paired(
    source: Iterator[Frame], info: VideoInfo, rhythm: Rhythm, followers: list[Follower]
) -> Iterator[tuple[Frame, list[Frame | None]]]:
    """Yield every picture of the input with the followers' pictures for it.

    A picture reaches half of the way to its neighbours; the first and the last reach half of a
    nominal step outwards. `rhythm` hears the input's times.
    """
    outwards = 1 / info.frame_rate / 2
    reach = outwards
    frame = next(source, None)
    while frame is not None:
        following = next(source, None)
        time = _time(frame)
        rhythm.add(float(time))
        ahead = outwards if following is None else (_time(following) - time) / 2
        yield frame, [f.take(time, time - reach, time + ahead) for f in followers]
        frame, reach = following, ahead
    for follower in followers:
        follower.finish()


def _time(frame: Frame) -> Fraction:
    return frame.pts * frame.time_base
