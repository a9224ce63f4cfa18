"""Turn a matte into the picture that an output holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vidmatte.compute.cpu.composite import (
    Compositor,
    alpha_layout,
    matte_picture,
    own_alpha,
    pack_alpha,
    plane_alphas,
)
from vidmatte.compute.cpu.foreground import estimate_planes
from vidmatte.frames import Layout, Matte, VideoInfo, layout_of, plane_views
from vidmatte.matting import Matting
from vidmatte.sinks.plan import OutputPlan, working_format

if TYPE_CHECKING:
    import av

    from vidmatte.backdrop import Backdrop
    from vidmatte.compute.cuda.engine import DeviceMatting
    from vidmatte.frames import Samples

    Render = Callable[[Matte], av.VideoFrame]


def build_renders(
    info: VideoInfo, layout: Layout, plans: list[OutputPlan], backdrop: Backdrop
) -> list[Render]:
    """Build one render per output plan, for mattes of pictures in the working `layout`.

    One foreground estimate serves all outputs that need it.
    """
    foreground = ForegroundCache(layout, interlaced=info.field_order != "progressive")
    renders: list[Render] = []
    for plan in plans:
        if plan.content == "matte":
            renders.append(matte_picture)
        elif plan.content == "opaque":
            renders.append(_opaque(info, layout, backdrop))
        else:
            renders.append(_transparent(layout, foreground))
    return renders


def picture_maker(
    matting: Matting | DeviceMatting,
    info: VideoInfo,
    layout: Layout,
    plans: list[OutputPlan],
    backdrop: Backdrop,
) -> Callable[[Iterator[Any]], Iterator[list[av.VideoFrame]]]:
    """Return what turns the mattes of `matting` into one picture per plan, with their times.

    Pictures of the mattes before an error come before it.
    """
    if not isinstance(matting, Matting):
        from vidmatte.device_renders import DeviceRenders

        return DeviceRenders(matting, info, layout, plans, backdrop).pictures
    renders = build_renders(info, layout, plans, backdrop)

    def pictures(mattes: Iterator[Matte]) -> Iterator[list[av.VideoFrame]]:
        for matte in mattes:
            made = [render(matte) for render in renders]
            for picture in made:
                picture.pts, picture.time_base = matte.frame.pts, matte.frame.time_base
            yield made

    return pictures


def working_layout(info: VideoInfo, *, needs_alpha: bool) -> Layout:
    """Return the planar layout of a run: the source's own, or one that can carry alpha."""
    layout = layout_of(working_format(info.pix_fmt))
    assert layout is not None
    if needs_alpha and alpha_layout(layout) is None:
        bits = "" if layout.bits == 8 else "16le" if layout.bits > 12 else f"{layout.bits}le"
        widened = layout_of(f"yuv444p{bits}")
        assert widened is not None
        return widened
    return layout


def composite_layout(layout: Layout) -> Layout:
    """Return the layout of composites: for gray one with the chroma that a background needs."""
    if layout.model != "gray":
        return layout
    name = "yuv420p" if layout.bits == 8 else f"yuv420p{layout.bits}le"
    return replace(layout, pix_fmt=name, model="yuv", shift_x=1, shift_y=1)


def _opaque(info: VideoInfo, layout: Layout, backdrop: Backdrop) -> Render:
    layout = composite_layout(layout)
    compositor = Compositor(
        layout,
        info.width,
        info.height,
        background=backdrop.build(info, layout),
        interlaced=info.field_order != "progressive",
    )
    return compositor.composite


def _transparent(layout: Layout, foreground: ForegroundCache) -> Render:
    target = alpha_layout(layout)
    assert target is not None

    def render(matte: Matte) -> av.VideoFrame:
        return pack_alpha(matte, target, foreground=foreground.planes(matte, target))

    return render


class ForegroundCache:
    """Estimates the foreground colour of a matte once, whichever outputs ask for it."""

    def __init__(self, layout: Layout, *, interlaced: bool) -> None:
        self._layout = layout
        self._interlaced = interlaced
        self._index = -1
        self._planes: list[Samples] = []

    def planes(self, matte: Matte, target: Layout) -> list[Samples]:
        """Return the colour planes of `matte` with the old background's colour removed."""
        if matte.frame.index != self._index:
            self._planes = self._estimate(matte, target)
            self._index = matte.frame.index
        return self._planes

    def _estimate(self, matte: Matte, target: Layout) -> list[Samples]:
        alpha = _matte_alone(matte) if self._layout.alpha else matte.alpha
        alphas = plane_alphas(alpha, target, interlaced=self._interlaced)
        luma, *chroma = plane_views(matte.frame.picture)[:3]
        if not chroma:  # gray
            flat = np.full_like(luma, 1 << (self._layout.bits - 1))
            return [*estimate_planes([luma], alphas[0]), flat, flat]
        if chroma[0].shape == luma.shape:
            return estimate_planes([luma, *chroma], alphas[0])
        return estimate_planes([luma], alphas[0]) + estimate_planes(chroma, alphas[1])


def _matte_alone(matte: Matte) -> Samples:
    """Divide the source's own alpha out of the matte: under it, colours are straight already."""
    peak = np.iinfo(matte.alpha.dtype).max
    own = own_alpha(matte.frame.picture, np.full_like(matte.alpha, peak))
    quotient = matte.alpha * (np.float32(peak) / np.maximum(own, 1))
    quotient[matte.alpha >= own] = peak  # rounding must not make a whole pixel soft
    quotient[own == 0] = 0
    return cast("Samples", quotient.astype(matte.alpha.dtype))
