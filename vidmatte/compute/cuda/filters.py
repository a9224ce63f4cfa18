"""Small filters as OpenCV defines them, on (..., h, w) float tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from torch import Tensor


def box_mean(values: Tensor, radius: int, *, repeat_edge_sample: bool = True) -> Tensor:
    """Average squares of side `2 * radius + 1`; the picture is mirrored at its edges.

    The mirror repeats the edge's own sample (OpenCV's BORDER_REFLECT) or does not (its default,
    BORDER_REFLECT_101). Sides must be longer than `radius`.
    """
    first = 0 if repeat_edge_sample else 1
    for dim in (-2, -1):
        length = values.shape[dim]
        head = values.narrow(dim, first, radius).flip(dim)
        tail = values.narrow(dim, length - radius - first, radius).flip(dim)
        values = torch.cat((head, values, tail), dim)
    return _pooled(values, lambda x: F.avg_pool2d(x, 2 * radius + 1, stride=1))


def dilate(values: Tensor, radius: int) -> Tensor:
    """Return the largest value within a square of side `2 * radius + 1`, inside the picture."""
    side = 2 * radius + 1
    return _pooled(values, lambda x: F.max_pool2d(x, side, stride=1, padding=radius))


def erode(values: Tensor, radius: int) -> Tensor:
    """Return the smallest value within a square of side `2 * radius + 1`, inside the picture."""
    return -dilate(-values, radius)


def resize_bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize to (h, w) as OpenCV's INTER_LINEAR does: pixel centres, edges repeated."""
    if values.shape[-2:] == size:
        return values
    return _pooled(
        values, lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    )


def area_weights(length: int, count: int, device: torch.device) -> Tensor:
    """Return the (count, length) matrix that averages `length` samples into `count` cells.

    A sample that two cells share counts in each by its part (OpenCV's INTER_AREA, swscale's AREA).
    For `count` <= `length`.
    """
    step = length / count
    start = torch.arange(count, dtype=torch.float64)[:, None] * step
    sample = torch.arange(length, dtype=torch.float64)[None]
    overlap = torch.minimum(start + step, sample + 1) - torch.maximum(start, sample)
    return (overlap.clamp(min=0) / step).to(device, torch.float32)


def _pooled(values: Tensor, operation: object) -> Tensor:
    """Apply an operation on (n, c, h, w) to (..., h, w)."""
    assert callable(operation)
    lead = values.shape[:-2]
    result: Tensor = operation(values.reshape(1, -1, *values.shape[-2:]))
    return result.reshape(*lead, *result.shape[-2:])
