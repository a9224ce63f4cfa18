"""What became of every picture: exact counts, rates and latencies, under one lock."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from vidmatte.live.contracts import Counts
from vidmatte.pipeline import Latest

T = TypeVar("T")

LATENCIES = 600  # of the last new pictures, that percentiles are taken from
RATE_S = 2.0  # over which rates are counted
MAX_RATE = 1000  # times kept for it, per second


@dataclass(slots=True)
class _Rate:
    """Events per second over the last RATE_S."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=int(RATE_S * MAX_RATE)))

    def count(self, now_s: float) -> None:
        self.times.append(now_s)
        while self.times[0] < now_s - RATE_S:
            self.times.popleft()

    def per_second(self, now_s: float) -> float:
        recent = sum(time_s >= now_s - RATE_S for time_s in self.times)
        return recent / RATE_S


class Ledger:
    """Counts pictures where they change hands, so that none is ever counted twice or not at all.

    A picture is in flight from capture until it is shown or dropped. Putting one into a slot and
    counting the one that it replaced is one step under the lock. Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = self._shown = self._dropped = self._in_flight = 0
        self._repeated = self._closed = 0
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)
        self._in, self._out = _Rate(), _Rate()

    def capture(self, slot: Latest[T], item: T, now_s: float) -> None:
        """Count a new picture and leave it for the computing thread."""
        with self._lock:
            self._captured += 1
            self._in_flight += 1
            self._in.count(now_s)
            self._drop_if(slot.put(item) is not None)

    def pass_over(self, now_s: float) -> None:
        """Count a new picture that nobody wants."""
        with self._lock:
            self._captured += 1
            self._dropped += 1
            self._in.count(now_s)

    def hand_over(self, slot: Latest[T], item: T) -> None:
        """Leave a finished picture for the sending thread."""
        with self._lock:
            self._drop_if(slot.put(item) is not None)

    def drop(self) -> None:
        """Count a picture in flight that is given up."""
        with self._lock:
            self._drop_if(True)

    def empty(self, slot: Latest[T]) -> None:
        """Cancel a slot and count what lay there."""
        with self._lock:
            self._drop_if(slot.cancel() is not None)

    def _drop_if(self, dropped: bool) -> None:
        self._dropped += dropped
        self._in_flight -= dropped

    def show(self, capture_s: float, now_s: float) -> None:
        """Count a picture that is being sent for the first time."""
        with self._lock:
            self._shown += 1
            self._in_flight -= 1
            self._latencies_s.append(now_s - capture_s)
            self._out.count(now_s)

    def take_back(self) -> None:
        """Count the picture shown last as dropped: it could not be sent."""
        with self._lock:
            self._shown -= 1
            self._dropped += 1

    def repeat(self, now_s: float) -> None:
        """Count a picture that is sent again."""
        with self._lock:
            self._repeated += 1
            self._out.count(now_s)

    def close(self, now_s: float) -> None:
        """Count a background sent alone."""
        with self._lock:
            self._closed += 1
            self._out.count(now_s)

    @property
    def counts(self) -> Counts:
        """The counts at one moment."""
        with self._lock:
            return Counts(
                captured=self._captured,
                shown=self._shown,
                dropped=self._dropped,
                in_flight=self._in_flight,
                repeated=self._repeated,
                closed=self._closed,
            )

    def rates(self, now_s: float) -> tuple[float, float]:
        """Return pictures per second in and out, over the last RATE_S."""
        with self._lock:
            return self._in.per_second(now_s), self._out.per_second(now_s)

    def latency_ms(self) -> tuple[float, float]:
        """Return the median and the 95th percentile from capture to send; 0 before the first."""
        with self._lock:
            ordered = sorted(self._latencies_s)
        return 1000 * percentile(ordered, 0.5), 1000 * percentile(ordered, 0.95)


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` of ascending values lie; 0 of none."""
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0.0
