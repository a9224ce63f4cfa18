"""Read mattes: a picture's transparency, or its grey; from files, numbered pictures and folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.colour import effective_colour
from vidmatte.compute.cpu.geometry import to_upright
from vidmatte.errors import InputError, UsageError
from vidmatte.frames import (
    MATRIX_BT709,
    RANGE_LIMITED,
    Layout,
    VideoInfo,
    layout_of,
    plane_views,
)
from vidmatte.inputs import source_of
from vidmatte.pairs import pictures_in
from vidmatte.sources import Source
from vidmatte.sources._shared import STDIN

if TYPE_CHECKING:
    import av

    from vidmatte.frames import Samples

_COLOURED = 24  # of 255 between a picture's channels; what coding does to greys stays below half
# The last number in a name; a % would be taken for a part of the pattern.
_NUMBERED = re.compile(r"([^%]*?)([0-9]{1,18})([^0-9%]*\.[^.%]+)")


class MatteReader:
    """Reads the mattes of one source, all in the way that its first picture calls for.

    That is the alpha channel where there is one, unless the first picture is opaque and grey (a
    grey matte in a format that could carry alpha); else the grey, spread from video range to the
    full one. Belongs to one thread: it keeps a swscale context.
    """

    def __init__(self, info: VideoInfo) -> None:
        from av.video.reformatter import VideoReformatter

        self._info = info
        self._reformatter = VideoReformatter()
        self._takes_alpha: bool | None = None

    def read(self, picture: av.VideoFrame) -> Samples:
        """Return the matte of a picture, upright (H, W): uint8, or uint16 0..65535 above 8 bits.

        Exact for grey, RGB and alpha samples of 8 and 16 bits, correctly rounded for others.
        Raises InputError where the source's first picture is neither transparent nor grey.
        """
        planar = self._planar(picture)
        layout = layout_of(planar.format.name)
        assert layout is not None
        planes = plane_views(planar)
        if self._takes_alpha is None:
            self._takes_alpha = self._choose(picture, layout, planes)
        plane = planes[-1] if self._takes_alpha else planes[0]
        low, high = (0, layout.peak) if self._takes_alpha else self._grey_range(layout)
        return np.ascontiguousarray(
            to_upright(_spread(plane, layout.bits, low, high), self._info.orientation)
        )

    def _choose(self, picture: av.VideoFrame, layout: Layout, planes: list[Samples]) -> bool:
        coloured = self._is_coloured(picture)
        if layout.alpha:
            return coloured or int(planes[-1].min()) < layout.peak
        if coloured:
            raise InputError(
                f"{self._info.name}: is in colour; a matte is grey, or an alpha channel",
                hint="name the matte itself; `vidmatte run --alpha FILE` writes one",
            )
        return False

    def _is_coloured(self, picture: av.VideoFrame) -> bool:
        small = self._reformatter.reformat(picture, width=64, height=64, format="rgb24")
        rgb = small.to_ndarray().astype(np.int16)
        return bool(np.percentile(np.ptp(rgb, axis=2), 99) > _COLOURED)

    def _planar(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Unpack formats that are not planar; greys, RGB, alpha and luma stay bit for bit."""
        name = picture.format.name
        if layout_of(name) is not None:
            return picture
        target = _planar_format(picture)
        layout = layout_of(target)
        assert layout is not None
        own_range = effective_colour(self._info, layout).range
        return self._reformatter.reformat(
            picture,
            format=target,
            src_colorspace=MATRIX_BT709,
            dst_colorspace=MATRIX_BT709,
            src_color_range=own_range,
            dst_color_range=own_range,
        )

    def _grey_range(self, layout: Layout) -> tuple[int, int]:
        """Return the code values of black and white in the first plane."""
        if layout.model != "yuv" or effective_colour(self._info, layout).range != RANGE_LIMITED:
            return 0, layout.peak
        return 16 << (layout.bits - 8), 235 << (layout.bits - 8)


def _planar_format(picture: av.VideoFrame) -> str:
    components = picture.format.components
    deep = components[0].bits > 8
    if picture.format.has_palette or any(c.is_alpha for c in components):
        return "gbrap16le" if deep else "gbrap"
    if picture.format.is_rgb:
        return "gbrp16le" if deep else "gbrp"
    if len(components) == 1:
        return "gray16le" if deep else "gray"
    return f"yuv444p{components[0].bits}le" if deep else "yuv444p"


def _spread(plane: Samples, bits: int, low: int, high: int) -> Samples:
    """Bring code values `low`..`high` to 0..255, or to 0..65535 above 8 bits, rounded."""
    if bits <= 8:
        if (low, high) == (0, 255):
            return np.array(plane, np.uint8)
        table = np.clip((np.arange(256) - low) * (255 / (high - low)), 0, 255)
        return np.asarray(np.rint(table).astype(np.uint8)[plane], np.uint8)
    if (low, high) == (0, 65535):
        return np.array(plane, np.uint16)
    scaled = (plane - np.float32(low)) * np.float32(65535 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 65535)), np.uint16)


def open_mattes(name: str) -> Source:
    """Return the source of a video's mattes: a file, `frame_%04d.png`, or a folder of these.

    Not yet entered. Raises InputError and UsageError.
    """
    if name == STDIN:
        raise UsageError("standard input: is not read here", hint="name a file or a folder")
    return source_of(_pattern_in(Path(name)) if os.path.isdir(name) else name)


def _pattern_in(folder: Path) -> str:
    """Return the one pattern of numbered pictures that a folder holds. Raises InputError."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in pictures_in(folder).values():
        if match := _NUMBERED.fullmatch(path.name):
            found.setdefault((match[1], match[3]), []).append(match[2])
    if len(found) != 1:
        raise InputError(
            f"{folder}: holds {'several rows' if found else 'no row'} of numbered pictures",
            hint="name them by a pattern like FOLDER/frame_%04d.png",
        )
    (((before, after), numbers),) = found.items()
    padded = any(number[0] == "0" and len(number) > 1 for number in numbers)
    digits = f"%0{min(map(len, numbers))}d" if padded else "%d"
    return str(folder / f"{before}{digits}{after}")
