"""Channels, workers, cancellation and statistics; the only file that starts threads."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from vidmatte.errors import CancelledError

T = TypeVar("T")

CHANNEL_DEPTH = 4
CHANNEL_BYTES = 256 << 20  # four 8K pictures of 8 bits; at least one item always passes
STEP_BACK = 3  # of nice: half of the weight (measured: benchmarks/NOTES.md, Threads)
GRACE_S = 4.0  # what a worker gets to end after a stop; beyond it, it hangs in C code
OPEN_GRACE_S = 1.0  # the same while files are opened, when there is nothing to finish


@dataclass(slots=True)
class StageTimes:
    """What one worker did: seconds at work, seconds waiting for its neighbours, items passed."""

    name: str
    busy_s: float = 0.0
    waiting_s: float = 0.0
    items: int = 0


class Channel(Generic[T]):
    """A bounded queue between two workers that waits on a condition and can be cancelled.

    Bounded in items and bytes. `put` and `get` raise CancelledError at once when cancelled.
    An error put in with `end(error)` is raised by `get` after the items before it.
    """

    def __init__(
        self, depth: int = CHANNEL_DEPTH, *, size_of: Callable[[T], int] = lambda item: 0
    ) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._depth = depth
        self._size_of = size_of
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = False
        self._cancelled = False
        self._error: BaseException | None = None

    def put(self, item: T) -> float:
        """Append `item`, waiting while full; return the seconds waited."""
        size = self._size_of(item)
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._fits(size))
            if self._cancelled:
                raise CancelledError("cancelled")
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()
        return time.perf_counter() - start

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._depth and self._bytes + size <= CHANNEL_BYTES

    def get(self) -> tuple[T, float] | None:
        """Take the oldest item and the seconds waited for it, or None at the end.

        Raises the error the channel was ended with, after the last item, and CancelledError.
        """
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._items or self._ended)
            if self._cancelled:
                raise CancelledError("cancelled")
            if self._items:
                item, size = self._items.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return item, time.perf_counter() - start
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, because all is done or because of `error`."""
        with self._changed:
            self._ended = True
            self._error = error
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop what waits and end every `put` and `get`, now and later."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()


class Stop:
    """A request to stop, made by a signal handler or another thread.

    `request` may be called from a signal handler: it only sets a flag under a reentrant lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self.reason: int | None = None

    def request(self, reason: int) -> None:
        """Ask to stop; `reason` (a signal number) is kept for the exit code."""
        with self._changed:
            if self.reason is None:
                self.reason = reason
            self._changed.notify_all()

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self.reason is not None

    def wake(self) -> None:
        """Make `wait` look again."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `until()`, a request, or the time-out; return `until()`."""
        with self._changed:
            self._changed.wait_for(lambda: until() or self.requested, timeout_s)
        return until()


@dataclass(slots=True)
class Outcome:
    """How a pipeline ended: its stages' times, its first error, and whether a worker hangs."""

    stages: list[StageTimes]
    elapsed_s: float = 0.0
    error: BaseException | None = None
    stopped: bool = False
    hanging: list[str] = field(default_factory=list)


class Pipeline:
    """A chain of workers: `produce` → one or more `stages` → `consume`, linked by channels.

    A stage gets an iterator over what comes before it and yields results; the iterator raises an
    earlier error after the good items, and what the stage still yields after catching it passes
    on: an error at item N lets exactly N items through. `finish` runs on the consuming thread at
    the end in any case (close a file there: it may block in C code). `size_of` gives an item's
    bytes. `pace` names the stage that the others wait for: they step back behind it.
    """

    def __init__(
        self,
        produce: Iterable[Any],
        stages: Mapping[str, Callable[[Iterator[Any]], Iterator[Any]]],
        consume: Callable[[Any], None],
        finish: Callable[[], None],
        *,
        size_of: Callable[[Any], int] = lambda item: 0,
        pace: str | None = None,
    ) -> None:
        self._pace = pace
        self._produce, self._consume, self._finish = produce, consume, finish
        self._channels: list[Channel[Any]] = [
            Channel(size_of=size_of) for _ in range(len(stages) + 1)
        ]
        names = ("decode", *stages, "encode")
        self.stages = [StageTimes(name) for name in names]
        self._works: list[Callable[[], None]] = [self._produce_all]
        for index, stage in enumerate(stages.values()):
            self._works.append(partial(self._transform_all, stage, index))
        self._works.append(self._consume_all)
        self._error: BaseException | None = None
        self._finish_error: BaseException | None = None
        self._consumed = False
        self._threads: list[threading.Thread] = []
        self._start = time.perf_counter()

    @property
    def done(self) -> int:
        """Items consumed so far."""
        return self.stages[-1].items

    @property
    def elapsed_s(self) -> float:
        """Seconds since `run` began."""
        return time.perf_counter() - self._start

    @property
    def hanging(self) -> list[str]:
        """Names of the workers that have not ended."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def run(self, stop: Stop, tick: Callable[[], None], *, tick_s: float = 0.25) -> Outcome:
        """Run to the end, an error or a stop; report a worker's error, never raise it.

        `tick` is called on this thread about every `tick_s` seconds. What `tick` raises (and a
        KeyboardInterrupt where no handler is installed) stops the workers and passes through.
        """
        self._start = time.perf_counter()
        try:
            for work, times in zip(self._works, self.stages, strict=True):
                self._threads.append(self._launch(work, times.name, stop))
            self._works.clear()  # a circle: with it, what the run used would outlive it
            while not stop.wait(self._is_consumed, tick_s) and not stop.requested:
                tick()
        finally:
            stopped = not self._consumed
            self._cancel()
            deadline = time.monotonic() + GRACE_S
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        errors = (self._error, self._finish_error)
        error = next((e for e in errors if e and not isinstance(e, CancelledError)), None)
        return Outcome(
            self.stages,
            elapsed_s=self.elapsed_s,
            error=error,
            stopped=stopped,
            hanging=self.hanging,
        )

    def _launch(self, work: Callable[[], None], name: str, stop: Stop) -> threading.Thread:
        def worker() -> None:
            if self._pace not in (None, name):
                _step_back()
            work()
            stop.wake()

        thread = threading.Thread(target=worker, name=f"vidmatte-{name}", daemon=True)
        thread.start()
        return thread

    def _is_consumed(self) -> bool:
        """Whether the last worker has ended; one before it may hang in C code by then."""
        return self._consumed

    def _cancel(self) -> None:
        for channel in self._channels:
            channel.cancel()

    def _produce_all(self) -> None:
        self._pump(iter(self._produce), self._channels[0], self.stages[0])

    def _transform_all(self, stage: Callable[[Iterator[Any]], Iterator[Any]], index: int) -> None:
        times = self.stages[index + 1]
        incoming = self._channels[index]
        self._pump(stage(_receive(incoming, times)), self._channels[index + 1], times)
        incoming.cancel()  # whoever still fills it need not go on

    @staticmethod
    def _pump(items: Iterator[Any], channel: Channel[Any], times: StageTimes) -> None:
        """Move items into a channel, then end it, with the error that ended the items if any.

        A generator is closed here, on the thread that used it.
        """
        try:
            while True:
                mark, waited = time.perf_counter(), times.waiting_s
                item = next(items, _END)
                times.busy_s += time.perf_counter() - mark - (times.waiting_s - waited)
                if item is _END:
                    break
                times.waiting_s += channel.put(item)
                times.items += 1
                del item
            channel.end()
        except BaseException as error:  # noqa: BLE001 - travels behind the good items
            try:
                if isinstance(items, Generator):
                    items.close()
            finally:
                channel.end(error)

    def _consume_all(self) -> None:
        times = self.stages[-1]
        try:
            for item in _receive(self._channels[-1], times):
                mark = time.perf_counter()
                self._consume(item)
                times.busy_s += time.perf_counter() - mark
                times.items += 1
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by run()
            self._error = error
        self._cancel()
        mark = time.perf_counter()
        try:
            self._finish()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by run()
            self._finish_error = error
        times.busy_s += time.perf_counter() - mark
        self._consumed = True


class Latest(Generic[T]):
    """A slot for one item between two threads: a new item takes the place of one not yet taken.

    `get` raises CancelledError once cancelled, now and later; `put` never waits.
    """

    def __init__(self) -> None:
        self._items: list[T] = []
        self._changed = threading.Condition()
        self._cancelled = False

    def put(self, item: T) -> T | None:
        """Leave `item`; return the one that it replaced, or `item` itself when cancelled."""
        with self._changed:
            if self._cancelled:
                return item
            dropped = self._items.pop() if self._items else None
            self._items.append(item)
            self._changed.notify()
        return dropped

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the item, waiting for one; None when none comes within `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._items, timeout_s)
            if self._cancelled:
                raise CancelledError("cancelled")
            return self._items.pop() if self._items else None

    def cancel(self) -> T | None:
        """End every `get`, now and later; return the item that still lay there."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            return self._items.pop() if self._items else None


class Crew:
    """Threads without an order among them, for work that goes on until it is told to end.

    `start` may be called by any thread. The owner tells the works to end (cancels what they
    wait on) before `join`.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._changing = threading.Lock()
        self.errors: list[BaseException] = []

    def start(self, name: str, work: Callable[[], None], *, behind: bool = False) -> None:
        """Run `work` on a daemon thread "vidmatte-NAME"; `behind`: at a lower priority (Linux).

        What it raises is kept for `check`, but for CancelledError, which is how it ends.
        """

        def worker() -> None:
            if behind:
                _step_back()
            try:
                work()
            except CancelledError:
                pass
            except BaseException as error:  # noqa: BLE001 - raised by check() on the owner's thread
                self.errors.append(error)

        thread = threading.Thread(target=worker, name=f"vidmatte-{name}", daemon=True)
        with self._changing:
            thread.start()
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]

    def check(self) -> None:
        """Raise the first error of a work, with its own traceback."""
        if self.errors:
            raise self.errors[0]

    def join(self, grace_s: float = GRACE_S) -> list[str]:
        """Wait up to `grace_s` seconds in all; return the names of those that hang."""
        deadline = time.monotonic() + grace_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]


def _step_back() -> None:
    """Lower the priority of this thread and of those it starts (Linux only; elsewhere nothing)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            priority = os.getpriority(os.PRIO_PROCESS, thread) + STEP_BACK
            os.setpriority(os.PRIO_PROCESS, thread, priority)


_END = object()


def _receive(channel: Channel[T], times: StageTimes) -> Iterator[T]:
    while (taken := channel.get()) is not None:
        item, waited = taken
        times.waiting_s += waited
        yield item
        del item, taken  # the generator must not keep a picture alive while it waits


def supervise(work: Callable[[], T], stop: Stop) -> T:
    """Run `work` on a daemon thread while this thread stays free for signals.

    Returns its result or raises its error. Raises CancelledError when asked to stop, and then
    leaves the thread to itself if it does not end within the grace time (it hangs in C code).
    """
    if stop.requested:
        raise CancelledError("stopped")
    result: list[T] = []
    error: list[BaseException] = []

    def worker() -> None:
        _step_back()  # inherited by the threads of decoders and encoders opened here
        try:
            result.append(work())
        except BaseException as exc:  # noqa: BLE001 - raised again below, on the caller's thread
            error.append(exc)
        stop.wake()

    thread = threading.Thread(target=worker, name="vidmatte-open", daemon=True)
    thread.start()
    while not stop.wait(lambda: bool(result or error), 60.0) and not stop.requested:
        pass
    if stop.requested:
        thread.join(OPEN_GRACE_S)
        raise CancelledError("stopped")
    thread.join()
    if error:
        raise error[0]
    return result[0]
