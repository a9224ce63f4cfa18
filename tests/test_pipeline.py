"""Channels, workers and cancellation: nothing lost, nothing left running, nobody stuck."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vidmatte import pipeline as pipeline_module
from vidmatte.errors import CancelledError
from vidmatte.pipeline import (
    STEP_BACK,
    Channel,
    Crew,
    Latest,
    Outcome,
    Pipeline,
    Stop,
    supervise,
)

SOON_S = 1.0  # what "at once" may take on a busy machine
SHORT_GRACE_S = 0.3


def run(
    produce: Any,
    *stages: Any,
    consume: Any = lambda item: None,
    finish: Any = lambda: None,
    stop: Stop | None = None,
    tick: Any = lambda: None,
) -> Outcome:
    named = {f"stage{n}": stage for n, stage in enumerate(stages)}
    return Pipeline(produce, named, consume, finish).run(stop or Stop(), tick, tick_s=0.01)


def same(items: Iterator[Any]) -> Iterator[Any]:
    yield from items


def failing_at(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("source broke")


def look_ahead(items: Iterator[int]) -> Iterator[int]:
    """Hold two items back, and give them out before an error passes."""
    held: list[int] = []
    try:
        for item in items:
            held.append(item)
            if len(held) > 2:
                yield held.pop(0)
    except CancelledError:
        raise
    except Exception:
        yield from held
        raise
    yield from held


def test_items_arrive_in_order_through_several_stages() -> None:
    got: list[int] = []
    outcome = run(range(100), same, look_ahead, same, consume=got.append)
    assert got == list(range(100))
    assert outcome.error is None
    assert not outcome.stopped
    assert [s.items for s in outcome.stages] == [100] * 5


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_source_error_at_n_lets_n_items_through(count: int) -> None:
    got: list[int] = []
    outcome = run(failing_at(count), same, look_ahead, consume=got.append)
    assert got == list(range(count))
    assert isinstance(outcome.error, ValueError)
    assert not outcome.stopped


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_stage_error_at_n_lets_n_items_through(count: int) -> None:
    def broken(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item == count:
                raise ValueError("stage broke")
            yield item

    got: list[int] = []
    outcome = run(itertools.count(), broken, look_ahead, consume=got.append)
    assert got == list(range(count))
    assert str(outcome.error) == "stage broke"


def test_a_consumer_error_stops_everything_and_still_finishes() -> None:
    finished = []

    def consume(item: int) -> None:
        if item == 3:
            raise OSError("disk full")

    outcome = run(
        itertools.count(),
        same,
        consume=consume,
        finish=lambda: finished.append(threading.get_ident()),
    )
    assert isinstance(outcome.error, OSError)
    assert len(finished) == 1
    assert outcome.stages[-1].items == 3
    assert outcome.hanging == []


def test_an_error_while_finishing_is_reported() -> None:
    def finish() -> None:
        raise OSError("disk full")

    assert isinstance(run(range(3), same, finish=finish).error, OSError)


def test_an_error_while_finishing_after_a_stop_is_not_lost() -> None:
    stop = Stop()

    def finish() -> None:
        raise OSError("disk full")

    def tick() -> None:
        stop.request(signal.SIGINT)

    outcome = run(itertools.count(), same, finish=finish, stop=stop, tick=tick)
    assert outcome.stopped
    assert isinstance(outcome.error, OSError)


def test_the_first_error_wins() -> None:
    def consume(item: int) -> None:
        raise OSError("first")

    def finish() -> None:
        raise OSError("second")

    assert str(run(range(3), same, consume=consume, finish=finish).error) == "first"


def test_a_consumer_error_does_not_wait_for_a_blocked_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader of a pipe leaves while the writer of another stalls."""
    monkeypatch.setattr(pipeline_module, "GRACE_S", SHORT_GRACE_S)
    release = threading.Event()

    def stalled() -> Iterator[int]:
        yield 0
        release.wait(20)

    def consume(item: int) -> None:
        raise OSError("the reader has gone")

    began = time.monotonic()
    outcome = run(stalled(), same, consume=consume)
    took = time.monotonic() - began
    release.set()
    assert isinstance(outcome.error, OSError)
    assert outcome.hanging == ["vidmatte-decode"]
    assert not outcome.stopped
    assert took < SHORT_GRACE_S + SOON_S


def test_a_stop_ends_an_endless_source_and_finishes() -> None:
    stop = Stop()
    finished: list[bool] = []

    def tick() -> None:
        stop.request(signal.SIGTERM)

    began = time.monotonic()
    outcome = run(
        itertools.count(), same, same, finish=lambda: finished.append(True), stop=stop, tick=tick
    )
    assert time.monotonic() - began < SOON_S
    assert (outcome.stopped, outcome.error, outcome.hanging) == (True, None, [])
    assert finished == [True]
    assert stop.reason == signal.SIGTERM


def test_a_stop_names_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "GRACE_S", SHORT_GRACE_S)
    stop, release = Stop(), threading.Event()

    def stalled(items: Iterator[int]) -> Iterator[int]:
        stop.request(signal.SIGINT)
        release.wait(20)
        yield from items

    outcome = run(itertools.count(), stalled, stop=stop)
    release.set()
    assert outcome.hanging == ["vidmatte-stage0"]
    assert outcome.stopped


def test_an_exception_in_tick_stops_the_workers_and_passes() -> None:
    def tick() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(itertools.count(), same, tick=tick)


def test_a_stopped_stage_is_closed_on_its_own_thread() -> None:
    """What a stage holds (a network on a device) is freed by the thread that uses it."""
    stop = Stop()
    closed: list[str] = []

    def holding(items: Iterator[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            closed.append(threading.current_thread().name)

    outcome = run(itertools.count(), holding, stop=stop, tick=lambda: stop.request(2))
    assert closed == ["vidmatte-stage0"]
    assert outcome.hanging == []


def test_memory_is_bounded_by_the_depth_of_the_channels() -> None:
    made, gate = [], threading.Event()

    def produce() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    def consume(item: int) -> None:
        gate.wait(0.005)
        assert len(made) - item <= 2 * pipeline_module.CHANNEL_DEPTH + 4

    assert run(produce(), same, consume=consume).error is None


def test_a_channel_is_bounded_in_bytes_but_passes_one_large_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline_module, "CHANNEL_BYTES", 10)
    channel: Channel[int] = Channel(size_of=lambda item: item)
    channel.put(100)
    waiting = threading.Thread(target=channel.put, args=(1,), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert channel.get() is not None
    waiting.join(SOON_S)
    assert not waiting.is_alive()


def test_a_channel_gives_its_error_after_its_items() -> None:
    channel: Channel[int] = Channel()
    channel.put(1)
    channel.end(ValueError("late"))
    assert channel.get() is not None
    for _ in range(2):
        with pytest.raises(ValueError, match="late"):
            channel.get()


def test_a_cancelled_channel_refuses_at_once_now_and_later() -> None:
    channel: Channel[int] = Channel(depth=1)
    channel.put(1)
    threading.Timer(0.05, channel.cancel).start()
    with pytest.raises(CancelledError):
        channel.put(2)
    for call in (channel.get, lambda: channel.put(3)):
        with pytest.raises(CancelledError):
            call()


def test_stop_keeps_its_first_reason_and_wakes_a_waiter() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.request, (signal.SIGINT,)).start()
    began = time.monotonic()
    assert stop.wait(lambda: False, 20) is False
    assert time.monotonic() - began < SOON_S
    stop.request(signal.SIGTERM)
    assert stop.reason == signal.SIGINT


def test_supervise_returns_raises_and_is_left_by_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervise(lambda: 42, Stop()) == 42

    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        supervise(broken, Stop())
    monkeypatch.setattr(pipeline_module, "OPEN_GRACE_S", SHORT_GRACE_S)
    stop, release = Stop(), threading.Event()
    threading.Timer(0.05, stop.request, (signal.SIGINT,)).start()
    with pytest.raises(CancelledError):
        supervise(lambda: release.wait(20), stop)
    release.set()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_other_stages_step_back_behind_the_one_that_sets_the_pace() -> None:
    nice: dict[str, int] = {}

    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def produce() -> Iterator[int]:
        nice["decode"] = own()
        yield 1

    def stage(name: str) -> Callable[[Iterator[int]], Iterator[int]]:
        def work(items: Iterator[int]) -> Iterator[int]:
            nice[name] = own()
            yield from items

        return work

    stages = {"infer": stage("infer"), "render": stage("render")}
    pipeline = Pipeline(
        produce(), stages, lambda item: nice.update(encode=own()), lambda: None, pace="infer"
    )
    pipeline.run(Stop(), lambda: None)
    before = own()
    assert nice == {
        "decode": before + STEP_BACK,
        "infer": before,
        "render": before + STEP_BACK,
        "encode": before + STEP_BACK,
    }


def test_latest_keeps_the_newest_and_gives_back_what_it_drops() -> None:
    slot: Latest[int] = Latest()
    assert slot.get(0.0) is None
    assert slot.put(1) is None
    assert slot.put(2) == 1
    assert slot.get() == 2
    assert slot.get(0.01) is None


def test_latest_wakes_a_waiter_and_loses_nothing_unnoticed() -> None:
    slot: Latest[int] = Latest()
    got: list[int] = []
    dropped: list[int] = []
    finished = threading.Event()

    def take() -> None:
        while (item := slot.get()) != -1:
            assert item is not None
            got.append(item)
        finished.set()

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    for item in range(2000):
        if (old := slot.put(item)) is not None:
            dropped.append(old)
    if (old := slot.put(-1)) is not None:
        dropped.append(old)
    assert finished.wait(SOON_S)
    assert sorted(got + dropped) == list(range(2000))
    assert got == sorted(got)
    taker.join(SOON_S)


def test_a_cancelled_latest_ends_its_waiter_and_gives_back_what_lay_there() -> None:
    slot: Latest[int] = Latest()
    threading.Timer(0.05, slot.cancel).start()
    with pytest.raises(CancelledError):
        slot.get()
    with pytest.raises(CancelledError):
        slot.get(0.0)
    assert slot.put(7) == 7  # nobody will take it: the caller counts it
    other: Latest[int] = Latest()
    other.put(3)
    assert other.cancel() == 3
    assert other.cancel() is None


def test_a_crew_keeps_the_errors_of_its_works_and_names_who_hangs() -> None:
    crew, gate = Crew(), threading.Event()

    def fail() -> None:
        raise ValueError("broke")

    def cancelled() -> None:
        raise CancelledError("cancelled")

    crew.check()
    crew.start("good", lambda: None)
    crew.start("told", cancelled)
    assert crew.join(SOON_S) == []
    crew.check()
    crew.start("bad", fail)
    crew.start("slow", gate.wait)
    assert crew.join(SHORT_GRACE_S) == ["vidmatte-slow"]
    with pytest.raises(ValueError, match="broke"):
        crew.check()
    gate.set()
    assert crew.join(SOON_S) == []
