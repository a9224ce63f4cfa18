"""Small filters as OpenCV defines them, on (..., h, w) float tensors."""

from __future__ import annotations

from collections.abc import Sequence
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


class Box:
    """Averages squares like `box_mean` (BORDER_REFLECT) in two kernels, on any size."""

    def __init__(self, height: int, width: int, radius: int, device: torch.device) -> None:
        self._side = 2 * radius + 1
        self._rows = _mirrored(height, radius)[:, None].to(device)
        self._columns = _mirrored(width, radius).to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """Average (n, c, h, w)."""
        return F.avg_pool2d(values[:, :, self._rows, self._columns], self._side, stride=1)


def _mirrored(length: int, radius: int) -> Tensor:
    """Indices of `length` samples and `radius` more at either end, as often mirrored as needed."""
    index = torch.arange(-radius, length + radius) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def stacked(planes: Sequence[Tensor]) -> Tensor:
    """Copy C equal planes (..., H, W) of any integer type into float32 (N, C, H, W)."""
    *lead, height, width = planes[0].shape
    whole = planes[0].new_empty((*lead, len(planes), height, width), dtype=torch.float32)
    for k, plane in enumerate(planes):
        whole[..., k, :, :].copy_(plane)
    return whole.reshape(-1, len(planes), height, width)


def cell_means(planes: Tensor, step: tuple[int, int]) -> Tensor:
    """Average whole samples (n, c, h, w) over cells of `step` (x, y), rounded as OpenCV does.

    A cell that reaches beyond the edge repeats the edge. Sides of even steps are halved first, and
    each half is rounded up at .5; what remains is rounded to even.
    """
    step_x, step_y = step
    below, right = -planes.shape[-2] % step_y, -planes.shape[-1] % step_x
    if below or right:
        planes = F.pad(planes, (0, right, 0, below), mode="replicate")
    while step_x % 2 == 0 and step_y % 2 == 0:
        step_x, step_y = step_x // 2, step_y // 2
        planes = F.avg_pool2d(planes, 2).add_(0.5).floor_()
    return F.avg_pool2d(planes, (step_y, step_x)).round_() if step_x * step_y > 1 else planes


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
