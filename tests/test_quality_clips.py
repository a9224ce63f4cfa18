"""The clips of the quality benchmark: exact truth through hair, motion blur, light and H.264."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

SIZE = 160, 96
# Every moment of the shutter is rendered in whole levels, two products are rounded to 8 bits each.
ROUNDING = 1.6
# Where memory lies decides which vector code rounds a few samples, and x264 follows: 1 % of a clip
# by a few levels.
ALIGNMENT = 0.1


def _benchmark(name: str) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module(name)


@pytest.fixture(scope="module")
def clips() -> Iterator[ModuleType]:
    yield from _benchmark("quality_clips")


@pytest.fixture(scope="module")
def checks() -> Iterator[ModuleType]:
    yield from _benchmark("quality_checks")


@pytest.mark.parametrize("scenario", ["walk", "fast"])
@pytest.mark.parametrize("who", ["person", "teddy", "singer"])
def test_motion_blur_keeps_the_truth_exact(
    clips: ModuleType, monkeypatch: pytest.MonkeyPatch, who: str, scenario: str
) -> None:
    """Over a wall of one colour, which does not move: picture = own colour * alpha + the rest."""
    wall = np.array([30.0, 160.0, 90.0])
    monkeypatch.setattr(clips, "_grass", lambda: np.full((64, 64, 3), wall, np.uint8))
    clip = clips.Clip("test", scenario, who, grass=True, shutter=0.75, moments=16)
    frames = list(clips.render(clip, *SIZE, 12))
    for image, alpha, foreground in frames[4:7]:
        opacity = alpha[..., None] / 255
        light = image[alpha == 0].mean(axis=0) / wall  # the clip's light drifts
        expected = foreground * opacity + wall * light * (1 - opacity)
        assert np.abs(image - expected).max() <= ROUNDING
    soft = [((f.alpha > 13) & (f.alpha < 242)).mean() for f in frames]
    assert max(soft) > 0.01


def test_motion_blur_leaves_no_steps(clips: ModuleType) -> None:
    """A blurred edge has as many levels as the shutter has moments, or nearly so."""
    clip = next(clip for clip in clips.CLIPS if clip.name == "fast")
    alpha = list(clips.render(clip, *SIZE, 12))[4].alpha
    levels = np.unique(alpha[30:40].round())
    assert len(levels) > 12


@pytest.mark.parametrize("who", ["teddy", "singer"])
def test_strands_cover_their_exact_area(clips: ModuleType, who: str) -> None:
    """Drawn finer and averaged: mean alpha does not depend on the size, thin hair stays thin."""
    large, small = (clips.drawn_subject(who, side).alpha / 255 for side in (768, 384))
    assert abs(large.mean() - small.mean()) < 0.01
    soft = (large > 0.05) & (large < 0.95)
    assert soft.mean() > 0.02


def test_a_clip_is_the_same_every_time_and_compressed_as_said(clips: ModuleType) -> None:
    clip = clips.Clip("test", "handheld", "teddy", noise=3, crf=26, grass=True)
    first, second = (clips.film(clip, *SIZE, 6) for _ in range(2))
    assert [len(part) for part in first] == [6, 6, 6]
    for one, other in zip(first.pictures, second.pictures, strict=True):
        difference = np.abs(one.to_ndarray().astype(int) - other.to_ndarray()).mean()
        assert difference < ALIGNMENT
        assert (one.format.name, int(one.colorspace), int(one.color_range)) == ("yuv420p", 1, 1)
    raw = clips.film(
        clips.Clip("test", "handheld", "teddy", noise=3, crf=None, grass=True), *SIZE, 6
    )
    lost = [
        np.abs(a.to_ndarray().astype(int) - b.to_ndarray()).mean()
        for a, b in zip(first.pictures, raw.pictures, strict=True)
    ]
    assert 0.5 < np.mean(lost) < 8


def test_light_goes_out_for_picture_and_foreground_alike(clips: ModuleType) -> None:
    clip = next(clip for clip in clips.CLIPS if clip.name == "light")
    footage = clips.film(clip, *SIZE, 12)
    for dark, bright in ((5, 1), (7, 11)):
        for pictures in (
            footage.foregrounds,
            [p.to_ndarray(format="rgb24") for p in footage.pictures],
        ):
            assert pictures[dark].mean() < 0.75 * pictures[bright].mean()


def test_every_named_difficulty_is_in_the_clips(clips: ModuleType) -> None:
    scenarios = {clip.scenario for clip in clips.CLIPS}
    assert {"walk", "fast", "static", "cut", "empty", "handheld"} == scenarios
    assert {"person", "teddy", "singer", "nobody"} == {clip.who for clip in clips.CLIPS}
    assert all(clip.crf is not None and clip.noise and clip.shutter for clip in clips.CLIPS)
    assert sum(clip.grass for clip in clips.CLIPS) >= 1


def _moving(count: int) -> list[np.ndarray]:
    """A bar that stands for four frames, then jumps on by eight pixels a frame."""
    frames = []
    for index in range(count):
        alpha = np.zeros((40, 160), np.uint8)
        left = 10 + 8 * max(0, index - 3)
        alpha[:, left : left + 30] = 255
        frames.append(alpha)
    return frames


@pytest.mark.parametrize("late", [0, 1, 3])
def test_lag_is_the_shift_that_fits(checks: ModuleType, late: int) -> None:
    truths = _moving(14)
    start = checks.start_of_motion(truths)
    assert start == 4
    shifted = [truths[max(0, index - late)] for index in range(14)]
    assert checks.lag_frames(shifted, truths, start) == late


def test_without_a_still_start_there_is_no_lag_to_measure(checks: ModuleType) -> None:
    assert checks.start_of_motion(_moving(14)[4:]) is None
    assert checks.start_of_motion([_moving(1)[0]] * 5) is None


def test_recovery_counts_frames_that_remember_the_wrong_shot(checks: ModuleType) -> None:
    alone = [2.0] * 12
    assert checks.recovery_frames(alone, alone, [4, 8]) == 0
    slow = list(alone)
    slow[8], slow[9] = 9.0, 4.0
    assert checks.recovery_frames(slow, alone, [4, 8]) == 2
    assert checks.recovery_frames([9.0] * 12, alone, [4, 8]) == 8, "never: until the end"


def test_exactness_and_emptiness(checks: ModuleType) -> None:
    truth = np.zeros((80, 80), np.uint8)
    truth[20:60, 20:60] = 255
    assert checks.exactness([truth], [truth]) == (1.0, 1.0)
    holed = truth.copy()
    holed[40, 40] = 254
    inside, outside = checks.exactness([holed], [truth])
    assert inside < 1
    assert outside == 1
    assert checks.empty_alpha([truth], [truth]) is None
    assert checks.empty_alpha([np.full((4, 4), 51, np.uint8)], [np.zeros((4, 4), np.uint8)]) == 0.2


def test_every_way_to_colour_keeps_what_is_whole(checks: ModuleType) -> None:
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 256, (64, 96), np.uint8)
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 40:50], alpha[:, 50:] = 128, 255
    for name, colouring in checks.COLOURINGS.items():
        (found,) = colouring([plane], alpha)
        difference = np.abs(found.astype(int) - plane)[alpha == 255]
        assert difference.max() <= 1, name


def test_costs_are_told_for_every_stage(clips: ModuleType, checks: ModuleType) -> None:
    footage = clips.film(clips.CLIPS[0], *SIZE, 3)
    images = [np.zeros((64, 64, 3), np.uint8)] * 3
    maps = [np.full((32, 32), 0.5, np.float32)] * 3
    shot = SimpleNamespace(footage=footage, images=images, probabilities=maps)
    spent = checks.cost_ms(shot, 0.2, 0.8, repeat=4)
    assert tuple(spent) == checks.STAGES
    assert all(ms >= 0 for ms in spent.values())


def test_the_benchmark_measures_a_small_clip() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "quality.py"
    command = [sys.executable, str(script), "--size", "160x96", "--frames", "6", "--clips", "walk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["card"]["cores"] > 0
    assert "dtssd against plain bilinear" in done.stdout
