"""Bring a small probability map to the picture's size along the picture's own edges.

Fast guided filter (He & Sun 2015, arXiv:1505.00996) with a guide of all planes (He, Sun & Tang
2013, "Guided Image Filtering", eq. 19): in each window alpha is a linear function of the planes;
its coefficients are found on a coarse grid of square cells and applied to the full planes in their
own layout, strip by strip, so that no full-size float picture exists. Then the model's fixed
curve. Where a whole window is sure of itself, alpha is exactly 0 or full without any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidmatte.compute.cpu.cells import Area, average, blocks, magnify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Samples

    Floats = NDArray[np.float32]

_EPSILON = 2e-5  # of planes 0..1; below it a window's variance counts as noise
_FLAT = 1e-4  # variance of a probability below which there is nothing to explain
_SURE_CELLS = 3  # a cell whose neighbours up to here are all of one mind is exact


class _Window(NamedTuple):
    """How the local models are found: best of those tried (benchmarks/NOTES.md, Matte quality)."""

    cells: int  # along the picture's longer side
    radius: int  # in cells
    passes: int


_COLOUR, _GREY = _Window(160, 2, 3), _Window(240, 1, 1)  # grey alone is misled by wide windows


@dataclass(frozen=True, slots=True)
class _Linear:
    """alpha = sum(slopes[k] * plane[k]) + offset per cell, in output units; (h, w) each."""

    slopes: list[Floats]
    offset: Floats


def refine(
    probability: Floats, planes: Sequence[Samples], *, bits: int = 8, lo: float, hi: float
) -> Samples:
    """Return alpha (H, W) for a picture, along its edges, with the curve applied.

    `probability` (h, w), 0..1, covers the same picture in the same (stored) orientation at any
    size. `planes` are the picture's planes without alpha, read only, rows may be padded: the first
    (Y, or one of RGB) is (H, W) and decides the size, others may be subsampled by 1, 2 or 4 per
    axis, rounded up; luma alone works, less well. `bits` is their depth. alpha is uint8 0..255 up
    to 8 bits, else uint16 0..65535; probability <= `lo` gives 0 and >= `hi` full, linear between.
    """
    import cv2

    height, width = planes[0].shape
    window = _COLOUR if len(planes) > 1 else _GREY
    ratios = [_ratio(plane, height, width) for plane in planes]
    cell = _cell_px(width, height, ratios, window.cells)
    guide = [
        average(plane, (cell // rx, cell // ry), (1 << bits) - 1)
        for plane, (rx, ry) in zip(planes, ratios, strict=True)
    ]
    coarse = _sample(probability, width, height, cell)
    around = np.ones((2 * _SURE_CELLS + 1,) * 2, np.uint8)
    ones = cv2.erode(coarse, around) >= hi
    unsure = ~ones & (cv2.dilate(coarse, around) > lo)
    peak = 255 if bits <= 8 else 65535
    model = _curved(_fit(guide, coarse, window), ones, unsure, lo, hi, peak, (1 << bits) - 1)
    alpha = _flat(ones, cell, width, height, peak)
    for block in blocks(unsure, cell, width, height):
        _fill(alpha, planes, ratios, cell, model, block)
    return alpha


def upsample(
    probability: Floats, width: int, height: int, *, bits: int = 8, lo: float, hi: float
) -> Samples:
    """Return alpha (height, width) by bilinear interpolation and the curve alone.

    Arguments and result as in `refine`, which this replaces when refinement is switched off.
    """
    import cv2

    fine = np.asarray(cv2.resize(_to_u16(probability), (width, height)), np.uint16)
    above = cv2.subtract(fine, np.full(1, round(lo * 65535), np.float64), dst=fine)
    if bits <= 8:
        return np.asarray(cv2.convertScaleAbs(above, alpha=255 / ((hi - lo) * 65535)), np.uint8)
    return np.asarray(cv2.multiply(above, np.full(1, 1 / (hi - lo))), np.uint16)


def _to_u16(probability: Floats) -> NDArray[np.uint16]:
    return np.asarray(np.rint(probability * np.float32(65535)), np.uint16)


def _ratio(plane: Samples, height: int, width: int) -> tuple[int, int]:
    """(x, y) picture samples per sample of `plane`."""
    return -(-width // plane.shape[1]), -(-height // plane.shape[0])


def _cell_px(width: int, height: int, ratios: list[tuple[int, int]], cells: int) -> int:
    """The side of a cell, whole samples in every plane, for about `cells` along the longer side."""
    unit = max(2, *(max(ratio) for ratio in ratios))
    return max(1, round(max(width, height) / cells / unit)) * unit


def _sample(probability: Floats, width: int, height: int, cell: int) -> Floats:
    """Look up `probability` at the centres of the cells."""
    import cv2

    scale_x, scale_y = probability.shape[1] / width, probability.shape[0] / height
    shift_x, shift_y = 0.5 * cell * scale_x - 0.5, 0.5 * cell * scale_y - 0.5
    matrix = np.array([[cell * scale_x, 0, shift_x], [0, cell * scale_y, shift_y]])
    size = (-(-width // cell), -(-height // cell))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(probability, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _box(values: Floats, radius: int) -> Floats:
    import cv2

    side = 2 * radius + 1
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)


def _fit(guide: list[Floats], coarse: Floats, window: _Window) -> _Linear:
    """Find the linear model of alpha around every cell."""
    means = [_box(plane, window.radius) for plane in guide]
    inverse = _inverse_covariance(guide, means, window.radius)
    target = coarse
    for remaining in reversed(range(window.passes)):
        model = _fit_once(guide, means, inverse, target, coarse, window.radius)
        if remaining:
            again = _dot(model.slopes, guide) + model.offset
            target = np.asarray(np.clip(again, 0, 1), np.float32)
    return model


def _fit_once(
    guide: list[Floats],
    means: list[Floats],
    inverse: list[list[Floats]],
    target: Floats,
    coarse: Floats,
    radius: int,
) -> _Linear:
    """Fit `target` in every window, average over windows, trust it by what it explains.

    The share of the variance that colour explains (R squared) is the model's weight against the
    plain map: among leaves, where colour tells nothing, a wrong model would tear holes and wisps.
    """
    mean = _box(target, radius)
    joint = [_box(g * target, radius) - m * mean for g, m in zip(guide, means, strict=True)]
    slopes = [_dot(row, joint) for row in inverse]
    offset = mean - _dot(slopes, means)
    variance = _box(target * target, radius) - mean * mean
    explained = np.clip(_dot(slopes, joint) / (variance + np.float32(_FLAT)), 0, 1)
    trust = _box(np.asarray(explained, np.float32), radius)
    blended = _box(offset, radius) * trust + coarse * (1 - trust)
    return _Linear([_box(slope, radius) * trust for slope in slopes], blended)


def _dot(left: Sequence[Floats], right: Sequence[Floats]) -> Floats:
    return np.asarray(reduce(np.add, map(np.multiply, left, right)), np.float32)


def _inverse_covariance(
    guide: list[Floats], means: list[Floats], radius: int
) -> list[list[Floats]]:
    """Invert each window's covariance, regularised by epsilon, by Cramer's rule."""
    n = len(guide)
    c = [
        [_box(guide[i] * guide[j], radius) - means[i] * means[j] for j in range(i + 1)]
        for i in range(n)
    ]
    for i in range(n):
        c[i][i] += np.float32(_EPSILON)
    if n == 1:
        return [[np.reciprocal(c[0][0])]]
    assert n == 3, "one plane or three"
    (a,), (b, e), (d, f, g) = c
    minors = [
        e * g - f * f,
        d * f - b * g,
        b * f - d * e,
        a * g - d * d,
        b * d - a * f,
        a * e - b * b,
    ]
    over = 1 / (a * minors[0] + b * minors[1] + d * minors[2])
    p, q, r, s, t, u = (minor * over for minor in minors)
    return [[p, q, r], [q, s, t], [r, t, u]]


def _curved(
    model: _Linear,
    ones: NDArray[np.bool_],
    unsure: NDArray[np.bool_],
    lo: float,
    hi: float,
    peak: int,
    plane_peak: int,
) -> _Linear:
    """Fold the curve and the sample ranges into the model; where sure, make it constant."""
    scale = np.float32(peak / (hi - lo))
    slope_scale = unsure * (scale / np.float32(plane_peak))
    constant = ones * np.float32(peak)
    offset = np.where(unsure, (model.offset - np.float32(lo)) * scale, constant)
    return _Linear([slope * slope_scale for slope in model.slopes], offset)


def _flat(ones: NDArray[np.bool_], cell: int, width: int, height: int, peak: int) -> Samples:
    """Alpha with whole cells at 0 or peak; cells that are not sure are filled later."""
    import cv2

    h, w = ones.shape
    size = (w * cell, h * cell)
    if peak == 255:
        whole = cv2.resize(
            np.where(ones, np.uint8(255), np.uint8(0)), size, interpolation=cv2.INTER_NEAREST
        )
        return np.ascontiguousarray(whole[:height, :width], np.uint8)
    whole = cv2.resize(
        np.where(ones, np.uint16(peak), np.uint16(0)), size, interpolation=cv2.INTER_NEAREST
    )
    return np.ascontiguousarray(whole[:height, :width], np.uint16)


def _fill(
    alpha: Samples,
    planes: Sequence[Samples],
    ratios: list[tuple[int, int]],
    cell: int,
    model: _Linear,
    block: Area,
) -> None:
    """Evaluate the model over one block of the picture and write it into `alpha`."""
    import cv2

    coarsest = max(ratios)
    parts = []
    for ratio in sorted(set(ratios)):
        same = [k for k, other in enumerate(ratios) if other == ratio]
        offset = model.offset if ratio == coarsest else None  # smooth, so where it is cheapest
        some = [planes[k] for k in same], [model.slopes[k] for k in same]
        parts.append(_weighted(*some, offset, cell, ratio, block))
    depth = cv2.CV_8U if alpha.dtype == np.uint8 else cv2.CV_16U
    other = parts[1] if len(parts) > 1 else np.zeros(1)
    alpha[block.top : block.bottom, block.left : block.right] = cv2.add(
        parts[0], other, dtype=depth
    )


def _weighted(
    planes: list[Samples],
    slopes: list[Floats],
    offset: Floats | None,
    cell: int,
    ratio: tuple[int, int],
    block: Area,
) -> Floats:
    """Offset plus the sum of slope times plane over equally sampled planes, as large as `block`."""
    import cv2

    rx, ry = ratio
    area = block
    if ratio != (1, 1):  # one sample more on each side, for the interpolation
        rows, columns = planes[0].shape
        area = Area(
            max(block.top // ry - 1, 0),
            min(-(-block.bottom // ry) + 1, rows),
            max(block.left // rx - 1, 0),
            min(-(-block.right // rx) + 1, columns),
        )
    step = cell // rx, cell // ry
    terms = [] if offset is None else [magnify(offset, step, area)]
    for plane, slope in zip(planes, slopes, strict=True):
        samples = plane[area.top : area.bottom, area.left : area.right]
        fine = magnify(slope, step, area)
        terms.append(np.asarray(cv2.multiply(fine, samples, dtype=cv2.CV_32F), np.float32))
    total = reduce(np.add, terms)
    if ratio == (1, 1):
        return total
    large = cv2.resize(total, (total.shape[1] * rx, total.shape[0] * ry))
    top, left = block.top - area.top * ry, block.left - area.left * rx
    down, across = block.bottom - block.top, block.right - block.left
    return np.asarray(large[top : top + down, left : left + across], np.float32)
