"""Estimate the subject's own colour where it is mixed with the old background: the device form.

The method, its numbers and its sources are those of `vidmatte.compute.cpu.foreground`. There soft
edges are solved block by block; here every sample is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.compute.cpu.foreground import CELL_PX, CERTAINTY, DISTRUST
from vidmatte.compute.cuda.filters import cell_means, resize_bilinear, stacked

if TYPE_CHECKING:
    from torch import Tensor


def estimate_planes(planes: Sequence[Tensor], alpha: Tensor) -> list[Tensor]:
    """Return new planes that hold the foreground's colour alone (straight alpha).

    `planes` are (..., H, W) of uint8 or uint16, all as large as `alpha`, which is uint8 0..255 or
    uint16 0..65535; for subsampled chroma pass alpha at its size. Leading dimensions are pictures
    of a batch. Samples with full alpha are bit-equal; at alpha 0 the nearest foreground colour
    continues. A plane without any foreground becomes flat.
    """
    peak = 255 if alpha.dtype == torch.uint8 else 65535
    samples_NCHW, alpha_N1HW = stacked(planes), stacked([alpha])
    levels_N1HW = alpha_N1HW if peak == 255 else (alpha_N1HW * (1 / 257)).round_()
    inside, outside = _smooth(samples_NCHW, levels_N1HW)
    found = _solved(samples_NCHW, alpha_N1HW * (1 / peak), inside, outside)
    if planes[0].dtype == torch.uint8:
        found = found.clamp_(0, 255)
    else:  # the depth is not told; never brighter than the picture
        brightest = samples_NCHW.amax((-2, -1), keepdim=True)
        found = found.clamp_(torch.zeros_like(brightest), brightest)
    found = torch.where(alpha_N1HW == peak, samples_NCHW, found.round_())
    return [found[:, k].reshape(x.shape).to(x.dtype) for k, x in enumerate(planes)]


def _solved(samples: Tensor, opacity: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Minimise (alpha F + (1 - alpha) B - I)^2 plus the distance to the smooth F and B."""
    left_over = samples - torch.lerp(outside, inside, opacity)
    through = 1 - opacity
    share = opacity / (opacity * opacity + through * through + DISTRUST)
    return torch.addcmul(inside, share, left_over)


def _smooth(samples_NCHW: Tensor, levels_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth colours (N, C, H, W) inside and outside; `levels_N1HW` is alpha in whole 0..255."""
    sides = levels_N1HW, 255 - levels_N1HW
    sums = torch.cat([_sums(samples_NCHW, side) for side in sides])  # inside and outside at once
    colours = _push_pull(sums)[:, :-1]
    has_any = sums[:, -1:].amax((-2, -1), keepdim=True) > 0
    mean = samples_NCHW.mean((-2, -1), keepdim=True)
    inside, outside = torch.where(has_any, colours, torch.cat((mean, mean))).chunk(2)
    height, width = samples_NCHW.shape[-2:]
    return _enlarged(inside, height, width), _enlarged(outside, height, width)


def _sums(samples_NCHW: Tensor, levels_N1HW: Tensor) -> Tensor:
    """Weighted sums per cell, blurred, and their weights as the last channel."""
    weight = (levels_N1HW * (1 / 255)).pow_(CERTAINTY).mul_(255).ceil_()  # never 0 above 0
    product = (samples_NCHW * weight).mul_(1 / 255).round_()
    step = CELL_PX, CELL_PX
    means = torch.cat((cell_means(product, step), cell_means(weight, step) * (1 / 255)), 1)
    down, across = (min(1, length - 1) for length in means.shape[-2:])
    around = F.pad(means, (across, across, down, down), mode="reflect")
    return F.avg_pool2d(around, (2 * down + 1, 2 * across + 1), stride=1)


def _push_pull(sums_NCHW: Tensor) -> Tensor:
    """Divide sums by their weight, the last channel; fill from coarser levels where it is small.

    Gortler et al. 1996, "The Lumigraph", section 3.4. Without any weight the result is NaN.
    """
    weight = sums_NCHW[:, -1:]
    mean = sums_NCHW / weight.clamp(min=1e-6)
    height, width = sums_NCHW.shape[-2:]
    if min(height, width) <= 2:
        whole = sums_NCHW.sum((-2, -1), keepdim=True)
        is_complete = weight.amin((-2, -1), keepdim=True) > 0
        return torch.where(is_complete, mean, whole / whole[:, -1:])
    fill = _pyramid_up(_push_pull(_pyramid_down(sums_NCHW)), height, width)
    return torch.lerp(fill, mean, (4 * weight).clamp_(max=1))


def _pyramid_down(values: Tensor) -> Tensor:
    """OpenCV's pyrDown: 1 4 6 4 1 is a pair averaged four times."""
    values = F.pad(values, (2, 2, 2, 2), mode="reflect")
    for _ in range(3):
        values = F.avg_pool2d(values, 2, stride=1)
    return F.avg_pool2d(values, 2, stride=2)


def _pyramid_up(values: Tensor, height: int, width: int) -> Tensor:
    """OpenCV's pyrUp: doubled bilinearly, and a pair averaged; its edges mirror, then repeat."""
    values = F.pad(values, (1, 0, 1, 0), mode="reflect")
    values = F.pad(values, (0, 1, 0, 1), mode="replicate")
    twice = resize_bilinear(values, (2 * values.shape[-2], 2 * values.shape[-1]))
    return F.avg_pool2d(twice, 2, stride=1)[..., 2 : 2 + height, 2 : 2 + width]


def _enlarged(cells: Tensor, height: int, width: int) -> Tensor:
    size = cells.shape[-2] * CELL_PX, cells.shape[-1] * CELL_PX
    return resize_bilinear(cells, size)[..., :height, :width]
