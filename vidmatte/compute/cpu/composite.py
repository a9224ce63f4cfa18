"""Blend a frame over a background in the source's own planes, or pack its alpha beside them.

Every blend is `background + (source - background) * alpha`, correctly rounded, in integers
modulo the working type: the final sum fits although the difference may wrap, so that alpha 0
gives the background and full alpha the source, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.compute.cpu._shared import box_mean, load_cv2, row_bands
from vidmatte.frames import RANGE_FULL, Layout, Matte, layout_of, plane_views

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

    from vidmatte.compute.cpu.background import Background
    from vidmatte.frames import Samples

# Samples blended at a time: small enough that the temporaries stay in the second-level cache,
# large enough that numpy's call overhead vanishes (measured: benchmarks/NOTES.md, Compositing).
_TILE_ROWS, _TILE_COLUMNS = 128, 480

# FFmpeg's planar formats with alpha: by chroma shifts, the name's stem and the depths there are.
_YUV_ALPHA: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {
    (1, 1): ("yuva420p", (8, 9, 10, 16)),
    (1, 0): ("yuva422p", (8, 9, 10, 12, 16)),
    (0, 0): ("yuva444p", (8, 9, 10, 12, 16)),
}
_RGB_ALPHA_DEPTHS: tuple[int, ...] = (8, 10, 12, 14, 16)


class Compositor:
    """Blends mattes over one background into pictures of its own.

    `layout` is the working layout of the result: the source's own, or for a gray source over a
    coloured background a yuv layout of the same depth. An alpha plane in `layout` is ignored:
    results are opaque. Belongs to one thread.
    """

    def __init__(
        self,
        layout: Layout,
        width: int,
        height: int,
        *,
        background: Background,
        interlaced: bool = False,
    ) -> None:
        self._layout = without_alpha(layout)
        self._size = width, height
        self._background = background
        self._interlaced = interlaced
        self._blender = _Blender(layout.bits)

    def composite(self, matte: Matte) -> av.VideoFrame:
        """Blend one matte; its alpha must already hold the source's own (see `own_alpha`).

        Returns a new picture in the working layout with the source's colour tags; the caller
        sets pts and time base. Luma with full alpha, and chroma whose covered luma all has full
        alpha, is bit-equal to the source.
        """
        source = matte.frame.picture
        layout = self._layout
        picture = new_picture(layout, *self._size, like=source)
        backgrounds: Sequence[Samples | int] | None = self._background.constant
        if backgrounds is None:
            backgrounds = self._background.planes(matte.frame, matte.alpha)
        alphas = plane_alphas(matte.alpha, layout, interlaced=self._interlaced)
        sources = _colour_planes(source, layout)
        outputs = plane_views(picture, writable=True)
        for out, own, under, alpha in zip(outputs, sources, backgrounds, alphas, strict=True):
            self._blender.blend(own, under, alpha, out)
        return picture


class _Blender:
    """Correctly rounded blends of one bit depth, tile by tile in kept temporaries."""

    def __init__(self, bits: int) -> None:
        self._wide = np.uint16 if bits <= 8 else np.uint32
        self._digits = 8 if bits <= 8 else 16
        tile = _TILE_ROWS * _TILE_COLUMNS
        self._temporaries: list[NDArray[Any]] = [np.empty(tile, self._wide) for _ in range(3)]

    def blend(
        self, source: Samples | int, background: Samples | int, alpha: Samples, out: Samples
    ) -> None:
        """Blend (H, W) planes into `out`; a plane given as an int is that sample everywhere."""
        extremes = load_cv2().minMaxLoc
        full = (1 << self._digits) - 1
        for tile in _tiles(*alpha.shape):
            part = alpha[tile]
            over, under = _part(source, tile), _part(background, tile)
            lowest, highest, *_ = extremes(part)
            if highest == 0:
                out[tile] = under
            elif lowest == full:
                out[tile] = over
            else:
                self._mix(over, under, part, out[tile])

    def _mix(
        self, source: Samples | int, background: Samples | int, alpha: Samples, out: Samples
    ) -> None:
        """Compute round((alpha * source + (full - alpha) * background) / full) for one tile.

        With n the digits of alpha and t = the numerator + 2**(n-1), the quotient is exactly
        (t + (t >> n)) >> n for every numerator up to full * full; full is odd, so there are no
        ties. (J. Blinn, "Three wrongs make a right", IEEE CG&A 15(6), 1995.)
        """
        total, weight, base = (t[: out.size].reshape(out.shape) for t in self._temporaries)
        full, half = (1 << self._digits) - 1, 1 << (self._digits - 1)
        total[...] = source
        weight[...] = alpha
        if isinstance(background, int):
            np.subtract(total, self._wide(background), out=total)
            np.multiply(total, weight, out=total)
            np.add(total, self._wide(background * full + half), out=total)
        else:
            base[...] = background
            np.subtract(total, base, out=total)
            np.multiply(total, weight, out=total)
            np.multiply(base, self._wide(full), out=base)
            np.add(total, base, out=total)
            np.add(total, self._wide(half), out=total)
        np.right_shift(total, self._digits, out=weight)
        np.add(total, weight, out=total)
        np.right_shift(total, self._digits, out=total)
        out[...] = total


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, _TILE_ROWS):
        for left in range(0, width, _TILE_COLUMNS):
            yield slice(top, top + _TILE_ROWS), slice(left, left + _TILE_COLUMNS)


def _part(plane: Samples | int, tile: tuple[slice, slice]) -> Samples | int:
    return plane if isinstance(plane, int) else plane[tile]


def plane_alphas(alpha: Samples, layout: Layout, *, interlaced: bool = False) -> list[Samples]:
    """Return the alpha of every colour plane of `layout`, in plane order."""
    if layout.model != "yuv":
        return [alpha] * (1 if layout.model == "gray" else 3)
    chroma = chroma_alpha(alpha, layout, interlaced=interlaced)
    return [alpha, chroma, chroma]


def chroma_alpha(alpha: Samples, layout: Layout, *, interlaced: bool = False) -> Samples:
    """Average alpha over the luma samples that each chroma sample covers, halves rounded up.

    `alpha` is (H, W) uint8 or uint16; returns the same type in chroma size, both rounded up.
    The last chroma sample of an odd side covers fewer luma samples. In vertically subsampled
    interlaced pictures chroma row k belongs to field k % 2 and covers luma rows of that field.
    """
    if not (layout.shift_x or layout.shift_y):
        return alpha
    if not (interlaced and layout.shift_y):
        return box_mean(alpha, 1 << layout.shift_x, 1 << layout.shift_y)
    height, width = alpha.shape
    rows = -(-height >> layout.shift_y)
    chroma = np.empty((rows, -(-width >> layout.shift_x)), alpha.dtype)
    for field in range(2):
        own = chroma[field::2]
        own[...] = box_mean(alpha[field::2], 1 << layout.shift_x, 1 << layout.shift_y)[: len(own)]
    return chroma


def own_alpha(picture: av.VideoFrame, alpha: Samples) -> Samples:
    """Multiply a matte's alpha by the picture's own alpha plane.

    `alpha` is (H, W) uint8 (uint16 0..65535 above 8 bits) in the picture's size. Returns the
    product, correctly rounded, in the same type; `alpha` itself where the picture has none.
    Alpha planes use the full range at every depth. The compute stage calls this once per frame,
    before the matte goes to any render.
    """
    layout = layout_of(picture.format.name)
    assert layout is not None, picture.format.name
    if not layout.alpha:
        return alpha
    own = plane_views(picture)[-1]
    if own.min() == layout.peak:
        return alpha
    return _scaled(alpha, own, layout.peak)


def alpha_layout(layout: Layout) -> Layout | None:
    """Return the layout that holds `layout`'s planes unchanged and an alpha plane beside them.

    Gray gets neutral chroma in 4:4:4. None where FFmpeg has no such format (4:4:0, 4:1:1, 14-bit
    YUV, …): the caller converts first.
    """
    named = _YUV_ALPHA.get((layout.shift_x, layout.shift_y), ("", ()))
    stem, depths = ("gbrap", _RGB_ALPHA_DEPTHS) if layout.model == "rgb" else named
    if layout.bits not in depths:
        return None
    return layout_of(stem if layout.bits == 8 else f"{stem}{layout.bits}le")


def without_alpha(layout: Layout) -> Layout:
    """Return the layout with the same colour planes and no alpha plane."""
    if not layout.alpha:
        return layout
    pix_fmt = layout.pix_fmt.replace("yuva", "yuv").replace("gbrap", "gbrp")
    return replace(layout, pix_fmt=pix_fmt, alpha=False)


def pack_alpha(
    matte: Matte, layout: Layout, *, foreground: Sequence[Samples] | None = None
) -> av.VideoFrame:
    """Make a transparent picture: colour planes and straight alpha, in `layout`.

    `layout` comes from `alpha_layout`. `foreground` replaces the colour planes by estimated
    foreground colour in the same layout; without it they are the source's own, bit-equal.
    Returns a new picture with the source's colour tags; the caller sets pts and time base.
    """
    source = matte.frame.picture
    picture = new_picture(layout, source.width, source.height, like=source)
    *colours, own = plane_views(picture, writable=True)
    planes = _colour_planes(source, layout) if foreground is None else foreground
    for out, plane in zip(colours, planes, strict=True):
        out[...] = plane
    own[...] = _alpha_at(matte.alpha, layout.bits)
    return picture


def matte_picture(matte: Matte) -> av.VideoFrame:
    """Make a picture of the alpha itself: gray, or gray16le above 8 bits, full range."""
    source = matte.frame.picture
    layout = layout_of("gray" if matte.alpha.dtype == np.uint8 else "gray16le")
    assert layout is not None
    picture = new_picture(layout, source.width, source.height)
    plane_views(picture, writable=True)[0][...] = matte.alpha
    picture.color_range = RANGE_FULL
    return picture


def _alpha_at(alpha: Samples, bits: int) -> Samples:
    """Scale alpha to the full range of `bits`, correctly rounded."""
    return alpha if bits in (8, 16) else _scaled(alpha, (1 << bits) - 1, 65535)


def _scaled(alpha: Samples, factor: Samples | int, divisor: int) -> Samples:
    """Compute round(alpha * factor / divisor); the divisor is odd, so there are no ties."""
    wide = np.uint16 if alpha.dtype == np.uint8 else np.uint32
    result = np.empty(alpha.shape, alpha.dtype)
    for band in row_bands(len(alpha)):
        product: NDArray[Any] = alpha[band].astype(wide)
        product *= wide(factor) if isinstance(factor, int) else factor[band]
        product += wide(divisor // 2)
        np.floor_divide(product, wide(divisor), out=result[band], casting="unsafe")
    return result


def _colour_planes(picture: av.VideoFrame, layout: Layout) -> list[Samples | int]:
    """View the colour planes of a source; a gray source in a yuv layout has neutral chroma."""
    own = layout_of(picture.format.name)
    assert own is not None, picture.format.name
    assert own.bits == layout.bits, (own.pix_fmt, layout.pix_fmt)
    planes: list[Samples | int] = list(plane_views(picture)[: 1 if own.model == "gray" else 3])
    if own.model == "gray" and layout.model == "yuv":
        planes += [1 << (layout.bits - 1)] * 2
    return planes


def new_picture(
    layout: Layout, width: int, height: int, *, like: av.VideoFrame | None = None
) -> av.VideoFrame:
    """Allocate a picture; a pool gains nothing measurable over malloc's own reuse."""
    import av

    picture = av.VideoFrame(width, height, layout.pix_fmt)
    if like is not None:
        picture.colorspace, picture.color_range = like.colorspace, like.color_range
        picture.color_primaries, picture.color_trc = like.color_primaries, like.color_trc
    return picture
