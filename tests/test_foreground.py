"""Foreground colour: no old background in soft edges, the rest of the subject bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vidmatte.compute.cpu.foreground import estimate_planes
from vidmatte.sources.synthetic import SyntheticClip, SyntheticFrame

GREEN = (0, 190, 40)
TARGET = 0.60  # of the colour error in soft edges, taken away


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The foreground colour of an (H, W, 3) picture."""
    return np.dstack(estimate_planes([image[..., k].copy() for k in range(3)], alpha))


def estimate_one(plane: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return estimate_planes([plane], alpha)[0]


def _frame(**options: object) -> SyntheticFrame:
    return SyntheticClip(width=640, height=360, **options).render(40)  # type: ignore[arg-type]


def _edge_error(colour: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> float:
    soft = (alpha >= 13) & (alpha <= 242)  # .05 to .95
    return float(np.abs(colour.astype(float) - truth)[soft].mean())


@pytest.mark.parametrize("background", [GREEN, (30, 60, 220), (255, 255, 255)])
def test_a_coloured_screen_leaves_the_soft_edges(background: tuple[int, int, int]) -> None:
    image, alpha, truth = _frame(background_rgb=background)
    before = _edge_error(image, truth, alpha)
    after = _edge_error(estimate_foreground(image, alpha), truth, alpha)
    assert after < (1 - TARGET) * before, (before, after)


def test_photographs_leave_the_soft_edges() -> None:
    image, alpha, truth = _frame(scenario="walk")
    before = _edge_error(image, truth, alpha)
    after = _edge_error(estimate_foreground(image, alpha), truth, alpha)
    assert after < (1 - TARGET) * before, (before, after)


def test_a_slightly_wrong_matte_still_helps() -> None:
    image, alpha, truth = _frame(background_rgb=GREEN)
    wrong = cv2.GaussianBlur(alpha, (0, 0), 1.2)
    before = _edge_error(image, truth, alpha)
    after = _edge_error(estimate_foreground(image, wrong), truth, alpha)
    assert after < (1 - TARGET) * before, (before, after)


@pytest.mark.parametrize("bits", [8, 10])
def test_full_alpha_is_bit_equal_and_inputs_are_untouched(bits: int) -> None:
    image, alpha, _ = _frame()
    plane = image[..., 1].copy()
    if bits == 10:
        plane, alpha = plane.astype(np.uint16) << 2, alpha.astype(np.uint16) * 257
    for array in (plane, alpha):
        array.flags.writeable = False
    found = estimate_one(plane, alpha)
    full = alpha == alpha.max()
    assert full.sum() > 1000
    np.testing.assert_array_equal(found[full], plane[full])
    assert found.dtype == plane.dtype
    assert found.max() <= plane.max()


def test_ten_bits_find_the_same_colour() -> None:
    image, alpha, truth = _frame(background_rgb=GREEN)
    deep = estimate_one(image[..., 1].astype(np.uint16) << 2, alpha.astype(np.uint16) * 257)
    shallow = estimate_one(image[..., 1].copy(), alpha)
    error = [_edge_error(plane, truth[..., 1], alpha) for plane in (deep / 4, shallow)]
    assert abs(error[0] - error[1]) < 1


def test_planes_of_yuv_find_the_colour_too() -> None:
    image, alpha, truth = _frame(background_rgb=GREEN)
    yuv, true_yuv = (cv2.cvtColor(x, cv2.COLOR_RGB2YUV) for x in (image, truth))
    small_alpha = cv2.resize(alpha, (320, 180), interpolation=cv2.INTER_AREA)
    half = [[cv2.resize(x[..., k], (320, 180)) for k in (1, 2)] for x in (yuv, true_yuv)]
    found = estimate_planes(half[0], small_alpha)
    for before, after, truth_plane in zip(half[0], found, half[1], strict=True):
        errors = [_edge_error(plane, truth_plane, small_alpha) for plane in (before, after)]
        assert errors[1] < (1 - TARGET) * errors[0]


def test_nothing_of_the_room_where_alpha_is_zero() -> None:
    """A reader that ignores alpha must not see the old background."""
    image, alpha, _ = _frame(background_rgb=(0, 255, 0))
    found = estimate_foreground(image, alpha)
    nothing = found[alpha == 0].astype(int)
    green = (nothing[:, 1] > 150) & (nothing[:, 0] < 80) & (nothing[:, 2] < 80)
    assert green.mean() < 0.001


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (97, 161), (5, 400)])
@pytest.mark.parametrize("alpha_value", [0, 128, 255])
def test_every_size_and_flat_alphas_work(shape: tuple[int, int], alpha_value: int) -> None:
    plane = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = estimate_one(plane, np.full(shape, alpha_value, np.uint8))
    assert found.shape == shape
    if alpha_value == 255:
        np.testing.assert_array_equal(found, plane)
    if alpha_value == 0:
        assert np.ptp(found) == 0
