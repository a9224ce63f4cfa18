"""Steady probability maps: less flicker, no lag, no ghost, nothing carried across a cut."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.sources.synthetic import Scenario, SyntheticClip

FRAMES = 30
# Carrying a map by optical flow interpolates it, which costs this much at a moving edge.
RESAMPLING = 0.0015


def _clip(scenario: Scenario) -> tuple[list[np.ndarray], np.ndarray]:
    """Images at network size and true probabilities at half of it."""
    clip = SyntheticClip(width=320, height=192, frame_count=FRAMES, scenario=scenario)
    frames = [clip.render(index) for index in range(FRAMES)]
    halves = [cv2.resize(f.alpha, (160, 96), interpolation=cv2.INTER_AREA) for f in frames]
    return [f.image for f in frames], np.stack(halves).astype(np.float32) / 255


def _filtered(maps: np.ndarray, images: list[np.ndarray], lookahead: int) -> np.ndarray:
    steadied = TemporalFilter(lookahead=lookahead)
    out: list[np.ndarray] = []
    for probability, image in zip(maps, images, strict=True):
        out += steadied.push(probability, image)
    return np.stack(out + steadied.flush())


def _flickering(truth: np.ndarray, amount: float) -> np.ndarray:
    """Add blotches that change with every frame, as an unsure network's."""
    rng = np.random.default_rng(5)
    blotches = [cv2.GaussianBlur(rng.normal(0, 1, (96, 160)), (0, 0), 4) for _ in truth]
    wobble = np.stack(blotches) * amount / np.std(blotches)
    return np.clip(truth + wobble, 0, 1).astype(np.float32)


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_map_out_for_each_in_and_in_order(lookahead: int, count: int) -> None:
    images, truth = _clip("static")
    steadied = TemporalFilter(lookahead=lookahead)
    arrived = [len(steadied.push(truth[i], images[i])) for i in range(count)]
    arrived.append(len(steadied.flush()))
    assert sum(arrived) == count
    assert arrived[:lookahead] == [0] * min(lookahead, count) or count <= lookahead
    assert steadied.flush() == []


@pytest.mark.parametrize("lookahead", [0, 2])
def test_flicker_of_a_still_scene_is_damped(lookahead: int) -> None:
    images, truth = _clip("static")
    raw = _flickering(truth, 0.1)
    steady = _filtered(raw, images, lookahead)
    change = [np.abs(np.diff(maps[5:], axis=0)).mean() for maps in (raw, steady)]
    error = [np.abs(maps[5:] - truth[5:]).mean() for maps in (raw, steady)]
    assert change[1] < 0.5 * change[0]
    assert error[1] < error[0]


@pytest.mark.parametrize("lookahead", [0, 2])
@pytest.mark.parametrize("scenario", ["walk", "handheld"])
def test_flicker_of_a_moving_scene_is_damped(scenario: Scenario, lookahead: int) -> None:
    images, truth = _clip(scenario)
    raw = _flickering(truth, 0.1)
    steady = _filtered(raw, images, lookahead)
    error = [np.abs(np.diff(maps[5:] - truth[5:], axis=0)).mean() for maps in (raw, steady)]
    assert error[1] < 0.7 * error[0], error


def _part() -> tuple[slice, slice]:
    """The middle of the subject of `static` in its map; flat, far from its edges."""
    return slice(70, 86), slice(82, 98)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_part_that_comes_and_goes_stays(lookahead: int) -> None:
    """The network drops the same part of the subject from every other frame."""
    images, truth = _clip("static")
    assert truth[(0, *_part())].min() == 1
    raw = cv2.GaussianBlur(truth[0], (0, 0), 1)[None].repeat(FRAMES, axis=0)
    for index in range(1, FRAMES, 2):
        hole = np.zeros_like(raw[0])
        hole[_part()] = 0.7
        raw[index] -= cv2.GaussianBlur(hole, (0, 0), 3)
    steady = _filtered(np.ascontiguousarray(raw), images, lookahead)
    middle = steady[10:, 78, 90]
    assert np.ptp(raw[:, 78, 90]) > 0.6
    assert np.ptp(middle) < 0.25, middle


def test_a_lasting_change_of_mind_is_followed_soon() -> None:
    """Half of the way within a fifth of a second, nearly all within half."""
    images, truth = _clip("static")
    raw = truth.copy()
    raw[:10][(slice(None), *_part())] = 0
    steady = _filtered(raw, images, 0)
    middle = steady[:, 78, 90]
    assert middle[9] == 0
    assert middle[16] > 0.5, middle
    assert middle[25] > 0.9, middle


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("scenario", ["fast", "walk", "empty"])
def test_a_true_map_is_followed_without_lag_or_ghost(scenario: Scenario, lookahead: int) -> None:
    images, truth = _clip(scenario)
    steady = _filtered(truth, images, lookahead)
    worst = np.abs(steady - truth).mean(axis=(1, 2)).max()
    assert worst < RESAMPLING, worst
    gone = np.abs(steady - truth).reshape(FRAMES, -1)
    assert np.quantile(gone, 0.999) < 0.25, "a ghost or a hole is as large as alpha itself"


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_nothing_crosses_a_cut(lookahead: int) -> None:
    images, truth = _clip("cut")
    steady = _filtered(truth, images, lookahead)
    for cut in (10, 20):
        alone = _filtered(truth[cut : cut + 1], images[cut : cut + 1], 0)[0]
        if lookahead == 0:
            np.testing.assert_array_equal(steady[cut], alone)
        else:
            before = _filtered(truth[:cut], images[:cut], lookahead)
            np.testing.assert_array_equal(steady[cut - 1], before[-1])


def test_the_backends_buffer_may_be_reused_and_inputs_stay() -> None:
    images, truth = _clip("walk")
    buffer = np.empty_like(truth[0])
    steadied, out = TemporalFilter(lookahead=2), []
    for probability, image in zip(truth, images, strict=True):
        buffer[:] = probability
        out += steadied.push(buffer, image)
        np.testing.assert_array_equal(buffer, probability)
        buffer[:] = np.nan
    np.testing.assert_array_equal(np.stack(out + steadied.flush()), _filtered(truth, images, 2))


def test_the_networks_size_may_change_on_the_way() -> None:
    images, truth = _clip("static")
    raw = _flickering(truth, 0.1)
    steadied, out = TemporalFilter(lookahead=1), []
    for index, image in enumerate(images):
        small = cv2.resize(raw[index], (96, 64), interpolation=cv2.INTER_AREA)
        out += steadied.push(raw[index] if index < 15 else small, image)
    out += steadied.flush()
    assert [o.shape for o in out] == [(96, 160)] * 15 + [(64, 96)] * 15
    steps = []
    for before, after in ((raw[14], cv2.resize(raw[15], (96, 64))), (out[14], out[15])):
        steps.append(np.abs(after - cv2.resize(before, (96, 64))).mean())
    assert steps[1] < 0.6 * steps[0], "state is resampled, not lost"


def test_flush_forgets() -> None:
    images, truth = _clip("static")
    steadied = TemporalFilter()
    steadied.push(truth[0] * 0, images[0])
    steadied.flush()
    np.testing.assert_array_equal(steadied.push(truth[1], images[1])[0], truth[1])


def test_more_lookahead_than_there_is_use_for_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead 3"):
        TemporalFilter(lookahead=3)
