"""When pictures leave: the camera's rhythm, found again from its jitter; pure, no clock is read.

All times are seconds of one clock and come as arguments.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from statistics import fmean, median

RELOCK_INTERVALS = 24  # that tell whether the camera's rate has changed
FIRST_INTERVALS = 8  # that are enough where nothing is known yet
RELOCK_SHARE = 0.1  # of the period: beyond it the intervals are believed, below it the loop
BURST_SHARE = 0.25  # that median and mean of intervals differ by where pictures come in bursts
PHASE_GAIN, PERIOD_GAIN = 0.1, 0.004  # of the error per picture; damped, settles in a second
LATENESS_S = 6.0  # that the delay is chosen from: it is not to follow every spike
LATENESS_SHARE = 0.98  # of the usual ones are ready before their tick
USUAL_SHARE = 0.85  # of a period that usual ones spread over; a tick amid them would split them
EARLY_SHARE = 0.05  # of all are earlier than where that spread is counted from
MARGIN_S = 0.001  # between the latest of those and the tick
SLEW_SHARE = 0.01  # of a period that one tick may move: not seen, and 50 ticks turn a half
MAX_PERIOD_S = 1.0
MIN_PERIOD_S = 1 / 240
SLEEP_S = 1.0  # a jump of the wall clock against ours that means the machine was suspended


class CameraClock:
    """The camera's period and phase from capture times: a second-order phase-locked loop.

    Pictures that never came only leave a gap. A lasting change of rate is noticed within
    RELOCK_INTERVALS pictures.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._needed = FIRST_INTERVALS
        self.phase_s: float | None = None  # where the newest picture ought to have been
        self._last_s: float | None = None
        self._intervals: deque[float] = deque(maxlen=RELOCK_INTERVALS)

    def observe(self, capture_s: float) -> None:
        """Learn from a picture; times that do not advance are passed over."""
        if self._last_s is not None:
            if capture_s <= self._last_s:
                return
            self._intervals.append(capture_s - self._last_s)
        self._last_s = capture_s
        if self.phase_s is None or self._has_changed() or capture_s - self.phase_s > SLEEP_S:
            self.phase_s = capture_s
            return
        steps = max(1, round((capture_s - self.phase_s) / self.period_s))
        expected_s = self.phase_s + steps * self.period_s
        error_s = capture_s - expected_s
        self.phase_s = expected_s + PHASE_GAIN * error_s
        self.period_s = _bounded(self.period_s + PERIOD_GAIN * error_s / steps)

    def _has_changed(self) -> bool:
        """Take over the interval of the last pictures where it contradicts the period.

        The median leaves out pictures that never came; in bursts only the mean is right.
        """
        if len(self._intervals) < self._needed or self._is_near(median(self._intervals)):
            return False
        typical_s, mean_s = median(self._intervals), fmean(self._intervals)
        if abs(typical_s - mean_s) > BURST_SHARE * mean_s:
            typical_s = mean_s
        if self._is_near(typical_s):
            return False
        self.period_s = _bounded(typical_s)
        self._needed = RELOCK_INTERVALS
        self._intervals.clear()
        return True

    def _is_near(self, interval_s: float) -> bool:
        return abs(_bounded(interval_s) - self.period_s) <= RELOCK_SHARE * self.period_s

    def lateness(self, capture_s: float, ready_s: float) -> float:
        """Return how long after its place in the rhythm a picture was ready, in seconds."""
        if self.phase_s is None:
            return ready_s - capture_s
        steps = round((capture_s - self.phase_s) / self.period_s)
        return ready_s - (self.phase_s + steps * self.period_s)


def _bounded(period_s: float) -> float:
    return min(max(period_s, MIN_PERIOD_S), MAX_PERIOD_S)


class Pacer:
    """Ticks in the camera's rhythm, each just after the time at which a picture tends to be ready.

    A tick follows the last by a period, moved by at most SLEW_SHARE of it towards its place. Any
    thread may call.
    """

    def __init__(self, period_s: float) -> None:
        self._clock = CameraClock(_bounded(period_s))
        self._lateness: deque[tuple[float, float]] = deque()  # when, how late; both in seconds
        self._tick_s: float | None = None
        self._lock = threading.Lock()

    @property
    def period_s(self) -> float:
        """Seconds between ticks."""
        return self._clock.period_s

    def expect(self, period_s: float) -> None:
        """Begin anew with a camera that says it gives a picture every `period_s` seconds."""
        with self._lock:
            self._clock = CameraClock(_bounded(period_s))
            self._lateness.clear()

    def captured(self, capture_s: float) -> None:
        """Hear of a picture that will be worked on."""
        with self._lock:
            self._clock.observe(capture_s)

    def ready(self, capture_s: float, ready_s: float) -> None:
        """Hear that the picture of `capture_s` could be sent at `ready_s`."""
        with self._lock:
            self._lateness.append((ready_s, self._clock.lateness(capture_s, ready_s)))
            while self._lateness[0][0] < ready_s - LATENESS_S:
                self._lateness.popleft()

    def next_tick(self, now_s: float) -> float:
        """Return when the next picture is to leave, never before `now_s`.

        Ticks that were missed are left out; the rhythm stays.
        """
        with self._lock:
            period_s = self._clock.period_s
            tick_s = now_s if self._tick_s is None else self._tick_s + period_s
            if tick_s < now_s - period_s:
                tick_s += period_s * ((now_s - tick_s) // period_s)
            limit_s = SLEW_SHARE * period_s
            tick_s += min(max(self._misplaced(tick_s), -limit_s), limit_s)
            self._tick_s = tick_s
            return max(tick_s, now_s)

    def _misplaced(self, tick_s: float) -> float:
        """Return the shortest way from a tick to its place in the rhythm."""
        if self._clock.phase_s is None or not self._lateness:
            return 0.0
        period_s = self._clock.period_s
        delay_s = self._usual_lateness(period_s) + MARGIN_S
        way_s = (self._clock.phase_s + delay_s - tick_s) % period_s
        return way_s if way_s <= period_s / 2 else way_s - period_s

    def _usual_lateness(self, period_s: float) -> float:
        """Return the lateness that few pictures exceed, but for those no tick could wait for."""
        ordered = sorted(late_s for _, late_s in self._lateness)
        early_s = ordered[int(EARLY_SHARE * (len(ordered) - 1))]
        usual = bisect_right(ordered, early_s + USUAL_SHARE * period_s)
        return ordered[int(LATENESS_SHARE * (usual - 1))]


class Thinner:
    """Chooses every n-th picture of a camera that is faster than wanted, in an even cadence."""

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=RELOCK_INTERVALS)
        self._last_s: float | None = None
        self._every = 1
        self._count = 0

    def accept(self, capture_s: float, wanted_s: float | None, share: float = 1.0) -> bool:
        """Tell whether to use this picture.

        One per `wanted_s` seconds is enough (None: all), and of those a `share`.
        """
        if self._last_s is not None and capture_s > self._last_s:
            self._intervals.append(capture_s - self._last_s)
        self._last_s = capture_s
        self._choose(wanted_s, share)
        self._count += 1
        if self._count < self._every:
            return False
        self._count = 0
        return True

    def _choose(self, wanted_s: float | None, share: float) -> None:
        ratio = 1.0
        if wanted_s is not None and len(self._intervals) >= FIRST_INTERVALS:
            ratio = max(1.0, wanted_s / max(fmean(self._intervals), MIN_PERIOD_S))
        if abs(ratio / share - self._every) > 0.6:  # of a step: not back and forth at a half
            self._every = max(1, round(ratio / share))


class SleepWatch:
    """Notices that the machine was suspended: the wall clock has run on, ours may have stood."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def has_slept(self, now_s: float, wall_s: float) -> bool:
        """Compare with the last call; a long gap between calls counts too."""
        last, self._last = self._last, (now_s, wall_s)
        if last is None:
            return False
        return now_s - last[0] > SLEEP_S or wall_s - last[1] > SLEEP_S


class Patience:
    """How long to wait for what is gone, and when to try again: sooner first, then every 2 s."""

    FIRST_S, LONGEST_S = 0.1, 2.0

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since_s: float | None = None
        self._pause_s = self.FIRST_S

    @property
    def is_waiting(self) -> bool:
        """Whether something is missing."""
        return self._since_s is not None

    def failed(self, now_s: float) -> float | None:
        """Hear of a failure; return the seconds until the next try, None when it is enough."""
        if self._since_s is None:
            self._since_s = now_s
        left_s = self._since_s + self._timeout_s - now_s
        if left_s <= 0:
            return None
        pause_s = min(self._pause_s, left_s)
        self._pause_s = min(2 * self._pause_s, self.LONGEST_S)
        return pause_s

    def succeeded(self) -> None:
        """Hear that it is back."""
        self._since_s = None
        self._pause_s = self.FIRST_S
