"""What refinement and temporal filtering must be worth, on generated truth with the real model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vidmatte.backends import open_backend
from vidmatte.models.registry import resolve_model
from vidmatte.sources.synthetic import SCENARIOS, SyntheticClip

FRAMES = 24  # of every scenario, the whole clip: its motions are three times as fast as usual
# The reach: less of each error than per-frame bilinear mattes under the same curve.
GRADIENT, DTSSD = 0.75, 0.60
# Below 0.3 levels of 255 an error is of rounding and sensor noise, not of the matte.
NOISE_MAD = 1.2


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    path = Path(__file__).parents[1] / "benchmarks" / "quality.py"
    spec = importlib.util.spec_from_file_location("benchmarks_quality", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def shots(quality: ModuleType) -> dict[str, object]:
    """Every scenario as the embedded model sees it."""
    size = quality.NETWORK_SIZE
    backend = open_backend(resolve_model("live"), size=size, device="cpu", precision="f32")
    found = {}
    for scenario in SCENARIOS:
        clip = SyntheticClip(width=960, height=540, frame_count=FRAMES, scenario=scenario)
        found[scenario] = quality.shoot(clip, backend, range(FRAMES))
    backend.close()
    return found


@pytest.fixture(scope="module")
def alphas(
    quality: ModuleType, shots: dict[str, object]
) -> dict[tuple[str, str], list[np.ndarray]]:
    curve = resolve_model("live").row.curve
    return {
        (scenario, variant): quality.mattes(shot, variant, curve.lo, curve.hi)
        for scenario, shot in shots.items()
        for variant in quality.VARIANTS
        if "EMA" not in variant
    }


def _mean(quality, shots, alphas, variant: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    rows = [quality.errors(alphas[s, variant], shot.truths).means() for s, shot in shots.items()]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@pytest.mark.parametrize("variant", ["ours", "ours, live (no look-ahead)"])
def test_gradient_flicker_and_mean_error_reach_their_targets(
    quality, shots, alphas, variant
) -> None:  # type: ignore[no-untyped-def]
    plain = _mean(quality, shots, alphas, "bilinear per frame")
    ours = _mean(quality, shots, alphas, variant)
    assert ours["gradient"] <= GRADIENT * plain["gradient"]
    assert ours["dtssd"] <= DTSSD * plain["dtssd"]
    assert ours["mad"] <= plain["mad"]
    assert ours["mse"] <= plain["mse"]


def test_each_part_helps_on_its_own(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    plain = _mean(quality, shots, alphas, "bilinear per frame")
    for variant in ("ours without temporal", "ours without refinement"):
        part = _mean(quality, shots, alphas, variant)
        assert part["dtssd"] < plain["dtssd"], variant
        assert part["gradient"] < plain["gradient"], variant


def test_a_sudden_start_brings_no_lag(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    """Already the first moving frame is as good as without any memory."""
    truths = shots["fast"].truths
    start = next(i for i in range(1, FRAMES) if (truths[i] != truths[i - 1]).any())
    for variant in ("ours", "ours, live (no look-ahead)"):
        mine = quality.errors(alphas["fast", variant], truths).mad
        single = quality.errors(alphas["fast", "ours without temporal"], truths).mad
        for index in range(start, start + 4):
            assert mine[index] <= 1.1 * single[index] + NOISE_MAD, (variant, index)


def test_a_cut_is_recovered_at_once(quality, shots, alphas) -> None:  # type: ignore[no-untyped-def]
    truths = shots["cut"].truths
    mine = quality.errors(alphas["cut", "ours"], truths).mad
    single = quality.errors(alphas["cut", "ours without temporal"], truths).mad
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


def test_errors_are_what_their_papers_say(quality: ModuleType) -> None:
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 255
    grey = np.full_like(truth, 51)
    perfect = quality.errors([truth, truth], [truth, truth]).means()
    assert perfect == pytest.approx({"mad": 0, "mse": 0, "gradient": 0, "dtssd": 0})
    flat = quality.errors([grey], [np.zeros_like(grey)])
    assert flat.mad == pytest.approx([200])
    assert flat.mse == pytest.approx([40])
    assert flat.gradient == pytest.approx([0], abs=1e-6)
    flicker = quality.errors([truth * 0, grey], [truth * 0, truth * 0])
    assert flicker.dtssd == pytest.approx([20])
    edge = quality.errors([truth * 0], [truth])
    smooth = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.4**2))
    slope = np.arange(-5, 6) * smooth
    smooth, slope = smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)
    step = np.convolve(np.repeat([0.0, 1.0], 30), slope, "same")[10:50] * smooth.sum()
    assert edge.gradient[0] == pytest.approx(40 * np.square(step).sum() / 1e3, rel=1e-3)
