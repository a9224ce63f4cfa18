"""Estimate the subject's own colour where it is mixed with the old background.

Each sample is alpha * foreground + (1 - alpha) * background. Smooth estimates of both come from
what is surely inside and outside (as in Germer et al. 2020, arXiv:2006.14970, by levels; as in
Forte & Pitie 2021, arXiv:2106.10983, blurred once instead of solved); what they leave of the
sample is then given to the foreground by regularised least squares. Planes are independent, so
this works on Y, U and V as well as on R, G and B.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.cells import Area, average, blocks, magnify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Samples

    Floats = NDArray[np.float32]

CELL_PX = 4
CERTAINTY = 6  # weight of a sample in the smooth estimates: alpha to this power
DISTRUST = 0.1  # of alpha: the regulariser, in squared alpha


def estimate_planes(planes: Sequence[Samples], alpha: Samples) -> list[Samples]:
    """Return new planes that hold the foreground's colour alone (straight alpha).

    `planes` are (H, W) of uint8 or uint16, all as large as `alpha`, which is uint8 0..255 or uint16
    0..65535; for subsampled chroma pass alpha at its size. Nothing is written to; rows may be
    padded. Samples with full alpha are bit-equal; at alpha 0 the nearest foreground colour
    continues, so that neither scaling nor chroma subsampling brings the background back. A plane
    without any foreground becomes flat.
    """
    import cv2

    peak = 255 if alpha.dtype == np.uint8 else 65535
    coarse_alpha = alpha if peak == 255 else cv2.convertScaleAbs(alpha, alpha=1 / 257)
    inside = _smooth(planes, np.asarray(cv2.LUT(coarse_alpha, _certainty()), np.uint8))
    outside = _smooth(planes, np.asarray(cv2.LUT(coarse_alpha, _certainty()[::-1]), np.uint8))
    mixed = np.asarray(cv2.inRange(alpha, np.ones(1), np.full(1, peak - 1.0)), np.uint8)
    busy = average(mixed, (CELL_PX, CELL_PX), 255) > 0
    full = cv2.inRange(alpha, np.full(1, float(peak)), np.full(1, float(peak)))
    height, width = alpha.shape
    areas = list(blocks(busy, CELL_PX, width, height))
    found = []
    for plane, foreground, background in zip(planes, inside, outside, strict=True):
        result = _enlarged(foreground, plane)
        for area in areas:
            _solve(result, plane, alpha, peak, foreground, background, area)
        if plane.dtype == np.uint16:  # the depth is not told; never brighter than the picture
            np.minimum(result, plane.max(), out=result)
        cv2.copyTo(plane, full, result)
        found.append(result)
    return found


@lru_cache(maxsize=1)
def _certainty() -> NDArray[np.uint8]:
    """Weight by alpha, 0 at 0, never 0 above it."""
    powers = (np.arange(256) / 255) ** CERTAINTY
    return np.asarray(np.ceil(powers * 255), np.uint8)


def _smooth(planes: Sequence[Samples], weight: Samples) -> list[Floats]:
    """The weighted local mean of each plane per cell; where there is no weight, from afar."""
    import cv2

    step = CELL_PX, CELL_PX
    weights = np.asarray(cv2.blur(average(weight, step, 255), (3, 3)), np.float32)
    if not weights.any():
        return [np.full_like(weights, plane.mean()) for plane in planes]
    sums = []
    for plane in planes:
        depth = cv2.CV_8U if plane.dtype == np.uint8 else cv2.CV_16U
        product: Samples = cv2.multiply(plane, weight, scale=1 / 255, dtype=depth)  # type: ignore[assignment]
        sums.append(cv2.blur(average(product, step, 1), (3, 3)))
    stacked = _push_pull(np.dstack([*sums, weights]).astype(np.float32))
    return [np.ascontiguousarray(stacked[..., k]) for k in range(len(planes))]


def _push_pull(sums: Floats) -> Floats:
    """Divide sums by their weight, the last channel; fill from coarser levels where it is small.

    Gortler et al. 1996, "The Lumigraph", section 3.4.
    """
    import cv2

    weight = sums[..., -1:]
    mean = sums / np.maximum(weight, np.float32(1e-6))
    if min(sums.shape[:2]) <= 2:
        whole = sums.sum((0, 1)) / sums[..., -1].sum()
        return np.asarray(mean if weight.all() else np.broadcast_to(whole, sums.shape))
    coarse = _push_pull(np.asarray(cv2.pyrDown(sums), np.float32))
    fill = cv2.pyrUp(coarse, dstsize=(sums.shape[1], sums.shape[0]))
    trust = np.minimum(4 * weight, 1)
    return np.asarray(fill + (mean - fill) * trust, np.float32)


def _enlarged(cells: Floats, plane: Samples) -> Samples:
    import cv2

    h, w = cells.shape
    size = (w * CELL_PX, h * CELL_PX)
    depth = cv2.CV_8U if plane.dtype == np.uint8 else cv2.CV_16U
    large = cv2.resize(cv2.add(cells, np.zeros(1), dtype=depth), size)
    rows, columns = plane.shape
    whole: Samples = np.ascontiguousarray(large[:rows, :columns])  # type: ignore[assignment]
    return whole


def _solve(
    result: Samples,
    plane: Samples,
    alpha: Samples,
    peak: int,
    foreground: Floats,
    background: Floats,
    area: Area,
) -> None:
    """Minimise (alpha F + (1 - alpha) B - I)^2 plus the distance to the smooth F and B."""
    import cv2

    part = slice(area.top, area.bottom), slice(area.left, area.right)
    opacity = alpha[part] * np.float32(1 / peak)
    through = 1 - opacity
    smooth = magnify(foreground, (CELL_PX, CELL_PX), area)
    behind = magnify(background, (CELL_PX, CELL_PX), area)
    left_over = cv2.subtract(plane[part], opacity * smooth + through * behind, dtype=cv2.CV_32F)
    share = opacity / (opacity * opacity + through * through + np.float32(DISTRUST))
    depth = cv2.CV_8U if plane.dtype == np.uint8 else cv2.CV_16U
    result[part] = cv2.add(smooth, share * left_over, dtype=depth)
