"""Small filters as OpenCV defines them, on (..., h, w) float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from torch import Tensor


def box_mean(values: Tensor, radius: int) -> Tensor:
    """Average squares of side `2 * radius + 1`, as OpenCV does by default (BORDER_REFLECT_101).

    The picture is mirrored at its edges, whose own samples are not repeated. Sides must be longer
    than `radius`.
    """
    edges = (radius,) * 4
    return _pooled(
        values,
        lambda x: F.avg_pool2d(F.pad(x, edges, mode="reflect"), 2 * radius + 1, stride=1),
    )


class Box:
    """Averages squares of a mirrored picture whose edge repeats (BORDER_REFLECT), of any size."""

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


def scale_weights(length: int, count: int, offset: float = 0.0) -> Tensor:
    """Return the (count, length) matrix that scales a line by area, on the CPU.

    That is area means, in which a sample that two cells share counts by its part (OpenCV's
    INTER_AREA, swscale's AREA), or, as swscale does, linear to a larger line; edges are repeated.
    The line is read `offset` samples further on.
    """
    step = length / count
    centre = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) * step + offset
    edges = torch.arange(length + 1, dtype=torch.float64)
    if count < length:
        edges[0], edges[-1] = -step, length + step
        low, high = (centre - step / 2), (centre + step / 2)
        overlap = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
        return (overlap.clamp(min=0) / step).float()
    at = (centre - 0.5).clamp(0, length - 1)
    return (1 - (at - edges[:-1]).abs()).clamp(min=0).float()


def _pooled(values: Tensor, operation: object) -> Tensor:
    """Apply an operation on (n, c, h, w) to (..., h, w)."""
    assert callable(operation)
    lead = values.shape[:-2]
    result: Tensor = operation(values.reshape(1, -1, *values.shape[-2:]))
    return result.reshape(*lead, *result.shape[-2:])
