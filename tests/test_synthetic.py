"""The generated clip: exact truth, deterministic, moving as its scenario says."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidmatte.errors import UsageError, VidmatteError
from vidmatte.sources import synthetic
from vidmatte.sources.synthetic import SCENARIOS, Scenario, SyntheticClip, write_clip

ROUNDING = 1  # two products are rounded to 8 bits each
SMALL = {"width": 160, "height": 96}


def _clip(scenario: Scenario = "walk", **options: object) -> SyntheticClip:
    return SyntheticClip(width=160, height=96, frame_count=30, scenario=scenario, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_renders_and_repeats_bit_exactly(scenario: Scenario) -> None:
    first, second = _clip(scenario).render(7), _clip(scenario).render(7)
    for a, b in zip(first, second, strict=True):
        assert a.shape[:2] == (96, 160)
        assert a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)


def test_composite_is_foreground_over_background_by_the_true_alpha() -> None:
    green = (20, 200, 40)
    clip = _clip(noise=0, background_rgb=green)
    image, alpha, foreground = clip.render(11)
    gain = clip.pose(11).gain
    opacity = alpha[..., None] / 255
    expected = foreground * opacity + np.rint(gain * np.array(green)) * (1 - opacity)
    assert np.abs(image - expected).max() <= ROUNDING
    assert ((alpha > 13) & (alpha < 242)).sum() > 100, "soft edges are what it is for"


def test_no_old_background_in_the_subjects_colour() -> None:
    """The photograph's wall is light grey; hair and suit, also at their edges, are not."""
    clip = SyntheticClip(width=640, height=360, noise=0)
    _, alpha, foreground = clip.render(0)
    top = np.flatnonzero(alpha.max(axis=1) > 128)[0]
    hair = np.zeros(alpha.shape, bool)
    hair[top : top + 20] = True
    edge = hair & (alpha > 13) & (alpha < 200)
    assert edge.sum() > 50
    assert foreground[edge].mean(axis=0)[2] < 120, "blue of hair about 80, of the wall about 200"


def test_subject_covers_a_plausible_part_and_reaches_the_lower_edge() -> None:
    for scenario in SCENARIOS:
        alpha = _clip(scenario).render(0).alpha
        assert 0.15 < alpha.mean() / 255 < 0.6, scenario
        assert alpha[-1].max() == 255, scenario
        assert alpha[0].max() == 0, scenario


def test_empty_has_nobody_in_the_middle_and_somebody_before_and_after() -> None:
    clip = _clip("empty")
    coverage = [clip.render(i).alpha.max() for i in range(30)]
    assert coverage[0] == coverage[29] == 255
    assert max(coverage[10:21]) == 0


def test_fast_stands_still_then_moves_at_full_speed_at_once() -> None:
    clip = SyntheticClip(width=160, height=96, frame_count=60, scenario="fast", noise=0)
    alphas = [clip.render(i).alpha.astype(int) for i in range(22)]
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(alphas)]
    assert max(steps[:18]) == 0
    assert steps[18] > 0.9 * steps[19] > 1


def test_cut_changes_the_whole_picture_at_thirds_only() -> None:
    clip = _clip("cut")
    pictures = [clip.render(i).image.astype(int) for i in range(30)]
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(pictures)]
    cuts = np.argsort(steps)[-2:]
    assert sorted(cuts) == [9, 19]
    assert sorted(steps)[-2] > 3 * sorted(steps)[-3]


def test_static_differs_by_noise_only_where_light_is_equal() -> None:
    clip = _clip("static", noise=3.0)
    assert (clip.render(3).alpha == clip.render(4).alpha).all()
    difference = clip.render(3).image.astype(int) - clip.render(4).image
    assert 3 < difference.std() < 6, "sqrt(2) times 3, plus the drift of light"


def test_written_clip_is_tagged_whole_and_carries_truth(tmp_path: Path) -> None:
    clip = SyntheticClip(width=160, height=96, frame_count=12, frame_rate=Fraction(24))
    write_clip(tmp_path / "a.mp4", clip, sound=True, alpha_path=tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        assert len(container.streams.audio) == 1
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with av.open(str(tmp_path / "a.mkv")) as container:
        truth = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    assert len(frames) == len(truth) == 12
    np.testing.assert_array_equal(truth[5], clip.render(5).alpha)
    error = np.abs(frames[5].astype(int) - clip.render(5).image).mean()
    assert error < 6, f"4:2:0 and H.264 cost little, a wrong matrix or order costs more: {error}"


def test_unknown_scenario_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        SyntheticClip(scenario="nap")  # type: ignore[arg-type]


def test_missing_photographs_name_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "find_spec", lambda name: None)
    synthetic._scaled_subject.cache_clear()
    with pytest.raises(VidmatteError) as caught:
        SyntheticClip(width=100, height=60)
    assert caught.value.hint == 'pip install "vidmatte[demo]"'


def test_frames_outside_the_clip_are_refused() -> None:
    with pytest.raises(IndexError):
        _clip().render(30)
