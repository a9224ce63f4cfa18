"""The governor against simulated machines: settles, recovers, never swings, says what it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidmatte.live.governor import PRESETS, Governor, Level, Load

PERIOD_S = 1 / 30
TICK_S = 0.25
LEVELS = (  # every kind of step there is, more than a preset has
    Level(448),
    Level(320),
    Level(256),
    Level(256, 2),
    Level(256, 3),
    Level(256, 2, Fraction(1, 2)),
)
COMPUTE_S = 0.005  # prepare, refine, composite
NETWORK_S = 0.006  # at 320


@dataclass
class Machine:
    """What a session would measure on a machine that is `slowness` times as slow as ours."""

    slowness: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def load(self, level: Level) -> Load:
        slow = self.slowness * (1 + self.noise * self._rng.standard_normal())
        network_s = NETWORK_S * slow * (level.size / 320) ** 2
        busy_s = COMPUTE_S * slow + (network_s if level.every == 1 else 0.0015 * slow)
        allowed_s = PERIOD_S / float(level.rate_share)
        missed = max(0.0, 1 - allowed_s / busy_s)
        return Load(PERIOD_S, busy_s, missed, network_s)


@dataclass
class Run:
    """A governor on a simulated machine, and the levels it chose with their times."""

    machine: Machine
    governor: Governor

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.steps: list[tuple[float, int]] = []

    def for_s(self, seconds: float, slowness: float | None = None) -> Run:
        if slowness is not None:
            self.machine.slowness = slowness
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += TICK_S
            before = self.governor.level
            level = self.governor.update(self.machine.load(LEVELS[before]), self.now_s)
            if level != before:
                self.steps.append((self.now_s, level))
        return self


def run_of(slowness: float = 1.0, noise: float = 0.0, seed: int = 0, level: int = 0) -> Run:
    return Run(Machine(slowness, noise, seed), Governor(LEVELS, level=level))


def fits(slowness: float, level: Level) -> bool:
    load = Machine(slowness).load(level)
    return load.busy_s <= load.period_s / float(level.rate_share)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_up_size_then_masks_then_rate(preset: str) -> None:
    levels = PRESETS[preset]
    assert levels[0].every == levels[0].rate_share == 1
    for before, after in pairwise(levels):
        changed = [a != b for a, b in zip(
            (before.size, before.every, before.rate_share),
            (after.size, after.every, after.rate_share), strict=True)]  # fmt: skip
        assert any(changed)
        assert after.size <= before.size
        assert after.rate_share <= before.rate_share
        assert after.every / after.rate_share >= before.every / before.rate_share
        if after.size < before.size:
            assert after.every == 1, "masks are made rarer only at the smallest size"
        if after.rate_share == 1:
            assert before.rate_share == 1
        if after.every > 1:
            assert after.size == min(level.size for level in levels)


def test_quality_never_carries_a_mask() -> None:
    assert all(level.every == 1 for level in PRESETS["quality"])
    governor, now_s = Governor(PRESETS["quality"]), 0.0
    while now_s < 20:
        now_s += TICK_S
        governor.update(Load(PERIOD_S, 1.0), now_s)
    assert governor.given_up == "network 256 px, 1/2 of the rate"
    assert governor.said == "too slow here: only 1/2 of the pictures are shown"
    while now_s < 60:
        now_s += TICK_S
        governor.update(Load(PERIOD_S, 0.010, network_s=0.006), now_s)
    assert governor.level == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_a_size_at_which_rooms_are_not_empty(preset: str) -> None:
    """`live` takes a corridor's table for a person from 384 px on, rough wood at 192 px."""
    assert {level.size for level in PRESETS[preset]} <= {256, 320}


def test_a_fast_machine_is_left_alone() -> None:
    assert run_of(1.0, noise=0.1).for_s(600).steps == []


@pytest.mark.parametrize("slowness", [1.6, 2.2, 3.0, 4.0, 6.0, 9.0])
def test_a_slow_machine_ends_at_the_first_level_that_fits(slowness: float) -> None:
    run = run_of(slowness).for_s(20)
    level = run.governor.level
    assert fits(slowness, LEVELS[level]) or level == len(LEVELS) - 1
    assert level == 0 or not fits(slowness * 1.12, LEVELS[level - 1])
    assert [to for _, to in run.steps] == list(range(1, level + 1))
    times = [at for at, _ in run.steps]
    assert all(later - earlier <= 2.5 for earlier, later in zip([0.0, *times], times, strict=False))


def test_missed_pictures_alone_are_too_slow() -> None:
    governor = Governor(LEVELS)
    for tick in range(12):
        governor.update(Load(PERIOD_S, 0.001, missed=0.2), tick * TICK_S)
    assert governor.level >= 1


def test_a_hiccup_is_no_reason() -> None:
    run = run_of(1.0)
    for _ in range(30):
        run.for_s(0.5, 20.0).for_s(5, 1.0)
    assert run.steps == []


def test_it_recovers_when_the_load_falls() -> None:
    run = run_of(6.0).for_s(30)
    assert run.governor.level >= 4
    run.for_s(60, 1.0)
    assert run.governor.level == 0
    recovering = [to for _, to in run.steps if _ > 30]
    assert recovering == sorted(recovering, reverse=True)


def test_waits_grow_with_every_recovery_that_fails() -> None:
    """A load that jumps whenever something is taken back, which no prediction can see."""
    governor, now_s, ups = Governor(LEVELS), 0.0, []
    while now_s < 3600:
        now_s += TICK_S
        before = governor.level
        busy_s = 0.040 if before < 2 else 0.002
        if governor.update(Load(PERIOD_S, busy_s), now_s) < before:
            ups.append(now_s)
    waits = np.diff(ups)
    assert len(ups) < 22, ups
    assert (waits[:4] > 1.5 * np.array([5, *waits[:3]])).all(), waits
    assert waits.max() <= 310


def test_it_does_not_try_what_it_can_foresee() -> None:
    """The time of the network is known: going back to it frame by frame would not fit."""
    governor, now_s = Governor(LEVELS, level=3), 0.0
    assert LEVELS[3].every > 1 == LEVELS[2].every
    while now_s < 120:
        now_s += TICK_S
        governor.update(Load(PERIOD_S, 0.010, network_s=0.030), now_s)
        assert governor.level == 3
    for _ in range(200):
        now_s += TICK_S
        governor.update(Load(PERIOD_S, 0.010, network_s=0.004), now_s)
    assert governor.level < 3


def test_only_levels_that_are_open_are_chosen() -> None:
    governor = Governor(LEVELS)
    slow = Load(PERIOD_S, 1.0)
    for tick in range(40):
        assert governor.update(slow, tick * TICK_S, available={0}) == 0
    ticks = iter(range(40, 400))
    while governor.update(slow, next(ticks) * TICK_S, available={0, 2, 3}) == 0:
        pass
    assert governor.level == 2
    while governor.update(Load(PERIOD_S, 0.001), next(ticks) * TICK_S, available={0, 2}) == 2:
        pass
    assert governor.level == 0


def test_after_a_step_old_measurements_do_not_count() -> None:
    governor = Governor(LEVELS)
    chosen = [governor.update(Load(PERIOD_S, 1.0), tick * 0.05) for tick in range(80)]
    assert chosen.count(1) * 0.05 >= 1.9


def test_a_suspended_machine_has_not_been_slow_all_the_time() -> None:
    governor = Governor(LEVELS)
    governor.update(Load(PERIOD_S, 0.5), 0)
    assert governor.update(Load(PERIOD_S, 0.5), 7200) == 0
    assert governor.update(Load(PERIOD_S, 0.001), 7200.25) == 0
    assert governor.said == ""


def test_failures_of_long_ago_are_forgiven() -> None:
    run = run_of(1.0)
    while run.now_s < 1200:  # every recovery fails
        run.for_s(TICK_S, 0.5 if run.governor.level > 1 else 8.0)
    run.for_s(3600, 1.0)
    assert run.governor.level == 0
    run.for_s(8, 6.0)
    assert run.governor.level > 0
    assert run.for_s(40, 1.0).governor.level == 0


def test_every_step_is_said_in_plain_words() -> None:
    run, said = run_of(20.0), []
    for slowness in (20.0, 0.5):
        for _ in range(4 * 120):
            steps = len(run.steps)
            run.for_s(TICK_S, slowness)
            if len(run.steps) > steps:
                said.append(run.governor.said)
    assert said[:6] == [
        "too slow here: the network's picture is now 320 px wide instead of 448",
        "too slow here: the network's picture is now 256 px wide instead of 320",
        "too slow here: masks are made from every 2nd picture and carried to the others",
        "too slow here: masks are made from every 3rd picture and carried to the others",
        "too slow here: masks are made from every 2nd picture and carried to the others,"
        " only 1/2 of the pictures are shown",
        "fast enough again: masks are made from every 3rd picture and carried to the others,"
        " all pictures are shown",
    ]
    assert said[-1] == "fast enough again: the network's picture is now 448 px wide instead of 320"
    assert "fast enough again: every picture has a mask of its own" in said


def test_what_was_given_up_is_told_shortly() -> None:
    assert Governor(LEVELS).given_up == ""
    assert Governor(LEVELS, level=2).given_up == "network 256 px"
    last = Governor(LEVELS, level=len(LEVELS) - 1)
    assert last.given_up == "network 256 px, masks from every 2nd picture, 1/2 of the rate"


def longest_run_of_steps(seconds: float) -> float:
    """Failed recoveries double their wait from 5 to 300 s: so many fit into `seconds`, each two."""
    return 2 * (math.log2(1 + seconds / 5) + seconds / 300 + 2)


@settings(max_examples=60, deadline=None)
@given(slowness=st.floats(0.3, 12), noise=st.floats(0, 0.15), seed=st.integers(0, 999))
def test_under_a_steady_load_it_comes_to_rest(slowness: float, noise: float, seed: int) -> None:
    run = run_of(slowness, noise, seed).for_s(1800)
    allowed = len(LEVELS) + longest_run_of_steps(1800)
    assert len(run.steps) <= allowed, run.steps
    late = [at for at, _ in run.steps if at > 900]
    assert len(late) <= 12, run.steps


@settings(max_examples=60, deadline=None)
@given(
    loads=st.lists(st.tuples(st.floats(0.3, 15), st.floats(2, 120)), min_size=1, max_size=25),
    noise=st.floats(0, 0.2),
    seed=st.integers(0, 999),
)
def test_under_any_loads_steps_are_bounded(
    loads: list[tuple[float, float]], noise: float, seed: int
) -> None:
    """Each change of load may cost a way down and a way up, and failed recoveries in between."""
    run, allowed = run_of(1.0, noise, seed), 0.0
    for slowness, seconds in loads:
        run.for_s(seconds, slowness)
        allowed += 2 * (len(LEVELS) - 1) + longest_run_of_steps(seconds)
    assert len(run.steps) <= allowed
    ups = [at for (at, to), (_, was) in zip(run.steps[1:], run.steps, strict=False) if to < was]
    assert all(later - earlier >= 5 for earlier, later in pairwise(ups))
    run.for_s(1200, 0.2)
    assert run.governor.level == 0, "it never comes back"


@pytest.mark.parametrize("half_period_s", [3, 7, 20, 60])
def test_a_load_that_comes_and_goes_does_not_set_the_pace(half_period_s: float) -> None:
    run = run_of(1.0)
    while run.now_s < 1800:
        run.for_s(half_period_s, 3.0).for_s(half_period_s, 0.6)
    swings = 1800 / (2 * half_period_s)
    assert len(run.steps) < 2 * 3 * swings
    first, last = (sum(a <= at < a + 600 for at, _ in run.steps) for a in (0, 1200))
    assert last <= max(first, 12), (first, last)


def test_it_is_pure() -> None:
    def levels(offset_s: float) -> list[int]:
        governor, machine = Governor(LEVELS), Machine(3.0, 0.2, 4)
        return [
            governor.update(machine.load(LEVELS[governor.level]), offset_s + tick * TICK_S)
            for tick in range(400)
        ]

    assert levels(0.0) == levels(1e6)
