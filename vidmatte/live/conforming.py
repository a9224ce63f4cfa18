"""Bring whatever a camera delivers to 8-bit 4:2:0 of the session's size, cropped, not squeezed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidmatte.frames import (
    MATRIX_BT470BG,
    MATRIX_RGB,
    MATRIX_SMPTE170M,
    MATRIX_UNKNOWN,
    RANGE_FULL,
    RANGE_LIMITED,
    Frame,
    VideoInfo,
    plane_views,
)

if TYPE_CHECKING:
    import av

PIX_FMT = "yuv420p"
_SAME_MATRICES = {MATRIX_BT470BG, MATRIX_SMPTE170M}  # two numbers for BT.601


class LiveConformer:
    """Turns camera pictures into yuv420p pictures of `info`'s size, matrix and range.

    Pictures that are such already pass untouched, by reference. Others of another shape lose
    what is too much at two opposite sides and are scaled to cover the size. Camera, size and
    format may change at any frame. An untagged matrix is taken for `info`'s. One thread.
    """

    def __init__(self, info: VideoInfo) -> None:
        from av.video.reformatter import VideoReformatter

        self._width, self._height = info.width, info.height
        colour = info.colour.resolved(info.height)
        self._matrix, self._range = colour.matrix, colour.range
        self._reformatter = VideoReformatter()

    def conform(self, frame: Frame) -> Frame:
        """Return the frame with a picture in the working layout."""
        picture = frame.picture
        shape = picture.format.name, picture.width, picture.height
        matrix, range_ = self._colour_of(picture)
        same_colour = (matrix, range_) == (self._matrix, self._range)
        if shape == (PIX_FMT, self._width, self._height) and same_colour:
            return frame
        width, height = _covering(picture.width, picture.height, self._width, self._height)
        converted = self._converted(picture, width, height, matrix, range_)
        if (width, height) != (self._width, self._height):
            converted = _centre(converted, self._width, self._height)
        return replace(frame, picture=converted)

    def _colour_of(self, picture: av.VideoFrame) -> tuple[int, int]:
        """(matrix, range) of a picture."""
        name, matrix = picture.format.name, int(picture.colorspace)
        if picture.format.is_rgb:
            return MATRIX_RGB, RANGE_FULL
        full = name.startswith(("yuvj", "gray"))
        range_ = RANGE_FULL if full else int(picture.color_range) or RANGE_LIMITED
        if matrix in (MATRIX_RGB, MATRIX_UNKNOWN, 3) or {matrix, self._matrix} == _SAME_MATRICES:
            matrix = self._matrix
        return matrix, range_

    def _converted(
        self, picture: av.VideoFrame, width: int, height: int, matrix: int, range_: int
    ) -> av.VideoFrame:
        from av.video.reformatter import Interpolation

        own = self._matrix if matrix == MATRIX_RGB else matrix
        return self._reformatter.reformat(
            picture,
            width,
            height,
            PIX_FMT,
            src_colorspace=own,
            dst_colorspace=self._matrix,
            src_color_range=range_,
            dst_color_range=self._range,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )


def _covering(width: int, height: int, least_width: int, least_height: int) -> tuple[int, int]:
    """The even size of the same shape that covers the least one and touches two of its sides."""
    scale = max(least_width / width, least_height / height)
    return (
        max(least_width, round(width * scale / 2) * 2),
        max(least_height, round(height * scale / 2) * 2),
    )


def _centre(picture: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """Copy the middle of a yuv420p picture."""
    import av

    left, top = (picture.width - width) // 4 * 2, (picture.height - height) // 4 * 2
    middle = av.VideoFrame(width, height, PIX_FMT)
    sources, targets = plane_views(picture), plane_views(middle, writable=True)
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        y, x = (top, left) if number == 0 else (top // 2, left // 2)
        rows, columns = target.shape
        target[...] = source[y : y + rows, x : x + columns]
    middle.colorspace, middle.color_range = picture.colorspace, picture.color_range
    return middle
