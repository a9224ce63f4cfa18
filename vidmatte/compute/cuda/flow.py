"""Dense optical flow between small grey pictures: DIS, all patches of all pairs at once.

Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search" (arXiv:1603.03590), as OpenCV's
ULTRAFAST form runs it on pictures of this size: one level at a quarter of the size, patches of 8 px
every 4 px, 6 steps of descent from the best start in each of two passes, no refinement.

In OpenCV a pass walks along each row of patches, and a patch may start from where the one before
it ended. Here all descend at once; then each descends again from where its neighbour has ended so
far, and keeps that where OpenCV would have started there. As many such rounds as a row has patches
give OpenCV's flow; with fewer, a displacement comes no further along the row than there are rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.compute.cuda.filters import resize_bilinear, scale_weights

if TYPE_CHECKING:
    from torch import Tensor

_FACTORS = (4, 2, 1)  # how much smaller the level is; the first that leaves enough to search in
_LEVEL_PX = 22  # longer side of the smallest level for which OpenCV takes a quarter of the size
_PATCH_PX, _STRIDE_PX = 8, 4
_STEPS = 6
_ROUNDS = (4, 3)  # in the forward and the backward pass (benchmarks/NOTES.md, On a device)
_LEAST_DETERMINANT = 1e-3


class Flow:
    """Finds, for each pixel of one picture, where it is in another, for pictures of one `shape`.

    A picture with a side of less than 8 px shows no motion.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        height, width = self._shape = shape
        self._factor = next((f for f in _FACTORS if _is_enough(shape, f)), 1)
        level = height // self._factor, width // self._factor
        self._rows = scale_weights(height, level[0]).to(device)
        self._columns = scale_weights(width, level[1]).to(device).T.contiguous()
        self._search: _Search | None = None
        if min(level) >= _PATCH_PX:
            self._search = _Search(level, device)
            self._spread = _Spread(level, device)

    def __call__(self, now_Nhw: Tensor, then_Nhw: Tensor) -> Tensor:
        """Return (N, 2, h, w): how far right and down each pixel of `now` was in `then`, in px.

        Both are float32 grey of whole levels 0..255.
        """
        if self._search is None:
            return torch.zeros_like(now_Nhw)[:, None].repeat(1, 2, 1, 1)
        level = torch.round(self._rows @ torch.cat((now_Nhw, then_Nhw)) @ self._columns)
        now, then = level.chunk(2)
        dense = self._spread(now, then, self._search(now, then))
        return resize_bilinear(dense, self._shape) * self._factor


class _Search:
    """Finds a displacement (x, y) in px for each patch of a grid; a patch is (8 * 8) samples."""

    def __init__(self, level: tuple[int, int], device: torch.device) -> None:
        rows, columns = (torch.arange(n) * _STRIDE_PX for n in _grid_size(level))
        inner = torch.arange(_PATCH_PX)
        within = _points(inner, inner).reshape(-1, 2)
        self._unit = _unit(level).to(device)
        self._places = ((_points(columns, rows)[:, :, None] + within) * _unit(level) - 1).to(device)
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        self._sobel = torch.stack((sobel, sobel.T))[:, None].to(device)
        self._adjugate = torch.tensor([[1.0, -1], [-1, 1]]).to(device)

    def __call__(self, now: Tensor, then: Tensor) -> Tensor:
        """Return the displacements, (N, rows, columns, 2), of the grid's patches."""
        slopes = F.conv2d(F.pad(now[:, None], (1, 1, 1, 1), mode="reflect"), self._sobel)
        patches = torch.cat((now[:, None], slopes), 1)
        for dim in (2, 3):
            patches = patches.unfold(dim, _PATCH_PX, _STRIDE_PX)
        looks, *slope = patches.flatten(4).unbind(1)
        target = _Target(then[:, None], looks, self._descent(torch.stack(slope, -1)))
        found = torch.zeros_like(target.descent[..., 0, :])
        for rounds, is_forward in zip(_ROUNDS, (True, False), strict=True):
            found = self._walk(target, found, rounds, is_forward=is_forward)
        return found

    def _descent(self, slopes: Tensor) -> Tensor:
        """Return the matrix that makes a patch's difference the step of descent, (..., 64, 2).

        That is the inverse Hessian times the slopes less their mean, which leaves the patch's mean
        out of the difference (section 2.1 of the paper; OpenCV's mean normalisation).
        """
        hessian = slopes.transpose(-1, -2) @ slopes
        across = hessian[..., 0, 1]
        determinant = hessian[..., 0, 0] * hessian[..., 1, 1] - across * across
        is_flat = determinant.abs() < _LEAST_DETERMINANT
        determinant = torch.where(is_flat, _LEAST_DETERMINANT, determinant)[..., None, None]
        inverse = hessian.flip(-1, -2) * self._adjugate / determinant
        centred = slopes - slopes.mean(-2, keepdim=True)
        return centred @ inverse

    def _walk(self, target: _Target, start: Tensor, rounds: int, *, is_forward: bool) -> Tensor:
        """Descend from each patch's own start, or from its neighbour's end where that looks more
        alike; the neighbour is the one before it on the way."""
        alone, error = self._descend(target, start)
        found = alone
        for _ in range(rounds):
            if is_forward:
                begin = torch.cat((start[:, :, :1], found[:, :, :-1]), 2)
            else:
                begin = torch.cat((found[:, :, 1:], start[:, :, -1:]), 2)
            led, led_error = self._descend(target, begin)
            found = torch.where(led_error < error, led, alone)
        return found

    def _descend(self, target: _Target, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return where descents from `start` end, and how unlike the patches are at `start`.

        The step at which they no longer get more alike is the last one. An end further away than a
        patch is not believed.
        """
        difference = self._difference(target, start)
        start_error = error = _variance(difference)
        found = start - target.step(difference)
        going: Tensor | None = None
        for _ in range(_STEPS - 2):
            difference = self._difference(target, found)
            found = _further(found, target.step(difference), going)
            new_error = _variance(difference)
            is_better = new_error < error
            going = is_better if going is None else going * is_better
            error = new_error
        found = _further(found, target.step(self._difference(target, found)), going)
        moved = torch.linalg.vector_norm(found - start, dim=-1, keepdim=True)
        return torch.where(moved <= _PATCH_PX, found, start), start_error

    def _difference(self, target: _Target, displacement: Tensor) -> Tensor:
        """Return how what is at the displaced places differs from the patches.

        Places far outside see the edges repeated, as OpenCV's do, which it keeps near.
        """
        places = torch.addcmul(self._places, displacement[..., None, :], self._unit)
        return _sample(target.then, places.flatten(1, 2)).reshape(target.looks.shape) - target.looks


class _Target(NamedTuple):
    """What is searched: `then` (N, 1, h, w), and for each patch its `looks` (N, rows, columns, 64)
    and the matrix `descent` (N, rows, columns, 64, 2)."""

    then: Tensor
    looks: Tensor
    descent: Tensor

    def step(self, difference: Tensor) -> Tensor:
        return (difference[..., None, :] @ self.descent)[..., 0, :]


def _variance(difference: Tensor) -> Tensor:
    """How unlike patches are, whatever their means: the mean-normalised squared difference."""
    return difference.var(-1, correction=0, keepdim=True)


def _further(found: Tensor, step: Tensor, going: Tensor | None) -> Tensor:
    return found - step if going is None else torch.addcmul(found, going, step, value=-1)


class _Spread:
    """Makes displacements of patches those of pixels.

    Each pixel takes the mean of the up to four patches that cover it, weighted by how well each
    explains the pixel (section 2.2, eq. 3 of the paper). Pixels at the far edges that no patch
    covers take the nearest patch's.
    """

    def __init__(self, level: tuple[int, int], device: torch.device) -> None:
        rows, columns = _grid_size(level)
        row, row_counts = _covering(level[0], rows)
        column, column_counts = _covering(level[1], columns)
        patch = row[:, None, :, None] * columns + column[None, :, None, :]
        counts = row_counts[:, None, :, None] * column_counts[None, :, None, :]
        self._patch = patch.reshape(-1).to(device)
        self._counts = counts.reshape(-1, 4).float().to(device)
        pixels = _points(torch.arange(level[1]), torch.arange(level[0])).reshape(-1, 1, 2)
        self._unit = _unit(level).to(device)
        self._places = (pixels * _unit(level) - 1).to(device)
        self._level = level

    def __call__(self, now: Tensor, then: Tensor, displacement: Tensor) -> Tensor:
        """Return (N, 2, h, w) of displacements (N, rows, columns, 2)."""
        each = displacement.flatten(1, 2).index_select(1, self._patch)
        each = each.reshape(len(each), -1, 4, 2)
        seen = _sample(then[:, None], torch.addcmul(self._places, each, self._unit))[:, 0]
        apart = (seen - now.flatten(1)[..., None]).abs()
        weight = (self._counts / apart.clamp(min=1))[..., None]
        mean = (each * weight).sum(2) / weight.sum(2)
        return mean.transpose(1, 2).reshape(-1, 2, *self._level)


def _is_enough(shape: tuple[int, int], factor: int) -> bool:
    return min(shape) // factor >= _PATCH_PX and max(shape) // factor >= _LEVEL_PX


def _grid_size(level: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns of patches there are."""
    rows, columns = (1 + (side - _PATCH_PX) // _STRIDE_PX for side in level)
    return rows, columns


def _covering(length: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the two patches over each of `length` samples, (length, 2), and which of them count.

    Where there is one only, it is given twice and counts once.
    """
    last = (torch.arange(length) // _STRIDE_PX).clamp(max=count - 1)
    first = torch.minimum((torch.arange(length) // _STRIDE_PX - 1).clamp(min=0), last)
    counts = torch.stack((torch.ones_like(first), (first < last).long()), -1)
    return torch.stack((first, last), -1), counts


def _unit(level: tuple[int, int]) -> Tensor:
    """Return 1 px in the units of `grid_sample`, (x, y): 2 is from the first to the last sample."""
    return torch.tensor([2 / (level[1] - 1), 2 / (level[0] - 1)])


def _points(columns: Tensor, rows: Tensor) -> Tensor:
    """Return all (x, y) of a grid, (rows, columns, 2) float32."""
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), -1).float()


def _sample(picture: Tensor, places: Tensor) -> Tensor:
    """Read (N, 1, h, w) at places (N, i, j, 2) between samples; edges are repeated."""
    return F.grid_sample(
        picture, places, mode="bilinear", padding_mode="border", align_corners=True
    )
