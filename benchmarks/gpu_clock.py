"""Time work on a device, by CUDA events or the clock where there is no GPU; keep to a deadline."""

from __future__ import annotations

import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

Work = Callable[[int], object]


class OutOfTimeError(BaseException):
    """A part ran past its time and was cut off; no error, and not to be caught as one."""


class Clock:
    """Times work on one device.

    `seconds` is about how long one measurement may take, `most` the most repetitions.
    """

    def __init__(self, device: torch.device, *, seconds: float = 0.4, most: int = 200) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._seconds, self._most = seconds, most

    def wait(self) -> None:
        """Wait until the device has done all it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def measure(self, work: Work, *, warm_up: int = 3) -> dict[str, float]:
        """Return the median and 95th percentile of `work(i)` in ms, and the spread of the median.

        `i` counts repetitions, so that work can rotate its inputs past the caches. On CUDA each
        repetition lies between two events on the current stream: a gap in which the device waits
        for the host counts. `spread` is how far the medians of the odd and even repetitions lie
        apart, of the median: a smaller difference between two variants is noise.
        """
        for i in range(warm_up):
            work(i)
        self.wait()
        start = time.perf_counter()
        work(warm_up)
        self.wait()
        once_s = time.perf_counter() - start
        repeat = min(self._most, max(4, int(self._seconds / max(once_s, 1e-6))))
        times = self._events(work, repeat) if self.is_cuda else _wall(work, repeat)
        median = statistics.median(times)
        halves = abs(statistics.median(times[::2]) - statistics.median(times[1::2]))
        return {
            "ms": median,
            "p95_ms": sorted(times)[int(0.95 * (repeat - 1))],
            "spread": halves / median if median else 0.0,
            "repeat": repeat,
        }

    def _events(self, work: Work, repeat: int) -> list[float]:
        pairs = []
        for i in range(repeat):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work(i)
            end.record()
            pairs.append((start, end))
        self.wait()
        return [start.elapsed_time(end) for start, end in pairs]

    def host_ms(self, work: Work, repeat: int) -> list[float]:
        """Return the ms of each of `repeat` calls by the host's clock, each waited for."""
        times = []
        for i in range(repeat):
            start = time.perf_counter()
            work(i)
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
        return times


def _wall(work: Work, repeat: int) -> list[float]:
    times = []
    for i in range(repeat):
        start = time.perf_counter()
        work(i)
        times.append(1000 * (time.perf_counter() - start))
    return times


class Deadline:
    """Says whether there is time for another measurement; notes what is left out and what fails."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    def allows(self, what: str, *, needs_s: float = 0.0) -> bool:
        """Whether `needs_s` more are left; `what` is noted as left out otherwise."""
        if self.left_s > needs_s:
            return True
        self.left_out.append(what)
        return False

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Note an error in the block as that of `what`, and go on: other numbers are worth having.

        What was taken from the device is given back, since it may have been too much.
        """
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - see above
            traceback.print_exc()
            self.failed[what] = f"{type(exc).__name__}: {str(exc)[:500]}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def cut_off(self, *, grace_s: float) -> Iterator[None]:
        """Raise OutOfTimeError in the block `grace_s` after the end; main thread only."""

        def ring(signum: int, frame: FrameType | None) -> None:
            raise OutOfTimeError("cut off: it ran past its time")

        before = signal.signal(signal.SIGALRM, ring)
        timer = signal.setitimer(signal.ITIMER_REAL, max(0.1, self.left_s + grace_s))
        try:
            yield
        finally:
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *timer)
