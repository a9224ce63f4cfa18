"""Pacing, by simulation with a clock that costs nothing: rhythm, latency, drift, ages."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidmatte.live.pacing import CameraClock, Pacer, Patience, SleepWatch, Thinner
from vidmatte.live.shutter import INTERVALS, STALE_S, Ready, Shutter

SETTLED_S = 6.0  # from here on a simulated session is judged
RUN_S = 120.0  # long enough to tell drift from jitter
JITTER_S = 0.004  # what the issue allows sending, at the 95th percentile


@dataclass
class Outcome:
    """What a simulated session sent: times of ticks, and (tick, capture, work) of new pictures."""

    ticks: list[float] = field(default_factory=list)
    new: list[tuple[float, float, float]] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    captured: int = 0

    def after(self, time_s: float) -> Outcome:
        return Outcome(
            [t for t in self.ticks if t > time_s],
            [n for n in self.new if n[0] > time_s],
            [t for t in self.repeats if t > time_s],
            [t for t in self.closed if t > time_s],
        )

    @property
    def ages(self) -> list[float]:
        return [tick - capture for tick, capture, _ in self.new]

    def jitter(self) -> float:
        """The 95th percentile of what intervals of sending differ from their median by."""
        intervals = np.diff(self.ticks)
        return float(np.percentile(np.abs(intervals - np.median(intervals)), 95))

    def drift(self) -> float:
        """Seconds of latency gained per second."""
        times, ages = [n[0] for n in self.new], self.ages
        return float(np.polyfit(times, ages, 1)[0])


def simulate(
    captures: list[float],
    work: Callable[[float], float],
    *,
    nominal_s: float = 1 / 30,
    wanted_s: float | None = None,
    wake_s: Callable[[], float] = lambda: 0.0,
) -> Outcome:
    """Run camera, one computing thread and sender over capture times, event by event."""
    pacer, shutter, thinner = Pacer(nominal_s), Shutter(), Thinner()
    outcome = Outcome(captured=len(captures))
    events: list[tuple[float, int, str, Any]] = [
        (time_s, n, "capture", None) for n, time_s in enumerate(captures)
    ]
    heapq.heapify(events)
    count = len(captures)
    waiting: float | None = None
    busy = False
    ready: Ready | None = None
    heapq.heappush(events, (pacer.next_tick(0.0), count, "tick", None))
    while events:
        now_s, _, kind, item = heapq.heappop(events)
        count += 1
        if now_s > captures[-1]:
            break
        if kind == "capture":
            if thinner.accept(now_s, wanted_s):
                pacer.captured(now_s)
                waiting = now_s
        elif kind == "done":
            busy, ready = False, item
            pacer.ready(item.capture_s, now_s)
        else:
            verdict, chosen = shutter.decide(
                ready, now_s, mode="matte", bare=False, period_s=pacer.period_s
            )
            outcome.ticks.append(now_s)
            if verdict == "new":
                assert chosen is not None
                work_s = chosen.ready_s - chosen.taken_s
                outcome.new.append((now_s, chosen.capture_s, work_s))
            (outcome.repeats if verdict == "again" else outcome.closed).append(now_s)
            if verdict == "new":
                outcome.closed.pop()
            ready = None
            heapq.heappush(events, (pacer.next_tick(now_s) + wake_s(), count, "tick", None))
        if waiting is not None and not busy:
            busy, end_s = True, now_s + work(now_s)
            done = Ready(cast("Any", None), waiting, now_s, end_s, bare=False)
            heapq.heappush(events, (end_s, count, "done", done))
            waiting = None
    return outcome


def captures_of(
    fps: float, seconds: float, *, jitter_s: float = 0.0, start_s: float = 0.013, seed: int = 0
) -> list[float]:
    """Capture times at `fps`; jitter delays single pictures and never reorders them."""
    source = random.Random(seed)
    times = [start_s + n / fps + source.random() * jitter_s for n in range(int(fps * seconds))]
    return sorted(times)


def steady_work(middle_s: float, spread_s: float, seed: int = 1) -> Callable[[float], float]:
    source = random.Random(seed)
    return lambda now_s: middle_s + spread_s * (source.random() - 0.5)


def check_ages(outcome: Outcome, period_s: float) -> None:
    """The promise: no new picture older than the work on it plus two frame intervals."""
    for tick_s, capture_s, work_s in outcome.new:
        assert tick_s - capture_s <= work_s + INTERVALS * period_s * 1.02
        assert tick_s - capture_s <= STALE_S
    assert [n[1] for n in outcome.new] == sorted({n[1] for n in outcome.new})


@pytest.mark.parametrize("fps", [15.0, 29.97, 30.0, 60.0])
@pytest.mark.parametrize("jitter_share", [0.0, 0.25])
def test_a_machine_that_is_fast_enough_sends_every_picture_in_the_cameras_rhythm(
    fps: float, jitter_share: float
) -> None:
    jitter_s = jitter_share / fps
    captures = captures_of(fps, RUN_S, jitter_s=jitter_s)
    outcome = simulate(captures, steady_work(0.4 / fps, 0.2 / fps))
    late = outcome.after(SETTLED_S)
    assert np.median(np.diff(late.ticks)) == pytest.approx(1 / fps, rel=0.003)
    assert late.jitter() < JITTER_S / 4
    assert abs(late.drift()) < 2e-5 + 0.006 * jitter_s  # four standard errors of a slope
    assert not late.closed
    assert len(late.repeats) <= 0.03 * len(late.ticks)
    shown = len(late.new) / ((RUN_S - SETTLED_S) * fps)
    assert shown > 0.96
    check_ages(outcome, 1 / fps)
    assert np.percentile(late.ages, 95) < (0.5 + jitter_share) / fps + 0.006


def test_latency_does_not_grow_with_a_camera_off_its_nominal_rate() -> None:
    for fps in (30 * 1.0005, 30 * 0.9995, 25.0):
        late = simulate(captures_of(fps, 90, jitter_s=0.003), steady_work(0.01, 0.004)).after(
            SETTLED_S
        )
        assert abs(late.drift()) < 1e-5
        assert len(late.new) >= 0.99 * (90 - SETTLED_S) * fps - 2
        assert np.median(np.diff(late.ticks)) == pytest.approx(1 / fps, rel=1e-3)


def test_a_backend_three_times_too_slow_keeps_rhythm_and_a_bounded_age() -> None:
    captures = captures_of(60, 40, jitter_s=0.002)
    outcome = simulate(captures, steady_work(0.05, 0.01), nominal_s=1 / 60)
    late = outcome.after(SETTLED_S)
    assert late.jitter() < JITTER_S / 4
    assert len(late.new) == pytest.approx((40 - SETTLED_S) / 0.05, rel=0.15)
    assert not late.closed
    check_ages(outcome, 1 / 60)
    assert max(late.ages) < 0.055 + 2 / 60


def test_a_camera_three_times_too_fast_is_thinned_evenly() -> None:
    outcome = simulate(
        captures_of(90, 30, jitter_s=0.002), steady_work(0.015, 0.004), wanted_s=1 / 30
    )
    late = outcome.after(SETTLED_S)
    assert np.median(np.diff(late.ticks)) == pytest.approx(1 / 30, rel=0.003)
    between = np.diff([n[1] for n in late.new])
    assert np.percentile(np.abs(between - 1 / 30), 95) < 0.003
    check_ages(outcome, 1 / 30)


def test_a_camera_that_falls_to_half_its_rate_in_the_dark_is_followed() -> None:
    bright = captures_of(30, 20)
    dark = [bright[-1] + time_s for time_s in captures_of(15, 20, jitter_s=0.004, start_s=1 / 15)]
    outcome = simulate(bright + dark, steady_work(0.012, 0.004))
    late = outcome.after(20 + SETTLED_S)
    assert np.median(np.diff(late.ticks)) == pytest.approx(1 / 15, rel=0.003)
    assert len(late.repeats) <= 0.05 * len(late.ticks)
    assert not late.closed


def test_bursts_give_up_pictures_but_neither_rhythm_nor_age() -> None:
    """A driver that hands over three pictures at a time, every 100 ms."""
    captures = sorted(0.01 + n // 3 * 0.1 + n % 3 * 0.0005 for n in range(900))
    outcome = simulate(captures, steady_work(0.01, 0.002))
    check_ages(outcome, 1 / 30)
    late = outcome.after(SETTLED_S)
    assert late.jitter() < JITTER_S
    assert len(late.new) >= 9 * (30 - SETTLED_S)
    assert not late.closed


def test_a_stall_closes_after_200_ms_and_opens_again() -> None:
    first = captures_of(30, 8)
    second = [first[-1] + 2 + time_s for time_s in captures_of(30, 8)]
    outcome = simulate(first + second, steady_work(0.012, 0.004))
    repeats = [t for t in outcome.repeats if first[-1] < t < second[0]]
    closed = [t for t in outcome.closed if t > first[0] + 1]
    assert max(repeats) - first[-1] <= STALE_S
    assert min(closed) - first[-1] <= STALE_S + 1 / 30
    assert second[0] < max(closed) < second[0] + 0.1
    assert len(outcome.after(second[0] + 0.5).closed) == 0


def test_a_sender_that_is_woken_late_neither_drifts_nor_catches_up() -> None:
    source = random.Random(3)
    outcome = simulate(
        captures_of(60, 40),
        steady_work(0.008, 0.004),
        wake_s=lambda: 0.03 if source.random() < 0.01 else source.random() * 0.001,
    )
    late = outcome.after(SETTLED_S)
    assert late.jitter() < JITTER_S
    assert abs(late.drift()) < 2e-5
    assert min(np.diff(late.ticks)) >= 0
    check_ages(outcome, 1 / 60)


@settings(max_examples=25, deadline=None)
@given(
    fps=st.floats(10, 75),
    jitter_share=st.floats(0, 0.45),
    work_share=st.floats(0.05, 4),
    spread_share=st.floats(0, 1),
    start_s=st.floats(0, 0.1),
    seed=st.integers(0, 1000),
)
def test_whatever_camera_and_machine_ages_and_rhythm_hold(
    fps: float, jitter_share: float, work_share: float, spread_share: float, start_s: float,
    seed: int,
) -> None:  # fmt: skip
    period_s = 1 / fps
    captures = captures_of(fps, 12, jitter_s=jitter_share * period_s, start_s=start_s, seed=seed)
    middle_s = work_share * period_s
    work = steady_work(middle_s, spread_share * middle_s, seed)
    outcome = simulate(captures, work, nominal_s=period_s)
    late = outcome.after(SETTLED_S)
    assert late.jitter() < JITTER_S
    assert np.median(np.diff(late.ticks)) == pytest.approx(period_s, rel=0.02)
    check_ages(outcome, max(np.median(np.diff(outcome.ticks)), period_s * 1.1))
    assert len(outcome.new) <= outcome.captured


def test_the_clock_counts_over_pictures_that_never_came() -> None:
    clock = CameraClock(1 / 30)
    source = random.Random(5)
    for n in range(300):
        if source.random() < 0.9:
            clock.observe(n / 30)
    assert clock.period_s == pytest.approx(1 / 30, rel=1e-3)
    assert clock.lateness(299 / 30, 299 / 30 + 0.005) == pytest.approx(0.005, abs=1e-3)


def test_the_clock_passes_over_times_that_stand_or_go_back() -> None:
    clock = CameraClock(1 / 30)
    for time_s in (1.0, 1.0, 0.5, 1.0 + 1 / 30):
        clock.observe(time_s)
    assert clock.phase_s == pytest.approx(1.0 + 1 / 30)
    assert clock.period_s == pytest.approx(1 / 30)


def test_the_first_ticks_come_at_once_and_missed_ones_are_left_out() -> None:
    pacer = Pacer(0.1)
    assert pacer.next_tick(5.0) == 5.0
    assert pacer.next_tick(5.0) == pytest.approx(5.1)
    assert pacer.next_tick(5.95) == pytest.approx(5.95, abs=0.1)
    assert pacer.next_tick(5.95) - 5.0 == pytest.approx(round((6.0 - 5.0) / 0.1) * 0.1, abs=0.11)


def test_the_thinner_keeps_what_is_near_the_wanted_rate() -> None:
    thinner = Thinner()
    kept = [thinner.accept(n / 33, 1 / 30) for n in range(200)]
    assert all(kept)
    kept = [thinner.accept(10 + n / 120, 1 / 30) for n in range(400)]
    assert sum(kept[100:]) == 75
    assert all(thinner.accept(20 + n / 120, None) for n in range(10))


def test_sleep_is_seen_on_either_clock() -> None:
    watch = SleepWatch()
    assert not watch.has_slept(10.0, 1000.0)
    assert not watch.has_slept(10.1, 1000.1)
    assert watch.has_slept(10.2, 5000.0)
    assert not watch.has_slept(10.3, 5000.1)
    assert watch.has_slept(15.0, 5000.2)
    assert not watch.has_slept(15.1, 100.0), "a clock set back is no sleep"


def test_patience_tries_again_ever_more_slowly_until_it_ends() -> None:
    patience = Patience(10.0)
    now_s, tries = 100.0, 0
    while (pause_s := patience.failed(now_s)) is not None:
        assert 0 < pause_s <= Patience.LONGEST_S
        assert patience.is_waiting
        now_s, tries = now_s + pause_s, tries + 1
    assert now_s == pytest.approx(110.0)
    assert 6 <= tries <= 12
    patience.succeeded()
    assert not patience.is_waiting
    assert patience.failed(500.0) == Patience.FIRST_S
