"""Edits of alpha: off by default, and each does what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from vidmatte.compute.cpu.adjust import adjust, binarize, feather, grow, keep_largest_subject

DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


def _square(dtype: type, side: int = 20) -> np.ndarray:
    alpha = np.zeros((60, 80), dtype)
    alpha[20 : 20 + side, 30 : 30 + side] = np.iinfo(dtype).max
    return alpha


@DTYPES
def test_nothing_asked_for_changes_nothing(dtype: type) -> None:
    alpha = _square(dtype)
    np.testing.assert_array_equal(adjust(alpha), alpha)


@DTYPES
def test_threshold_leaves_two_values(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    ramp = np.linspace(0, peak, 101).astype(dtype)[None]
    hard = binarize(ramp, 0.5)
    assert hard.dtype == dtype
    assert set(np.unique(hard)) == {0, peak}
    assert hard[0, 49] == 0
    assert hard[0, 51] == peak


@DTYPES
@pytest.mark.parametrize("radius", [3, -3])
def test_grow_moves_every_side(dtype: type, radius: int) -> None:
    grown = grow(_square(dtype), radius) > 0
    assert grown.any(axis=1).sum() == grown.any(axis=0).sum() == 20 + 2 * radius


@DTYPES
def test_feather_softens_about_its_radius_and_keeps_the_middle(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    soft = feather(_square(dtype), 4.0)
    assert soft.dtype == dtype
    assert soft[30, 40] == peak
    assert soft[30, 0] == 0
    row = soft[30].astype(float) / peak
    assert 6 <= ((row > 0.03) & (row < 0.97)).sum() / 2 <= 10


@DTYPES
def test_largest_subject_keeps_its_own_soft_edge_only(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    alpha = np.zeros((60, 100), dtype)
    alpha[10:50, 10:40] = peak // 4
    alpha[15:45, 15:35] = peak
    alpha[20:30, 60:70] = peak  # a smaller subject
    alpha[24:26, 40:60] = peak // 4  # joined to the large one by haze
    alpha[55:58, 90:95] = peak // 4  # haze alone
    kept = keep_largest_subject(alpha)
    np.testing.assert_array_equal(kept[:, :40], alpha[:, :40])
    assert kept[20:30, 60:70].max() == 0
    assert kept[24, 41] == peak // 4, "haze nearer to the large one stays"
    assert kept[24, 58] == 0
    assert kept[50:, 80:].max() == 0


@DTYPES
def test_largest_subject_of_nobody_is_nobody(dtype: type) -> None:
    haze = np.full((20, 20), np.iinfo(dtype).max // 4, dtype)
    assert keep_largest_subject(haze).max() == 0


def test_edits_come_in_their_order() -> None:
    alpha = _square(np.uint8)
    alpha[0:4, 0:4] = 255
    alpha[19, 30:50] = 100
    edited = adjust(alpha, largest=True, threshold=0.3, grow_px=2)
    assert edited[:10, :10].max() == 0
    assert edited[17, 40] == 255
    assert edited[16, 40] == 0
