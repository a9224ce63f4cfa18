"""Fit a picture, or the pictures of a video, into the planes of a source's stored picture.

Fitting happens in display space: upright, with square pixels. The result is turned, mirrored and
squeezed as the source is stored, in the source's matrix, range, depth and transfer.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import box_mean, load_cv2
from vidmatte.compute.cpu.colour import (
    SWS_MATRIX,
    colour_samples,
    effective_colour,
    matrix_for,
    planes_from_rgb,
    scale_and_offset,
    tone_map,
    yuv_colour,
)
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.frames import (
    MATRIX_BT709,
    PRIMARIES_BT2020,
    RANGE_FULL,
    Colour,
    Layout,
    VideoInfo,
    layout_of,
    plane_views,
)

if TYPE_CHECKING:
    import av

    from vidmatte.frames import Samples

Fit = Literal["cover", "contain", "stretch"]
Picture = NDArray[np.uint8] | NDArray[np.uint16]

# Scaling a whole video picture for `cover` may make at most this many times the visible samples;
# beyond (a very wide strip, say) it is cut first, so that memory stays bounded.
_MAX_OVERSIZE = 4


def scaled_size(
    fit: Fit, own: tuple[int, int], own_aspect: Fraction, target: tuple[int, int], aspect: Fraction
) -> tuple[int, int]:
    """Return the (width, height), in the target's pixels, of the whole background when scaled.

    `own` and `target` are (width, height) with pixels of `own_aspect` and `aspect` (width over
    height). `cover` is at least as large as the target on both sides, `contain` at most.
    """
    if fit == "stretch":
        return target
    factors = target[0] * aspect / (own[0] * own_aspect), Fraction(target[1], own[1])
    factor = max(factors) if fit == "cover" else min(factors)
    width = max(1, round(own[0] * own_aspect * factor / aspect))
    return width, max(1, round(own[1] * factor))


def fit_rgb(image: Picture, aspect: Fraction, fit: Fit, info: VideoInfo) -> Picture:
    """Fit an upright RGB picture into the stored picture of a source.

    `image` is (H, W, 3) uint8 or uint16 with pixels of `aspect` (width over height). Returns
    (info.height, info.width, 3) of the same type in the stored orientation. What `contain`
    leaves free is black.
    """
    turned = np.ascontiguousarray(to_stored(image, info.orientation))
    aspect = 1 / aspect if info.orientation.swaps_sides else aspect
    target = info.width, info.height
    own = turned.shape[1], turned.shape[0]
    scaled = scaled_size(fit, own, aspect, target, info.sample_aspect_ratio)
    visible = min(scaled[0], target[0]), min(scaled[1], target[1])
    part = _scale_and_crop(turned, scaled, visible)
    if visible == target:
        return part
    canvas = np.zeros((info.height, info.width, 3), image.dtype)
    left, top = (target[0] - visible[0]) // 2, (target[1] - visible[1]) // 2
    canvas[top : top + visible[1], left : left + visible[0]] = part
    return canvas


def _scale_and_crop(image: Picture, scaled: tuple[int, int], visible: tuple[int, int]) -> Picture:
    """Scale to `scaled` and cut the centre, without ever holding more than both sizes need."""
    cv2 = load_cv2()
    height, width = image.shape[:2]
    small = min(width, scaled[0]), min(height, scaled[1])
    if small != (width, height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    left, top = (scaled[0] - visible[0]) // 2, (scaled[1] - visible[1]) // 2
    if small == scaled:
        return image[top : top + visible[1], left : left + visible[0]]
    step_x, step_y = small[0] / scaled[0], small[1] / scaled[1]
    start_x, start_y = (left + 0.5) * step_x - 0.5, (top + 0.5) * step_y - 0.5
    matrix = np.array([[step_x, 0, start_x], [0, step_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    enlarged: Picture = cv2.warpAffine(
        image, matrix, visible, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return enlarged


class VideoFitter:
    """Fits pictures of one background video to one source. Belongs to one thread.

    Where both have the same kind of light (SDR, PQ or HLG, wide gamut or not), swscale scales
    and converts in one step; otherwise pictures take the way through sRGB, tone-mapped.
    """

    def __init__(self, own: VideoInfo, fit: Fit, info: VideoInfo, layout: Layout) -> None:
        from av.video.reformatter import VideoReformatter

        self._own, self._fit, self._info, self._layout = own, fit, info, layout
        self._colour = effective_colour(info, layout)
        self._own_colour = yuv_colour(own)
        self._same_light = _light(self._own_colour) == _light(self._colour)
        self._black = colour_samples((0, 0, 0), self._colour, layout)
        self._reformatter = VideoReformatter()

    def planes(self, picture: av.VideoFrame) -> list[Samples]:
        """Return the colour planes of one picture in the working layout.

        They may be views of the picture itself, which is never written to.
        """
        scaled = self._scaled_size(picture)
        target = self._target_size()
        oversize = scaled[0] * scaled[1] > _MAX_OVERSIZE * target[0] * target[1]
        if self._same_light and not oversize:
            return self._direct(picture, scaled)
        return self._through_rgb(picture)

    @property
    def _swapped(self) -> bool:
        return self._own.orientation.swaps_sides != self._info.orientation.swaps_sides

    def _target_size(self) -> tuple[int, int]:
        """Return the source's (width, height) as the background's stored pictures see it."""
        size = self._info.width, self._info.height
        return size[::-1] if self._swapped else size

    def _scaled_size(self, picture: av.VideoFrame) -> tuple[int, int]:
        aspect = self._info.sample_aspect_ratio
        aspect = 1 / aspect if self._swapped else aspect
        own = picture.width, picture.height
        return scaled_size(
            self._fit, own, self._own.sample_aspect_ratio, self._target_size(), aspect
        )

    def _direct(self, picture: av.VideoFrame, scaled: tuple[int, int]) -> list[Samples]:
        form = self._scaling_layout()
        same_matrix = replace(self._colour, matrix=self._own_colour.matrix)
        to_or_from_rgb = picture.format.is_rgb or form.model == "rgb"
        wanted = self._colour if to_or_from_rgb else same_matrix
        converted = plane_views(self._reformat(picture, *scaled, form.pix_fmt, wanted))
        if not to_or_from_rgb:
            converted = change_matrix(converted, self._own_colour, self._colour, form)
        planes = []
        sizes = self._plane_sizes()
        for index, plane in enumerate(converted[: len(sizes)]):
            shifts = (form.shift_x, form.shift_y) if index else (0, 0)
            placed = self._place(plane, shifts, self._black[index])
            upright = to_upright(placed, self._own.orientation)
            stored = np.ascontiguousarray(to_stored(upright, self._info.orientation))
            if stored.shape != sizes[index]:
                stored = box_mean(stored, 1 << self._layout.shift_x, 1 << self._layout.shift_y)
            planes.append(stored)
        return planes

    def _scaling_layout(self) -> Layout:
        """Return the layout to scale in: the working one, or 4:4:4 where turning needs it."""
        layout = self._layout
        lopsided = self._swapped and layout.shift_x != layout.shift_y
        if layout.model == "rgb":
            stem = "gbrp"
        elif layout.model == "gray" or lopsided:
            stem = "yuv444p"
        else:
            stem = layout.pix_fmt.replace("yuvj", "yuv").replace("yuva", "yuv").split("p")[0] + "p"
        found = layout_of(stem if layout.bits == 8 else f"{stem}{layout.bits}le")
        assert found is not None
        return found

    def _plane_sizes(self) -> list[tuple[int, int]]:
        height, width = self._info.height, self._info.width
        if self._layout.model == "gray":
            return [(height, width)]
        chroma = -(-height >> self._layout.shift_y), -(-width >> self._layout.shift_x)
        return [(height, width), chroma, chroma]

    def _place(self, plane: Samples, shifts: tuple[int, int], black: int) -> Samples:
        """Cut the centre of a scaled plane, or centre it on black, to the target's size."""
        width, height = self._target_size()
        target = -(-height >> shifts[1]), -(-width >> shifts[0])
        if plane.shape == target:
            return plane
        if plane.shape[0] >= target[0] and plane.shape[1] >= target[1]:
            top, left = ((a - b) // 2 for a, b in zip(plane.shape, target, strict=True))
            return plane[top : top + target[0], left : left + target[1]]
        canvas = np.full(target, black, plane.dtype)
        top, left = ((a - b) // 2 for a, b in zip(target, plane.shape, strict=True))
        canvas[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
        return canvas

    def _through_rgb(self, picture: av.VideoFrame) -> list[Samples]:
        hdr = self._own_colour.is_hdr
        pix_fmt = "rgb48le" if hdr else "rgb24"
        whole = self._reformat(picture, picture.width, picture.height, pix_fmt, Colour(1, 2))
        samples = whole.to_ndarray()
        rgb = samples.view(np.uint8)
        if hdr:
            rgb = tone_map(samples.view(np.uint16), self._own_colour.transfer)
        aspect = self._own.sample_aspect_ratio
        aspect = 1 / aspect if self._own.orientation.swaps_sides else aspect
        upright: Picture = to_upright(rgb, self._own.orientation)
        fitted = fit_rgb(upright, aspect, self._fit, self._info)
        return planes_from_rgb(fitted, self._colour, self._layout)

    def _reformat(
        self, picture: av.VideoFrame, width: int, height: int, pix_fmt: str, colour: Colour
    ) -> av.VideoFrame:
        from av.video.reformatter import Interpolation

        own = self._own_colour
        is_rgb = picture.format.is_rgb
        return self._reformatter.reformat(
            picture,
            width,
            height,
            pix_fmt,
            src_colorspace=SWS_MATRIX.get(own.matrix, MATRIX_BT709),
            src_color_range=RANGE_FULL if is_rgb else own.range,
            dst_colorspace=SWS_MATRIX.get(colour.matrix, MATRIX_BT709),
            dst_color_range=colour.range,
            interpolation=Interpolation.BICUBIC
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INT,
            threads=1,
        )


def change_matrix(
    planes: list[Samples], own: Colour, wanted: Colour, layout: Layout
) -> list[Samples]:
    """Bring YUV planes from one matrix to another; the range is already the wanted one.

    Gray is the same in every matrix: chroma becomes a mix of chroma, and luma only moves by a
    mix of chroma, which is enlarged to its size. Ten times as fast as swscale's way through RGB.
    """
    scale, _ = scale_and_offset(wanted, layout)
    change = matrix_for(wanted) @ np.linalg.inv(matrix_for(own))
    change = change * scale[:, None] / scale[None, :]
    if np.allclose(change, np.eye(3)):
        return planes
    cv2 = load_cv2()
    middle = 1 << (layout.bits - 1)
    mix = np.column_stack([change[:, 1:], middle - change[:, 1:].sum(1) * middle])
    mixed = cv2.transform(cv2.merge(planes[1:]), mix.astype(np.float32))
    move, blue, red = (np.minimum(plane, layout.peak) for plane in cv2.split(mixed))
    size = move.shape[1] << layout.shift_x, move.shape[0] << layout.shift_y
    luma = planes[0]
    move = cv2.resize(move, size, interpolation=cv2.INTER_LINEAR)[: luma.shape[0], : luma.shape[1]]
    luma = np.minimum(cv2.addWeighted(luma, 1, move, 1, -middle), layout.peak)
    return [luma, blue, red]


def _light(colour: Colour) -> tuple[int, bool]:
    """Say what samples mean beyond matrix and range: HDR transfer or 0, and wide gamut."""
    if colour.is_hdr:
        return colour.transfer, True
    return 0, colour.primaries == PRIMARIES_BT2020
