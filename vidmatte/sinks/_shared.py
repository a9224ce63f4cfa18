"""What sinks share: conversion to the encoder's format and plain words for write errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidmatte.compute.cpu.colour import SWS_MATRIX
from vidmatte.errors import OutputError
from vidmatte.frames import (
    MATRIX_BT709,
    MATRIX_RGB,
    RANGE_FULL,
    Colour,
    Orientation,
    VideoInfo,
    layout_of,
)
from vidmatte.sinks.plan import OutputPlan, fixed_colour, working_format

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

# Where an opened output ends when its disk is full or its reader leaves.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO, errno.EBADF)


def output_error(name: str, exc: Exception) -> OutputError:
    """Translate what PyAV or the system raised while writing `name`."""
    if isinstance(exc, OSError) and exc.errno in WRITE_ERRORS:
        return refused(name, exc)
    return OutputError(
        f"{name}: cannot be encoded: {exc}", hint="try another --codec or another extension"
    )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn what PyAV or the system raises while writing `name` into OutputError."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as exc:
        raise output_error(name, exc) from exc


def os_reason(exc: OSError) -> str:
    """Say in plain words why the operating system refused."""
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed",
        errno.ENOENT: "the folder does not exist",
        errno.ENOTDIR: "a part of the path is not a folder",
        errno.EACCES: "permission denied",
        errno.EROFS: "the disk is read-only",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EPIPE: "the reader has gone",
        errno.EEXIST: "exists already; it appeared during the run",
    }
    return known.get(exc.errno or 0, (exc.strerror or str(exc)).lower())


def refused(name: object, exc: OSError, what: str = "") -> OutputError:
    """Say why the operating system refused `name`, and what may help; `what` goes before it."""
    hints = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
        errno.EFBIG: "raise the limit with ulimit -f, or write a shorter part with --end",
        errno.ENOENT: "make the folder first",
        errno.EACCES: "write into another folder, or change the permissions",
        errno.EPERM: "write into another folder, or change the permissions",
        errno.EROFS: "write to another disk",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EPIPE: "let the program that reads it run to the end",
        errno.EEXIST: "use --overwrite to replace it, or choose another name",
        errno.EMFILE: "raise the limit: ulimit -n 1024",
    }
    hint = hints.get(exc.errno or 0, "write to another disk or under another name")
    return OutputError(f"{name}: {what}{os_reason(exc)}", hint=hint)


class Converter:
    """Bring pictures to one pixel format and colour description, keeping one swscale context.

    Pictures already in that format pass through untouched. YUV stays in the source's matrix and
    range; RGB becomes BT.709 limited (or the reverse for RGB targets). `fixed` is for targets
    that know one matrix and range only.
    """

    def __init__(
        self, pix_fmt: str, source: Colour, height: int, *, fixed: Colour | None = None
    ) -> None:
        self._pix_fmt = pix_fmt
        self._reformatter: av.video.reformatter.VideoReformatter | None = None
        self._to_rgb = _is_rgb(pix_fmt)
        self._source = source.resolved(height)
        self.colour = fixed or source
        if source.matrix == 0 and not self._to_rgb and fixed is None:
            self.colour = Colour(1, 1, source.primaries, source.transfer)
        self._target = self.colour.resolved(height)
        self._passes = fixed is None or fixed == source

    def convert(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return `picture` in the target format, with its time stamp."""
        if picture.format.name == self._pix_fmt and self._passes:
            return picture
        from av.video.reformatter import Interpolation, VideoReformatter

        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        origin = self._source
        from_rgb = origin.matrix == 0
        converted = self._reformatter.reformat(
            picture,
            format=self._pix_fmt,
            src_colorspace=None if from_rgb else SWS_MATRIX.get(origin.matrix, MATRIX_BT709),
            dst_colorspace=SWS_MATRIX.get(self._target.matrix, MATRIX_BT709),
            src_color_range=2 if from_rgb else origin.range,
            dst_color_range=2 if self._to_rgb else self._target.range,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        )
        converted.pts, converted.time_base = picture.pts, picture.time_base
        return converted


def converter_for(plan: OutputPlan, info: VideoInfo, pix_fmt: str | None = None) -> Converter:
    """Build the converter of an output; a matte's samples are full range whatever the source's."""
    source = Colour(range=RANGE_FULL) if plan.content == "matte" else info.colour
    becomes_yuv = _is_rgb(working_format(info.pix_fmt)) and not _is_rgb(pix_fmt or plan.pix_fmt)
    if becomes_yuv and plan.content != "matte":
        source = replace(source, matrix=MATRIX_RGB)  # PNG says so; GIF and raw RGB do not
    fixed = fixed_colour(plan.codec, source)
    return Converter(pix_fmt or plan.pix_fmt, source, info.height, fixed=fixed)


def _is_rgb(pix_fmt: str) -> bool:
    """Whether a format that is encoded is RGB: those without a planar layout are packed RGB."""
    layout = layout_of(pix_fmt)
    return layout is None or layout.model == "rgb"


class Turner:
    """Make stored pictures upright, for targets that cannot hold an orientation."""

    def __init__(self, info: VideoInfo) -> None:
        self._orientation = info.orientation

    def turn(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return the upright picture in the same format, with the same time stamp and tags."""
        import av
        import numpy as np

        if self._orientation == Orientation():
            return picture
        width, height = picture.width, picture.height
        if self._orientation.swaps_sides:
            width, height = height, width
        turned = av.VideoFrame(width, height, picture.format.name)
        for source, target in zip(_pixels(picture), _pixels(turned), strict=True):
            upright = source[:, ::-1] if self._orientation.mirror else source
            target[...] = np.rot90(upright, -(self._orientation.rotate_cw // 90))
        turned.pts, turned.time_base = picture.pts, picture.time_base
        turned.colorspace, turned.color_range = picture.colorspace, picture.color_range
        turned.color_primaries, turned.color_trc = picture.color_primaries, picture.color_trc
        return turned


def _pixels(picture: av.VideoFrame) -> list[NDArray[Any]]:
    """View each plane as (H, W) items of one pixel, whatever a pixel's bytes are."""
    import numpy as np

    layout = layout_of(picture.format.name)
    views = []
    for plane in picture.planes:
        item = (picture.format.padded_bits_per_pixel // 8) if layout is None else (
            1 if layout.bits <= 8 else 2)  # fmt: skip
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        used = rows[:, : plane.width * item]
        views.append(used.view(np.dtype((np.void, item))))
    return views
