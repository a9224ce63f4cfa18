"""Blend a frame over a background in the source's own planes; twins of `compute.cpu.composite`.

Every result is a whole number over an odd divisor, so there are no ties: its distance from the
next half is at least 1/510 with alpha of 8 bits and 1/131070 with 16. float32 errs by 1e-4 at
most in the first case, float64 by 1e-10 in the second: to round what they give is exact, on every
device and in any order of operations. A blend moves 40 bytes per sample of 8 bits (27 over one
colour), less than whole numbers that are shifted and wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.frames import Layout


def composite(
    planes: Sequence[Tensor],
    alpha: Tensor,
    backgrounds: Sequence[Tensor | int],
    layout: Layout,
    *,
    interlaced: bool = False,
) -> tuple[Tensor, ...]:
    """Blend the colour planes of a picture over a background; return new planes.

    `layout` is the working layout: the picture's own, or for a gray source over a coloured
    background a yuv layout of the same depth. An alpha plane is ignored: `alpha` must already
    hold it (see `own_alpha`). A background plane given as an int is that sample everywhere.
    """
    alphas = plane_alphas(alpha, layout, interlaced=interlaced)
    sources: list[Tensor | int] = list(planes[: len(alphas)])
    sources += [1 << (layout.bits - 1)] * (len(alphas) - len(sources))
    return tuple(blend(*three) for three in zip(sources, backgrounds, alphas, strict=True))


def blend(source: Tensor | int, background: Tensor | int, alpha: Tensor) -> Tensor:
    """Return background + (source - background) * alpha, correctly rounded, in alpha's type.

    Planes are (H, W), of up to 8 bits with uint8 alpha, of more with uint16. An int is that
    sample everywhere. Alpha 0 gives the background and full alpha the source, bit for bit.
    """
    under = _real(background, alpha)
    difference = source - under
    mixed = torch.addcmul(under, difference, alpha, value=1 / _full(alpha))
    return mixed.round_().to(alpha.dtype)


def plane_alphas(alpha: Tensor, layout: Layout, *, interlaced: bool = False) -> list[Tensor]:
    """Return the alpha of every colour plane of `layout`, in plane order."""
    if layout.model != "yuv":
        return [alpha] * (1 if layout.model == "gray" else 3)
    chroma = chroma_alpha(alpha, layout, interlaced=interlaced)
    return [alpha, chroma, chroma]


def chroma_alpha(alpha: Tensor, layout: Layout, *, interlaced: bool = False) -> Tensor:
    """Average alpha over the luma samples that each chroma sample covers, halves rounded up.

    `alpha` is (H, W) uint8 or uint16; returns the same type in chroma size, both rounded up.
    The last chroma sample of an odd side covers fewer luma samples. In vertically subsampled
    interlaced pictures chroma row k belongs to field k % 2 and covers luma rows of that field.
    """
    if not (layout.shift_x or layout.shift_y):
        return alpha
    steps = 1 << layout.shift_x, 1 << layout.shift_y
    values = alpha.to(torch.float32)
    if not (interlaced and layout.shift_y):
        return block_mean(values, *steps).to(alpha.dtype)
    height, width = (-(-n // step) for n, step in zip(alpha.shape, steps[::-1], strict=True))
    chroma = torch.empty((height, width), dtype=alpha.dtype, device=alpha.device)
    for field in range(min(2, height)):
        own = chroma[field::2]
        own.copy_(block_mean(values[field::2], *steps)[: len(own)])
    return chroma


def block_mean(values: Tensor, step_x: int, step_y: int) -> Tensor:
    """Average blocks of `step_x` by `step_y` samples, halves rounded up.

    `values` is (H, W), whole numbers in float32. Blocks cut by the right and lower edge are
    smaller. Exact: a block's sum stays below 2**24.
    """
    means = F.avg_pool2d(
        values[None, None], (step_y, step_x), ceil_mode=True, count_include_pad=False
    )
    return means[0, 0].add_(0.5).floor_()


def own_alpha(planes: Sequence[Tensor], alpha: Tensor, layout: Layout) -> Tensor:
    """Multiply a matte's alpha by the picture's own alpha plane, correctly rounded.

    `alpha` is (H, W) uint8 (uint16 0..65535 above 8 bits); `alpha` itself is returned where
    `layout` has no alpha plane. Alpha planes use the full range at every depth.
    """
    if not layout.alpha:
        return alpha
    return (_real(alpha, alpha) * planes[-1]).mul_(1 / layout.peak).round_().to(alpha.dtype)


def scaled_alpha(alpha: Tensor, bits: int) -> Tensor:
    """Scale alpha to the full range of `bits`, correctly rounded, as an alpha plane holds it."""
    if bits in (8, 16):
        return alpha
    return _real(alpha, alpha).mul_(((1 << bits) - 1) / 65535).round_().to(alpha.dtype)


def _full(alpha: Tensor) -> int:
    return 255 if alpha.dtype == torch.uint8 else 65535


def _real(plane: Tensor | int, alpha: Tensor) -> Tensor:
    """Copy a plane, or one sample for all, in floats that are exact for alpha of this type."""
    real = torch.float32 if alpha.dtype == torch.uint8 else torch.float64
    if isinstance(plane, int):
        return torch.full((), plane, dtype=real, device=alpha.device)
    return plane.to(real)
