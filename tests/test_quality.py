"""What refinement and temporal filtering must be worth, on generated truth with the real model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
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
GRADIENT, DTSSD = 0.75, 0.60
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
    curve = resolve_model("live").row.curve
    names = (
        quality.CURVED,
        quality.OURS,
        quality.LIVE,
        quality.NO_TEMPORAL,
        quality.NO_REFINEMENT,
        quality.STRETCHED,
    )
    return {
        (scenario, name): quality.mattes(shot, name, curve.lo, curve.hi)
        for scenario, shot in shots.items()
        for name in names
    }


def _mean(quality, shots, alphas, variant: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    rows = [means(quality.errors(alphas[s, variant], shot.truths)) for s, shot in shots.items()]
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
    assert ours["mad"] <= plain["mad"]
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
