"""Edits of alpha that a user may ask for; every one is off by default.

All take alpha (H, W), uint8 0..255 or uint16 0..65535, and return a new one like it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vidmatte.frames import Samples


def adjust(
    alpha: Samples,
    *,
    largest: bool = False,
    threshold: float | None = None,
    grow_px: int = 0,
    feather_px: float = 0.0,
) -> Samples:
    """Apply what is asked for, in this order: `largest` subject, threshold, grow, feather."""
    if largest:
        alpha = keep_largest_subject(alpha)
    if threshold is not None:
        alpha = binarize(alpha, threshold)
    if grow_px:
        alpha = grow(alpha, grow_px)
    if feather_px > 0:
        alpha = feather(alpha, feather_px)
    return alpha


def binarize(alpha: Samples, threshold: float) -> Samples:
    """Make alpha full from `threshold` (0..1) on and 0 below it."""
    peak = np.iinfo(alpha.dtype).max
    return np.where(alpha >= threshold * peak, alpha.dtype.type(peak), alpha.dtype.type(0))


def grow(alpha: Samples, radius_px: int) -> Samples:
    """Move the edge outwards by `radius_px` pixels, or inwards if negative."""
    import cv2

    side = 2 * abs(radius_px) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    move = cv2.dilate if radius_px > 0 else cv2.erode
    moved: Samples = move(alpha, disc)  # type: ignore[assignment]
    return moved


def feather(alpha: Samples, radius_px: float) -> Samples:
    """Soften the edge over about `radius_px` pixels to either side."""
    import cv2

    soft: Samples = cv2.GaussianBlur(alpha, (0, 0), radius_px / 2)  # type: ignore[assignment]
    return soft


def keep_largest_subject(alpha: Samples) -> Samples:
    """Keep the largest connected part of what is more than half there, with its soft edge.

    A soft sample stays if it is connected with that part and no other part is nearer. Nothing
    more than half there gives 0 everywhere.
    """
    import cv2

    solid = (alpha > np.iinfo(alpha.dtype).max // 2).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(solid)
    if count == 1:
        return np.zeros_like(alpha)
    largest = parts == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    _, nearest = cv2.distanceTransformWithLabels(
        1 - solid, cv2.DIST_L2, cv2.DIST_MASK_3, labelType=cv2.DIST_LABEL_CCOMP
    )
    _, islands = cv2.connectedComponents((alpha > 0).astype(np.uint8))
    row, column = np.unravel_index(np.argmax(largest), largest.shape)
    mine = (nearest == nearest[row, column]) & (islands == islands[row, column])
    return np.where(mine, alpha, alpha.dtype.type(0))
