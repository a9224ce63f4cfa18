"""What refinement and temporal filtering must be worth, on generated truth with the real model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidmatte.backends import open_backend
from vidmatte.evaluation.video_metrics import means
from vidmatte.models.registry import resolve_model
from vidmatte.sources.synthetic import SCENARIOS

FRAMES = 24  # of every scenario, the whole clip: its motions are three times as fast as usual
# The reach: less of each error than per-frame bilinear mattes under the same curve.
GRADIENT, DTSSD, MAD = 0.45, 0.60, 0.75
# With hair, motion blur, noise and H.264, against plain bilinear mattes without a curve, as peers
# make them. dtSSD is to come down to .40, which no enlargement of these networks' answers reaches,
# nor of true ones (benchmarks/NOTES.md, Matte quality).
HARD_GRADIENT, HARD_DTSSD, HARD_MAD = 0.60, 0.85, 0.90
HARD_FRAMES = 24
WORSE_MAD = 0.5  # what one clip may lose
LIVE_DTSSD = 1.15  # of the dtSSD of files, which may look ahead
# Below 0.3 levels of 255 an error is of rounding and sensor noise, not of the matte.
NOISE_MAD = 1.2


@pytest.fixture(scope="module")
def quality() -> Iterator[SimpleNamespace]:
    """What benchmarks/quality.py is made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        names = "quality_clips", "quality_shots", "quality_checks"
        found: dict[str, Any] = {}
        for name in names:
            found |= vars(importlib.import_module(name))
        yield SimpleNamespace(**{k: v for k, v in found.items() if not k.startswith("_")})


@pytest.fixture(scope="module")
def shots(quality: SimpleNamespace) -> dict[str, Any]:
    """Every scenario as the embedded model sees it: sharp, noisy, without H.264."""
    backend = open_backend(resolve_model("live"), size=(192, 320), device="cpu", precision="f32")
    found = {}
    for scenario in SCENARIOS:
        clip = quality.Clip(scenario, scenario, crf=None, shutter=1, moments=1)
        found[scenario] = quality.shoot(quality.film(clip, 960, 540, FRAMES), backend)
    backend.close()
    return found


@pytest.fixture(scope="module")
def alphas(quality: SimpleNamespace, shots: dict[str, Any]) -> dict[tuple[str, str], list[Any]]:
    parts = quality.NO_TEMPORAL, quality.NO_REFINEMENT
    return _mattes(quality, shots, quality.CURVED, quality.OURS, quality.LIVE, *parts)


@pytest.fixture(scope="module")
def hard_shots(quality: SimpleNamespace) -> dict[str, Any]:
    """The benchmark's own clips, smaller and shorter."""
    backend = open_backend(resolve_model("live"), size=(192, 320), device="cpu", precision="f32")
    found = {}
    for clip in quality.CLIPS:
        footage = quality.film(replace(clip, moments=4), 640, 360, HARD_FRAMES)
        found[clip.name] = quality.shoot(footage, backend)
    backend.close()
    return found


@pytest.fixture(scope="module")
def hard_alphas(
    quality: SimpleNamespace, hard_shots: dict[str, Any]
) -> dict[tuple[str, str], list[Any]]:
    plain = quality.PLAIN, quality.STRETCHED
    return _mattes(quality, hard_shots, *plain, quality.OURS, quality.LIVE, quality.NO_TEMPORAL)


def _mattes(
    quality: SimpleNamespace, shots: dict[str, Any], *names: str
) -> dict[tuple[str, str], list[Any]]:
    curve = resolve_model("live").row.curve
    return {
        (clip, name): quality.mattes(shot, name, curve.lo, curve.hi)
        for clip, shot in shots.items()
        for name in names
    }


def _mean(quality, shots, alphas, variant: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    rows = [
        means(quality.errors(alphas[name, variant], shot.truths))
        for name, shot in shots.items()
        if name != "nobody"
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _mads(quality, made, truths) -> list[float]:  # type: ignore[no-untyped-def]
    return [error.mad for error in quality.errors(made, truths)]


@pytest.mark.parametrize("variant", ["ours", "ours, live (no look-ahead)"])
def test_gradient_flicker_and_mean_error_reach_their_targets(
    quality, shots, alphas, variant
) -> None:  # type: ignore[no-untyped-def]
    plain = _mean(quality, shots, alphas, quality.CURVED)
    ours = _mean(quality, shots, alphas, variant)
    assert ours["grad"] <= GRADIENT * plain["grad"]
    assert ours["dtssd"] <= DTSSD * plain["dtssd"]
    assert ours["mad"] <= MAD * plain["mad"]
    assert ours["mse"] <= plain["mse"]


def test_each_part_helps_on_its_own(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    plain = _mean(quality, shots, alphas, quality.CURVED)
    for variant in ("ours without temporal", "ours without refinement"):
        part = _mean(quality, shots, alphas, variant)
        assert part["dtssd"] < plain["dtssd"], variant
        assert part["grad"] < plain["grad"], variant


def test_a_sudden_start_brings_no_lag(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    """Already the first moving frame is as good as without any memory."""
    truths = shots["fast"].truths
    start = next(i for i in range(1, FRAMES) if (truths[i] != truths[i - 1]).any())
    for variant in ("ours", "ours, live (no look-ahead)"):
        mine = _mads(quality, alphas["fast", variant], truths)
        single = _mads(quality, alphas["fast", "ours without temporal"], truths)
        for index in range(start, start + 4):
            assert mine[index] <= 1.1 * single[index] + NOISE_MAD, (variant, index)


def test_a_cut_is_recovered_at_once(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    truths = shots["cut"].truths
    mine = _mads(quality, alphas["cut", "ours"], truths)
    single = _mads(quality, alphas["cut", "ours without temporal"], truths)
    for cut in (FRAMES // 3, 2 * FRAMES // 3):
        for index in (cut - 1, cut):
            assert mine[index] <= 1.1 * single[index], index


def test_an_empty_room_gives_an_empty_matte(shots, alphas) -> None:  # type: ignore[no-untyped-def]
    truths = shots["empty"].truths
    empty = [
        a.mean() / 255 for a, t in zip(alphas["empty", "ours"], truths, strict=True) if not t.any()
    ]
    assert len(empty) >= 5
    assert np.mean(empty) <= 0.01


def test_inside_and_far_outside_are_exact(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    shares = [quality.exactness(alphas[s, "ours"], shot.truths) for s, shot in shots.items()]
    inside, outside = np.mean(shares, axis=0)
    assert inside >= 0.95
    assert outside >= 0.95


@pytest.mark.parametrize("variant", ["ours", "ours, live (no look-ahead)"])
def test_hard_clips_reach_their_targets(quality, hard_shots, hard_alphas, variant) -> None:  # type: ignore[no-untyped-def]
    plain = _mean(quality, hard_shots, hard_alphas, quality.PLAIN)
    ours = _mean(quality, hard_shots, hard_alphas, variant)
    assert ours["grad"] <= HARD_GRADIENT * plain["grad"]
    assert ours["dtssd"] <= HARD_DTSSD * plain["dtssd"]
    assert ours["mad"] <= HARD_MAD * plain["mad"]


def test_no_clip_is_worse_than_plain(quality, hard_shots, hard_alphas) -> None:  # type: ignore[no-untyped-def]
    for name, shot in hard_shots.items():
        mean = {
            variant: np.mean(_mads(quality, hard_alphas[name, variant], shot.truths))
            for variant in (quality.PLAIN, quality.OURS)
        }
        assert mean[quality.OURS] <= mean[quality.PLAIN] + WORSE_MAD, name


def test_live_mattes_are_nearly_as_steady_as_those_of_files(
    quality, hard_shots, hard_alphas
) -> None:  # type: ignore[no-untyped-def]
    live = _mean(quality, hard_shots, hard_alphas, quality.LIVE)
    file = _mean(quality, hard_shots, hard_alphas, quality.OURS)
    assert live["dtssd"] <= LIVE_DTSSD * file["dtssd"]


@pytest.mark.parametrize("variant", ["ours", "ours, live (no look-ahead)"])
def test_motion_that_starts_at_once_is_followed_within_a_frame(
    quality, hard_shots, hard_alphas, variant
) -> None:  # type: ignore[no-untyped-def]
    truths = hard_shots["fast"].truths
    start = quality.start_of_motion(truths)
    assert quality.lag_frames(hard_alphas["fast", variant], truths, start) <= 1


@pytest.mark.parametrize("variant", ["ours", "ours, live (no look-ahead)"])
def test_cuts_of_compressed_video_need_no_frame_to_recover(
    quality, hard_shots, hard_alphas, variant
) -> None:  # type: ignore[no-untyped-def]
    truths = hard_shots["cut"].truths
    mads, alone = (
        _mads(quality, hard_alphas["cut", name], truths)
        for name in (variant, "ours without temporal")
    )
    assert quality.recovery_frames(mads, alone, quality.cuts(truths)) == 0


def test_an_empty_stretch_stays_empty_where_stretching_lights_it_up(
    quality, hard_shots, hard_alphas
) -> None:  # type: ignore[no-untyped-def]
    for clip in ("empty", "nobody"):
        truths = hard_shots[clip].truths
        for name in (quality.OURS, quality.LIVE):
            assert quality.empty_alpha(hard_alphas[clip, name], truths) <= 0.01, (clip, name)
        assert quality.empty_alpha(hard_alphas[clip, quality.STRETCHED], truths) > 0.1, clip
