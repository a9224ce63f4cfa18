"""Refinement: exact ends, the picture's own edges, every plane layout, no copy of the source."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vidmatte.compute.cpu import cells
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.sources.synthetic import SyntheticClip

LO, HI = 0.2, 0.8
# Interpolating 16-bit values and the curve round once each.
ONE_LEVEL = 1


def _scene(width: int = 640, height: int = 360) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Planes of 4:2:0, the true alpha, and the true probability at 160x96."""
    image, alpha, _ = SyntheticClip(width=width, height=height, noise=1.0).render(9)
    yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV)
    half = ((width + 1) // 2, (height + 1) // 2)
    chroma = [cv2.resize(yuv[..., k], half, interpolation=cv2.INTER_AREA) for k in (1, 2)]
    small = cv2.resize(alpha, (160, 96), interpolation=cv2.INTER_AREA) / np.float32(255)
    return [yuv[..., 0].copy(), *chroma], alpha, small.astype(np.float32)


@pytest.mark.parametrize(("plane_count", "factor"), [(3, 0.4), (1, 0.9)])
def test_edges_follow_the_picture_and_not_the_grid(plane_count: int, factor: float) -> None:
    planes, truth, probability = _scene()
    soft = cv2.GaussianBlur(probability, (0, 0), 1.0)  # as soft as a network's
    plain = upsample(soft, 640, 360, lo=LO, hi=HI)
    ours = refine(soft, planes[:plane_count], lo=LO, hi=HI)
    error = [np.abs(a.astype(float) - truth).mean() for a in (plain, ours)]
    assert ours.shape == truth.shape
    assert ours.dtype == np.uint8
    assert error[1] < factor * error[0], error


@pytest.mark.parametrize(("width", "height"), [(640, 360), (161, 97), (97, 161), (1, 1), (3, 500)])
@pytest.mark.parametrize("ratio", [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4), None])
def test_certain_maps_are_exact_for_every_layout_and_size(
    width: int, height: int, ratio: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(1)
    planes = [rng.integers(0, 256, (height, width), np.uint8)]
    if ratio is not None:
        size = (-(-height // ratio[1]), -(-width // ratio[0]))
        planes += [rng.integers(0, 256, size, np.uint8) for _ in range(2)]
    for value, expected in ((0.0, 0), (LO, 0), (HI, 255), (1.0, 255)):
        probability = np.full((32, 64), value, np.float32)
        alpha = refine(probability, planes, lo=LO, hi=HI)
        assert alpha.shape == (height, width)
        assert (alpha == expected).all()
    half = refine(np.full((32, 64), 0.5, np.float32), planes, lo=LO, hi=HI)
    assert (half == 128).all(), "a flat map has no slope, whatever the picture"


def test_inside_and_outside_are_exact_and_the_source_is_untouched() -> None:
    planes, truth, probability = _scene()
    kept = [plane.copy() for plane in planes]
    for plane in planes:
        plane.flags.writeable = False
    alpha = refine(probability, planes, lo=LO, hi=HI)
    far = np.ones((61, 61), np.uint8)
    inside, outside = cv2.erode(truth, far) == 255, cv2.dilate(truth, far) == 0
    assert inside.sum() > 1000
    assert outside.sum() > 1000
    assert (alpha[inside] == 255).all()
    assert (alpha[outside] == 0).all()
    for plane, copy in zip(planes, kept, strict=True):
        np.testing.assert_array_equal(plane, copy)


def test_ten_bits_give_sixteen_bit_alpha_of_the_same_shape() -> None:
    planes, _, probability = _scene()
    deep = [plane.astype(np.uint16) << 2 for plane in planes]
    eight = refine(probability, planes, lo=LO, hi=HI).astype(float) / 255
    sixteen = refine(probability, deep, bits=10, lo=LO, hi=HI)
    assert sixteen.dtype == np.uint16
    assert set(np.unique(sixteen)[[0, -1]]) == {0, 65535}
    # The guide of cells is rounded to the plane's depth, and slopes multiply that.
    assert np.abs(sixteen / 65535 - eight).mean() < 0.004


def test_padded_rows_give_the_same() -> None:
    planes, _, probability = _scene()
    padded = []
    for plane in planes:
        wide = np.full((plane.shape[0], plane.shape[1] + 13), 7, np.uint8)
        wide[:, : plane.shape[1]] = plane
        padded.append(wide[:, : plane.shape[1]])
    expected = refine(probability, planes, lo=LO, hi=HI)
    np.testing.assert_array_equal(refine(probability, padded, lo=LO, hi=HI), expected)


def test_blocks_leave_no_seam() -> None:
    """Only what lies in a block is evaluated; where it is cut must not show."""
    planes, _, probability = _scene()
    expected = refine(probability, planes, lo=LO, hi=HI)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_STRIP_PX", 4096)
        whole = refine(probability, planes, lo=LO, hi=HI)
    assert np.abs(expected.astype(int) - whole).max() <= ONE_LEVEL


@pytest.mark.parametrize("bits", [8, 10])
def test_upsample_is_bilinear_then_the_curve(bits: int) -> None:
    probability = np.random.default_rng(3).random((24, 40), np.float32)
    peak = 255 if bits == 8 else 65535
    fine = cv2.resize(probability, (333, 187))
    expected = np.clip((fine - LO) / (HI - LO), 0, 1) * peak
    alpha = upsample(probability, 333, 187, bits=bits, lo=LO, hi=HI)
    assert np.abs(alpha - expected).max() <= (ONE_LEVEL if bits == 8 else 4)
    assert (alpha[fine <= LO - 1e-4] == 0).all()
    assert (alpha[fine >= HI + 1e-4] == peak).all()


def _disc(radius: float, softness: float) -> np.ndarray:
    rows, columns = np.indices((360, 640))
    distance = np.hypot(rows - 180, columns - 320)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def _coloured(alpha: np.ndarray, inside: float, outside: float) -> list[np.ndarray]:
    """Planes of 4:4:4 whose luma is `inside` of alpha 1, with a little noise."""
    rng = np.random.default_rng(2)
    luma = outside + (inside - outside) * alpha + rng.normal(0, 1.5, alpha.shape)
    return [luma.astype(np.uint8)] + [rng.integers(126, 131, alpha.shape, np.uint8)] * 2


def test_an_edge_moves_to_where_colours_put_it() -> None:
    """The network's disc is soft and half a cell too large."""
    truth = _disc(100, 1)
    small = cv2.resize(_disc(103, 20), (160, 96), interpolation=cv2.INTER_AREA)
    planes = _coloured(truth, 200, 60)
    plain = upsample(small, 640, 360, lo=LO, hi=HI) / 255
    ours = refine(small, planes, lo=LO, hi=HI) / 255
    error = [np.abs(a - truth).mean() for a in (plain, ours)]
    assert error[1] < 0.15 * error[0], error


def test_motion_blur_stays_as_soft_as_it_is() -> None:
    truth = _disc(100, 24)
    small = cv2.resize(_disc(100, 24), (160, 96), interpolation=cv2.INTER_AREA)
    ours = refine(small, _coloured(truth, 200, 60), lo=LO, hi=HI) / 255
    plain = upsample(small, 640, 360, lo=LO, hi=HI) / 255
    error = [np.abs(a - truth).mean() for a in (plain, ours)]
    assert error[1] < 0.8 * error[0], error


def test_a_part_of_the_colour_behind_it_within_a_subject_stays() -> None:
    """A band across the disc looks just like what is behind it."""
    truth = _disc(100, 1)
    planes = _coloured(truth, 200, 60)
    planes[0][170:190, 240:400] = 60
    small = cv2.resize(_disc(100, 12), (160, 96), interpolation=cv2.INTER_AREA)
    ours = refine(small, planes, lo=LO, hi=HI)
    assert (ours[172:188, 250:390] == 255).all()
