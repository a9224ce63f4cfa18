"""Bring a small probability map to the picture's size along the picture's own edges.

Fast guided filter (He & Sun 2015, arXiv:1505.00996) with a guide of all planes (He, Sun & Tang
2013, "Guided Image Filtering", eq. 19): in each window alpha is a linear function of the planes;
its coefficients are found on a grid of square cells and applied to the full planes in their own
layout, strip by strip, so that no full-size float picture exists. First a wide search settles
where colours put the edge, filter upon filter on a coarser grid; then narrow windows follow it.
The model's fixed curve is applied in two halves, around the filter. Where a whole window is sure
of itself, alpha is exactly 0 or full without any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, gcd
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidmatte.compute.cpu.cells import Area, average, blocks, magnify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Samples

    Floats = NDArray[np.float32]

# Best of those tried (benchmarks/NOTES.md, Matte quality).
EPSILON = 2e-5  # of planes 0..1; below it a window's variance counts as noise
FLAT = 1e-4  # variance of a target below which there is nothing to explain
DOUBT = 3e-3  # variance left unexplained that halves a window's say among its neighbours
SURE_CELLS = 2  # a cell whose neighbours up to here are all of one mind is exact
# Of the way from 0 to 1 a target spends this much on what the curve cuts off at either end. The
# filter then starts with a softer map than the matte will be, and motion blur stays soft.
MARGIN = 0.125
_SLACK_CELLS = 6  # as far around unsure cells the fit sees
REACH_CELLS = 1  # what colours make of a cell stays between the targets of those so near,
HELD = 0.8  # and where all of those are that sure of the same, it stays as it is


class Window(NamedTuple):
    """How the local models of alpha are found."""

    cells: int  # along the picture's longer side
    radius: int  # in cells
    passes: int


COLOUR, GREY = Window(160, 2, 3), Window(240, 1, 1)  # grey alone is misled by wide windows
WIDE = Window(120, 2, 4)
ALIGNED_CELLS = COLOUR.cells // gcd(COLOUR.cells, WIDE.cells)  # hold whole cells of the wide grid
MOMENTUM = 1.0  # of the last step of a pass, added to the next: as good as twice the passes


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
    window = COLOUR if len(planes) > 1 else GREY
    ratios = [sample_ratio(plane.shape, height, width) for plane in planes]
    cell = cell_px(width, height, ratios, window.cells)
    guide = [
        average(plane, (cell // rx, cell // ry), (1 << bits) - 1)
        for plane, (rx, ry) in zip(planes, ratios, strict=True)
    ]
    coarse = _sample(probability, width, height, cell)
    around = np.ones((2 * SURE_CELLS + 1,) * 2, np.uint8)
    ones = cv2.erode(coarse, around) >= hi
    unsure = ~ones & (cv2.dilate(coarse, around) > lo)
    peak = 255 if bits <= 8 else 65535
    alpha = _flat(ones, cell, width, height, peak)
    if not unsure.any():
        return alpha
    target = np.interp(coarse, (0, lo, hi, 1), (0, MARGIN, 1 - MARGIN, 1)).astype(np.float32)
    model = _curved(_model(guide, target, unsure, window), unsure, ones, peak, (1 << bits) - 1)
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


def sample_ratio(shape: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    """Return (x, y) picture samples per sample of a plane of `shape`."""
    return -(-width // shape[1]), -(-height // shape[0])


def cell_px(width: int, height: int, ratios: list[tuple[int, int]], cells: int) -> int:
    """Return a cell's side, whole samples of every plane, for about `cells` on the longer side."""
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


def _model(
    guide: list[Floats], target: Floats, unsure: NDArray[np.bool_], window: Window
) -> _Linear:
    """Find the model where cells are unsure; zeros far from them, where nobody looks."""
    rows, columns = (np.flatnonzero(unsure.any(axis=axis)) for axis in (1, 0))
    part = tuple(_around(at, _SLACK_CELLS) for at in (rows, columns))
    near, start = [np.ascontiguousarray(g[part]) for g in guide], np.ascontiguousarray(target[part])
    if len(guide) > 1:
        start = _settled(near, start)
    found = _fit(near, start, window)
    whole = [np.zeros_like(target) for _ in range(len(guide) + 1)]
    for empty, values in zip(whole, [*found.slopes, found.offset], strict=True):
        empty[part] = values
    return _Linear(whole[:-1], whole[-1])


def _around(indices: NDArray[np.intp], slack: int) -> slice:
    """Cover `indices` and more, from where a coarse cell begins to where one ends."""
    start, stop = max(indices[0] - slack, 0), indices[-1] + slack + 1
    return slice(start // ALIGNED_CELLS * ALIGNED_CELLS, -(-stop // ALIGNED_CELLS) * ALIGNED_CELLS)


def _settled(guide: list[Floats], target: Floats) -> Floats:
    """Let the target move to the edge that colours show, in wide windows on a coarser grid."""
    import cv2

    h, w = target.shape
    shrink = WIDE.cells / COLOUR.cells
    below, right = -h % ALIGNED_CELLS, -w % ALIGNED_CELLS
    rows, columns = ceil(h * shrink), ceil(w * shrink)

    def shrunk(values: Floats) -> Floats:
        whole = cv2.copyMakeBorder(values, 0, below, 0, right, cv2.BORDER_REPLICATE)
        small = cv2.resize(whole, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[:rows, :columns], np.float32)

    def enlarged(values: Floats) -> Floats:
        large = cv2.resize(values, None, fx=1 / shrink, fy=1 / shrink)
        return np.asarray(large[:h, :w], np.float32)

    model = _fit([shrunk(g) for g in guide], shrunk(target), WIDE)
    moved = _dot([enlarged(slope) for slope in model.slopes], guide) + enlarged(model.offset)
    return _within(moved, *_bounds(target))


def _within(values: Floats, low: Floats, high: Floats) -> Floats:
    return np.minimum(np.maximum(values, low), high)


def _bounds(target: Floats) -> tuple[Floats, Floats]:
    """Between what colours may move the target of every cell: an edge, not what is within it."""
    import cv2

    around = np.ones((2 * REACH_CELLS + 1,) * 2, np.uint8)
    low, high = cv2.erode(target, around), cv2.dilate(target, around)
    floor = np.where(low >= HELD, target, low)
    ceiling = np.where(high <= 1 - HELD, target, high)
    return np.asarray(floor, np.float32), np.asarray(ceiling, np.float32)


def _fit(guide: list[Floats], target: Floats, window: Window) -> _Linear:
    """Find the linear model of alpha around every cell; each pass fits what the last one found."""
    means = [_box(plane, window.radius) for plane in guide]
    inverse = _inverse_covariance(guide, means, window.radius)
    plain, last = target, target
    bounds = _bounds(target)
    for remaining in reversed(range(window.passes)):
        model = _fit_once(guide, means, inverse, target, plain, window.radius)
        if remaining:
            again = _dot(model.slopes, guide) + model.offset
            if target is not plain:
                again += np.float32(MOMENTUM) * (again - last)
            last, target = target, _within(again, *bounds)
    return model


def _fit_once(
    guide: list[Floats],
    means: list[Floats],
    inverse: list[list[Floats]],
    target: Floats,
    plain: Floats,
    radius: int,
) -> _Linear:
    """Fit `target` in every window, average over windows, trust it by what it explains.

    Windows that leave less unexplained weigh more in the average, so that an edge between two
    colours is not spoilt by a third one near it. The share of the variance that colour explains
    (R squared) is the model's weight against the plain map: among leaves, where colour tells
    nothing, a wrong model would tear holes and wisps.
    """
    mean = _box(target, radius)
    joint = [_box(g * target, radius) - m * mean for g, m in zip(guide, means, strict=True)]
    slopes = [_dot(row, joint) for row in inverse]
    offset = mean - _dot(slopes, means)
    variance = np.maximum(_box(target * target, radius) - mean * mean, np.float32(0))
    explained = _within(_dot(slopes, joint), np.zeros_like(variance), variance)
    say = np.asarray(1 / (variance - explained + np.float32(DOUBT)), np.float32)
    over = np.asarray(1 / _box(say, radius), np.float32)
    share = say * (explained / (variance + np.float32(FLAT)))
    trust = _box(np.asarray(share, np.float32), radius) * over
    scale = np.asarray(trust * over, np.float32)
    blended = _box(say * offset, radius) * scale + plain * (1 - trust)
    return _Linear([_box(say * slope, radius) * scale for slope in slopes], blended)


def _dot(left: Sequence[Floats], right: Sequence[Floats]) -> Floats:
    return np.asarray(reduce(np.add, map(np.multiply, left, right)), np.float32)


def _inverse_covariance(
    guide: list[Floats], means: list[Floats], radius: int
) -> list[list[Floats]]:
    """Invert each window's covariance, regularised by epsilon, as L D L'.

    Cramer's rule loses ten levels of alpha to rounding where planes are alike, as R, G and B are.
    """
    n = len(guide)
    c = [
        [_box(guide[i] * guide[j], radius) - means[i] * means[j] for j in range(i + 1)]
        for i in range(n)
    ]
    for i in range(n):
        c[i][i] += np.float32(EPSILON)
    if n == 1:
        return [[np.reciprocal(c[0][0])]]
    assert n == 3, "one plane or three"
    (a,), (b, e), (d, f, g) = c
    p = 1 / a
    x, y = b * p, d * p
    f, q = f - y * b, 1 / (e - x * b)
    z = f * q
    r = 1 / (g - y * d - z * f)
    v, w = x * z - y, -z * r
    t, u = v * r, q - z * w
    s = -x * q - z * t
    return [[p + x * x * q + v * t, s, t], [s, u, w], [t, w, r]]


def _curved(
    model: _Linear,
    unsure: NDArray[np.bool_],
    ones: NDArray[np.bool_],
    peak: int,
    plane_peak: int,
) -> _Linear:
    """Fold margins and sample ranges into the model; where sure, make it constant."""
    scale = np.float32(peak / (1 - 2 * MARGIN))
    slope_scale = unsure * (scale / np.float32(plane_peak))
    constant = ones * np.float32(peak)
    # Flat maps end on halves of a level; a hair more, so that their last bits do not decide.
    within = (model.offset - np.float32(MARGIN)) * scale + np.float32(1 / 128)
    offset = np.where(unsure, within, constant)
    return _Linear([slope * slope_scale for slope in model.slopes], offset)


def _flat(ones: NDArray[np.bool_], cell: int, width: int, height: int, peak: int) -> Samples:
    """Alpha with whole cells at 0 or peak; cells that are not sure are filled later.

    Repeating is nine times as fast as OpenCV's enlargement to the nearest.
    """
    level = np.where(ones, np.uint8(255), np.uint8(0)) if peak == 255 else ones * np.uint16(peak)
    whole: Samples = np.repeat(np.repeat(level, cell, axis=1), cell, axis=0)
    return np.ascontiguousarray(whole[:height, :width])  # type: ignore[return-value]


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
