"""Bring a small probability map to the picture's size along its edges: the device form.

The method, its numbers and its sources are those of `vidmatte.compute.cpu.refine`. There the local
models are found near unsure cells and evaluated block by block; here over the whole picture, so
that no shape depends on a value. Maps of cells travel as channels of one tensor, as small filters
cost their launch and not their arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.compute.cpu import refine as cpu
from vidmatte.compute.cuda.filters import (
    Box,
    cell_means,
    dilate,
    resize_bilinear,
    scale_weights,
    stacked,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.frames import Layout

_LEAST_LENGTH = 1e-6  # of a part of the curve, which may be missing (lo 0 or hi 1)


class Refiner:
    """Refines the mattes of one video; see `vidmatte.compute.cpu.refine.refine`.

    `layout` (its alpha plane, if any, is not looked at), `width` and `height` are the stored
    picture's; probability <= `lo` gives alpha 0 and >= `hi` full, linear between.
    """

    def __init__(
        self, layout: Layout, width: int, height: int, *, lo: float, hi: float, device: torch.device
    ) -> None:
        self._size = height, width
        self._lo, self._hi = lo, hi
        self._peak, self._plane_peak = 255 if layout.bits <= 8 else 65535, layout.peak
        self._sample = torch.uint8 if layout.bits <= 8 else torch.uint16
        chroma = -(-height >> layout.shift_y), -(-width >> layout.shift_x)
        shapes = [self._size] if layout.model == "gray" else [self._size, chroma, chroma]
        self._ratios = [cpu.sample_ratio(shape, height, width) for shape in shapes]
        window = cpu.COLOUR if len(shapes) > 1 else cpu.GREY
        self._cell = cpu.cell_px(width, height, self._ratios, window.cells)
        grid = -(-height // self._cell), -(-width // self._cell)
        self._centres = _centres(grid, self._size, self._cell).to(device)
        self._fit = _Fit(grid, window, device)
        self._settle = _Settle(grid, device) if len(shapes) > 1 else None
        self._margins = _Margins(lo, hi, device)
        scale = self._peak / (1 - 2 * cpu.MARGIN)
        scales = [scale / self._plane_peak] * len(shapes) + [scale]
        self._scales = torch.tensor(scales, device=device)[:, None, None]
        # Flat maps end on halves of a level; a hair more, so that their last bits do not decide.
        shifts = [0.0] * len(shapes) + [1 / 128 - cpu.MARGIN * scale]
        self._shifts = torch.tensor(shifts, device=device)[:, None, None]
        full = [0.0] * len(shapes) + [float(self._peak)]
        self._full = torch.tensor(full, device=device)[:, None, None]

    def refine(self, probability: Tensor, planes: Sequence[Tensor]) -> Tensor:
        """Return alpha (..., H, W) in the stored orientation.

        `probability` (..., h, w) float32, 0..1, covers the stored picture at any size; `planes`
        (..., H, W) are the layout's, those beyond the colours are ignored. Leading dimensions, the
        same everywhere, are pictures of a batch.
        """
        lead = probability.shape[:-2]
        groups = self._grouped(planes)
        guide_NCHW = self._guide(groups)
        coarse_N1HW = self._looked_up(probability.reshape(-1, 1, *probability.shape[-2:]))
        least, most = _extremes(coarse_N1HW, cpu.SURE_CELLS)
        ones = least >= self._hi
        unsure = ~ones & (most > self._lo)
        target_N1HW = self._margins(coarse_N1HW)
        if self._settle is not None:
            target_N1HW = self._settle(guide_NCHW, target_N1HW)
        model = torch.addcmul(self._shifts, self._fit(guide_NCHW, target_N1HW), self._scales)
        model = torch.where(unsure, model, ones * self._full)
        return self._evaluated(model, groups).reshape(*lead, *self._size)

    def upsample(self, probability: Tensor) -> Tensor:
        """Return alpha (..., H, W) by bilinear interpolation and the curve alone."""
        curved = (probability - self._lo) * (self._peak / (self._hi - self._lo))
        return self._levels(resize_bilinear(curved, self._size))

    def _levels(self, values: Tensor) -> Tensor:
        return values.clamp(0, self._peak).round_().to(self._sample)

    def _grouped(self, planes: Sequence[Tensor]) -> list[Tensor]:
        """Float samples (N, C, H, W) of planes of one size each: all, or luma and chroma."""
        planes = planes[: len(self._ratios)]
        same = len(set(self._ratios)) == 1
        parts = [planes] if same else [planes[:1], planes[1:]]
        return [stacked(part) for part in parts]

    def _guide(self, groups: list[Tensor]) -> Tensor:
        """Every plane averaged over cells, 0..1."""
        ratios = self._ratios[0], self._ratios[-1]
        parts = [
            cell_means(group, (self._cell // rx, self._cell // ry))
            for group, (rx, ry) in zip(groups, ratios, strict=False)
        ]
        return torch.cat(parts, 1) * (1 / self._plane_peak)

    def _looked_up(self, probability_N1HW: Tensor) -> Tensor:
        """The probability at the centres of the cells."""
        centres = self._centres.expand(len(probability_N1HW), -1, -1, -1)
        return F.grid_sample(probability_N1HW, centres, padding_mode="border", align_corners=False)

    def _evaluated(self, model_NCHW: Tensor, groups: list[Tensor]) -> Tensor:
        """Alpha (N, 1, H, W): the models interpolated and applied to the samples."""
        if len(groups) == 1:
            return self._levels(_applied(model_NCHW, groups[0], self._cell, self._cell))
        rx, ry = self._ratios[-1]
        luma = _applied(model_NCHW[:, :1], groups[0], self._cell, self._cell)
        # The offset is smooth, so it goes where it is cheapest.
        chroma = _applied(model_NCHW[:, 1:], groups[1], self._cell // rx, self._cell // ry)
        return self._levels(luma.add_(_enlarged(chroma, rx, ry, self._size)))


def _enlarged(values: Tensor, step_x: int, step_y: int, size: tuple[int, int]) -> Tensor:
    """Interpolate bilinearly by whole steps, from the upper left corner, and cut to `size`."""
    large = values.shape[-2] * step_y, values.shape[-1] * step_x
    return resize_bilinear(values, large)[..., : size[0], : size[1]]


def _applied(model_NCHW: Tensor, samples_NCHW: Tensor, step_x: int, step_y: int) -> Tensor:
    """Sum slope times sample; a last map beyond the planes is added."""
    count = samples_NCHW.shape[1]
    fine = _enlarged(model_NCHW, step_x, step_y, (samples_NCHW.shape[-2], samples_NCHW.shape[-1]))
    weighted = fine[:, :count] * samples_NCHW
    total = weighted.sum(1, keepdim=True) if count > 1 else weighted
    return total if fine.shape[1] == count else total.add_(fine[:, count:])


def _centres(grid: tuple[int, int], size: tuple[int, int], cell: int) -> Tensor:
    """Cell centres (1, h, w, 2) as x, y from -1 to 1 over the picture, for `grid_sample`."""
    y, x = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * cell / length) - 1
        for count, length in zip(grid, size, strict=True)
    )
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns, rows), -1)[None].to(torch.float32)


def _extremes(values_N1HW: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Least and largest value near every cell."""
    most = dilate(_signed(values_N1HW), radius)
    return -most[:, :1], most[:, 1:]


def _signed(values_N1HW: Tensor) -> Tensor:
    """The negative and the values, (N, 2, h, w): the least is the most of the negative."""
    return torch.cat((-values_N1HW, values_N1HW), 1)


class _Bounds:
    """Between what colours may move the target of every cell: an edge, not what is within it."""

    def __init__(self, device: torch.device) -> None:
        self._held = torch.tensor([-cpu.HELD, 1 - cpu.HELD], device=device)[:, None, None]

    def __call__(self, target_N1HW: Tensor) -> tuple[Tensor, Tensor]:
        signed = _signed(target_N1HW)
        most = dilate(signed, cpu.REACH_CELLS)
        limit = torch.where(most <= self._held, signed, most)
        return -limit[:, :1], limit[:, 1:]


class _Margins:
    """The map from probability to target: what the curve cuts off keeps a margin at either end."""

    def __init__(self, lo: float, hi: float, device: torch.device) -> None:
        lengths = [max(length, _LEAST_LENGTH) for length in (lo, hi - lo, 1 - hi)]
        starts = [lo - lengths[0], lo, 1 - lengths[2]]
        heights = [cpu.MARGIN, 1 - 2 * cpu.MARGIN, cpu.MARGIN]
        slopes = [1 / length for length in lengths]
        shifts = [-start * slope for start, slope in zip(starts, slopes, strict=True)]
        self._slopes, self._shifts, self._heights = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (slopes, shifts, heights)
        )

    def __call__(self, values_N1HW: Tensor) -> Tensor:
        parts = torch.addcmul(self._shifts, values_N1HW, self._slopes).clamp_(0, 1)
        return (parts * self._heights).sum(1, keepdim=True)


class _Settle:
    """Lets the target move to the edge that colours show, in wide windows on a coarser grid."""

    def __init__(self, grid: tuple[int, int], device: torch.device) -> None:
        self._rows = _shrinking(grid[0], device)
        self._columns = _shrinking(grid[1], device).T.contiguous()
        small = len(self._rows), self._columns.shape[1]
        self._fit = _Fit(small, cpu.WIDE, device)
        self._bounds = _Bounds(device)

    def __call__(self, guide_NCHW: Tensor, target_N1HW: Tensor) -> Tensor:
        small = self._rows @ torch.cat((guide_NCHW, target_N1HW), 1) @ self._columns
        model = self._fit(small[:, :-1], small[:, -1:])
        model = _widened(model, *target_N1HW.shape[-2:])
        moved = (model[:, :-1] * guide_NCHW).sum(1, keepdim=True).add_(model[:, -1:])
        return moved.clamp_(*self._bounds(target_N1HW))


def _shrinking(length: int, device: torch.device) -> Tensor:
    """Weights that average `length` cells into coarser ones; beyond the edge the last is repeated.

    Coarse cells that lie wholly beyond it are left out.
    """
    large, small = _aligned(length)
    weights = scale_weights(large, small).to(device)[: -(-length * small // large)]
    weights[:, length - 1] = weights[:, length - 1 :].sum(1)
    return weights[:, :length].contiguous()


def _widened(values: Tensor, height: int, width: int) -> Tensor:
    """Interpolate maps of coarse cells to the grid; what is appended for even scales is cut off."""
    (rows, coarse_rows), (columns, coarse_columns) = _aligned(height), _aligned(width)
    below, right = coarse_rows - values.shape[-2], coarse_columns - values.shape[-1]
    values = F.pad(values, (0, right, 0, below)) if below or right else values
    return resize_bilinear(values, (rows, columns))[..., :height, :width]


def _aligned(length: int) -> tuple[int, int]:
    """The least number of cells, at least `length`, that are whole coarse cells, and these."""
    large = -(-length // cpu.ALIGNED_CELLS) * cpu.ALIGNED_CELLS
    return large, large * cpu.WIDE.cells // cpu.COLOUR.cells


class _Fit:
    """Finds the linear model of alpha around every cell; each pass fits what the last one found.

    Called with guide (N, C, h, w) and target (N, 1, h, w), it returns (N, C + 1, h, w): the slope
    of each plane, then the offset.
    """

    def __init__(self, grid: tuple[int, int], window: cpu.Window, device: torch.device) -> None:
        self._box = Box(*grid, window.radius, device)
        self._passes = window.passes
        self._bounds = _Bounds(device)
        self._ridge = (torch.eye(3) * cpu.EPSILON)[:, :, None, None].to(device)

    def __call__(self, guide_NCHW: Tensor, target_N1HW: Tensor) -> Tensor:
        means, inverse = self._statistics(guide_NCHW)
        floor, ceiling = self._bounds(target_N1HW)
        basis = torch.cat((guide_NCHW, torch.ones_like(target_N1HW)), 1)
        plain = torch.cat((torch.zeros_like(guide_NCHW), target_N1HW), 1)
        model = self._once(basis, means, inverse, target_N1HW, plain)
        last = target = target_N1HW
        for number in range(1, self._passes):
            again = (model * basis).sum(1, keepdim=True)
            if number > 1:
                again = torch.lerp(last, again, 1 + cpu.MOMENTUM)
            last, target = target, again.clamp_(floor, ceiling)
            model = self._once(basis, means, inverse, target, plain)
        return model

    def _statistics(self, guide_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, C, h, w) and inverse covariances (N, C, C, h, w) of every window."""
        count = guide_NCHW.shape[1]
        products = (guide_NCHW[:, :, None] * guide_NCHW[:, None]).flatten(1, 2)
        moments = self._box(torch.cat((guide_NCHW, products), 1))
        means = moments[:, :count]
        products = moments[:, count:].reshape(-1, count, count, *means.shape[-2:])
        covariance = torch.addcmul(products, means[:, :, None], means[:, None], value=-1)
        return means, _inverse(covariance.add_(self._ridge[:count, :count]))

    def _once(
        self, basis: Tensor, means: Tensor, inverse: Tensor, target: Tensor, plain: Tensor
    ) -> Tensor:
        """Fit `target` in every window, average over windows, trust it by what it explains.

        `plain` is the model that looks at no plane: the share that is not trusted.
        """
        moments = self._box(torch.cat((basis, target), 1) * target)
        mean = moments[:, -2:-1]
        joint = torch.addcmul(moments[:, :-2], means, mean, value=-1)
        variance = torch.addcmul(moments[:, -1:], mean, mean, value=-1).clamp_(min=0)
        slopes = (inverse * joint[:, None]).sum(2)
        offset = mean - (slopes * means).sum(1, keepdim=True)
        explained = (slopes * joint).sum(1, keepdim=True).minimum(variance)
        share = explained / (variance + cpu.FLAT)
        doubt = (variance - explained).add_(cpu.DOUBT)
        sums = self._box(torch.cat((slopes, offset, share, basis[:, -1:]), 1) / doubt)
        average = sums[:, :-1] / sums[:, -1:]
        return torch.lerp(plain, average[:, :-1], average[:, -1:])


def _inverse(matrices_NCChw: Tensor) -> Tensor:
    """Invert symmetric matrices of one row or three: cross products over the determinant.

    These lose too much to rounding in float32 where planes are alike.
    """
    if matrices_NCChw.shape[1] == 1:
        return matrices_NCChw.reciprocal()
    exact = matrices_NCChw.to(torch.float64)
    minors: Tensor = torch.linalg.cross(exact.roll(-1, 1), exact.roll(-2, 1), dim=2)
    determinant = (exact[:, :1] * minors[:, :1]).sum(2, keepdim=True)
    return (minors / determinant).to(torch.float32)
