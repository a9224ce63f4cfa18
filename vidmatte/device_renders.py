"""Turn mattes on a device into the host pictures that outputs hold; several in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from vidmatte.compute.batches import until_error
from vidmatte.compute.cpu.composite import alpha_layout, new_picture, without_alpha
from vidmatte.compute.cuda.background import on_device
from vidmatte.compute.cuda.composite import composite, own_alpha, plane_alphas, scaled_alpha
from vidmatte.compute.cuda.foreground import estimate_planes
from vidmatte.compute.cuda.transfer import Download, Lane, or_out_of_memory
from vidmatte.frames import RANGE_FULL, Layout, VideoInfo, layout_of
from vidmatte.graphs import Graphed
from vidmatte.renders import composite_layout

if TYPE_CHECKING:
    import av
    from torch import Tensor

    from vidmatte.backdrop import Backdrop
    from vidmatte.compute.cuda.engine import DeviceMatte, DeviceMatting
    from vidmatte.frames import Frame
    from vidmatte.sinks.plan import Content, OutputPlan

    Work = Callable[[DeviceMatte], Sequence[Tensor]]

PICTURES_IN_FLIGHT = 2  # asked of the device before the host waits for the first of them


class _Render(NamedTuple):
    """What makes the planes of one output's pictures, and their layout."""

    work: Work
    layout: Layout


class _Pending(NamedTuple):
    """One output's picture of a frame, on its way."""

    frame: Frame
    layout: Layout
    download: Download


class DeviceRenders:
    """Makes one picture per output plan of every matte of `matting`, on its device.

    One foreground estimate serves all outputs that need it. Used by the thread that runs `finish`.
    """

    def __init__(
        self,
        matting: DeviceMatting,
        info: VideoInfo,
        layout: Layout,
        plans: Sequence[OutputPlan],
        backdrop: Backdrop,
    ) -> None:
        self._matting, self._info, self._layout = matting, info, layout
        self._interlaced = info.field_order != "progressive"
        self._copy_lane = Lane(matting.device)
        self._estimated: tuple[int, tuple[Tensor, ...]] = -1, ()
        estimate = partial(_estimate, layout, self._interlaced)
        self._estimate = Graphed(estimate, matting.device)
        with matting.lane:  # constants are made in the order of the work
            self._renders = [self._render(plan.content, backdrop) for plan in plans]

    def pictures(self, mattes: Iterator[DeviceMatte]) -> Iterator[list[av.VideoFrame]]:
        """Yield one picture per output for every matte, with its time; before an error too.

        To be called once.
        """
        pending: deque[list[_Pending]] = deque()
        errors: list[Exception] = []
        try:
            for matte in until_error(mattes, errors):
                pending.append(self._launch(matte))
                if len(pending) > PICTURES_IN_FLIGHT:
                    yield [_landed(one) for one in pending.popleft()]
            yield from ([_landed(one) for one in pictures] for pictures in pending)
        finally:
            self._renders = []  # they hold this object: in a circle, graphs would outlive the run
        if errors:
            raise errors[0]

    def _launch(self, matte: DeviceMatte) -> list[_Pending]:
        """Ask the device for the pictures of a matte, and do not wait for them."""
        with or_out_of_memory(self._matting.device), self._matting.lane:
            return [
                _Pending(matte.frame, layout, Download(work(matte), self._copy_lane))
                for work, layout in self._renders
            ]

    def _render(self, content: Content, backdrop: Backdrop) -> _Render:
        if content == "matte":
            named = layout_of("gray" if self._layout.bits <= 8 else "gray16le")
            assert named is not None
            return _Render(lambda matte: [matte.alpha], named)
        if content == "opaque":
            return self._opaque(backdrop)
        target = alpha_layout(self._layout)
        assert target is not None

        def transparent(matte: DeviceMatte) -> Sequence[Tensor]:
            return *self._foreground(matte), scaled_alpha(matte.alpha, target.bits)

        return _Render(transparent, target)

    def _opaque(self, backdrop: Backdrop) -> _Render:
        layout = composite_layout(self._layout)
        count = 1 if self._layout.model == "gray" else 3
        background = backdrop.build(self._info, layout)
        constant, device = background.constant, self._matting.device

        def blend(alpha: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            under = rest[count:] if constant is None else constant
            return composite(rest[:count], alpha, under, layout, interlaced=self._interlaced)

        graph = Graphed(blend, device)
        if constant is not None:
            return _Render(
                lambda matte: graph(matte.alpha, *matte.planes[:count]), without_alpha(layout)
            )
        behind = on_device(background, self._info, layout, device)
        return _Render(
            lambda matte: graph(matte.alpha, *matte.planes[:count], *behind.planes(matte)),
            without_alpha(layout),
        )

    def _foreground(self, matte: DeviceMatte) -> tuple[Tensor, ...]:
        """Return colour planes without the old background's colour; valid until the next matte."""
        index, planes = self._estimated
        if index != matte.frame.index:
            planes = self._estimate(matte.alpha, *matte.planes)
            self._estimated = matte.frame.index, planes
        return planes


def _estimate(
    layout: Layout, interlaced: bool, alpha: Tensor, *planes: Tensor
) -> tuple[Tensor, ...]:
    """The device form of `renders.ForegroundCache`."""
    target = alpha_layout(layout)
    assert target is not None
    if layout.alpha:
        alpha = _matte_alone(alpha, planes, layout)
    alphas = plane_alphas(alpha, target, interlaced=interlaced)
    luma, *chroma = planes[:3] if layout.model != "gray" else planes[:1]
    if not chroma:
        flat = torch.full_like(luma, 1 << (layout.bits - 1), dtype=torch.int32).to(luma.dtype)
        return *estimate_planes([luma], alphas[0]), flat, flat
    if chroma[0].shape == luma.shape:
        return tuple(estimate_planes([luma, *chroma], alphas[0]))
    return *estimate_planes([luma], alphas[0]), *estimate_planes(chroma, alphas[1])


def _matte_alone(alpha: Tensor, planes: Sequence[Tensor], layout: Layout) -> Tensor:
    """Divide the source's own alpha out of the matte: under it, colours are straight already."""
    peak = 255 if alpha.dtype == torch.uint8 else 65535
    full = torch.full_like(alpha, peak, dtype=torch.int32).to(alpha.dtype)
    own = own_alpha(planes, full, layout).to(torch.int32)
    wide = alpha.to(torch.int32)
    quotient = (wide * (peak / own.clamp(min=1))).to(torch.int32)
    quotient = torch.where(wide >= own, peak, quotient)
    return torch.where(own == 0, 0, quotient).to(alpha.dtype)


def _landed(pending: _Pending) -> av.VideoFrame:
    """Wait for a picture; an alpha alone has the full range and no other tag."""
    frame, layout, download = pending
    source, is_matte = frame.picture, layout.model == "gray"
    picture = new_picture(layout, source.width, source.height, like=None if is_matte else source)
    if is_matte:
        picture.color_range = RANGE_FULL
    download.write(picture)
    picture.pts, picture.time_base = frame.pts, frame.time_base
    return picture
