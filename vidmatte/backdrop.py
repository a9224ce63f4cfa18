"""Understand `--background`: a colour, a picture, a video, or a blur of the source."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vidmatte.errors import UsageError
from vidmatte.frames import Layout, VideoInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidmatte.compute.cpu.background import Background
    from vidmatte.compute.cpu.fitting import Fit
    from vidmatte.sources.file import FileSource

FITS = ("cover", "contain", "stretch")
_BLUR = re.compile(r"blur(?::(\d+(?:\.\d+)?))?")
_ASKS_FOR_BLUR = re.compile(r"blur:[^/\\]*$")


class Backdrop:
    """What `--background` asks for, checked before anything heavy is loaded.

    `text` is a colour (name, #rgb, #rrggbb, r,g,b), `blur` or `blur:STRENGTH` (sigma in percent
    of the longer side), or the name of a picture or video file. A file with such a name is meant
    by writing a path (`./blur`). Raises UsageError.
    """

    def __init__(self, text: str, fit: str = "cover") -> None:
        from vidmatte.compute.cpu.colour import parse_colour

        if fit not in FITS:
            raise UsageError(f"unknown fit '{fit}'", hint=f"use {', '.join(FITS)}")
        self._fit = cast("Fit", fit)
        self._text = text
        self._built: list[Background] = []
        self._rgb: tuple[int, int, int] | None = None
        blur = _BLUR.fullmatch(text)
        self._strength = None if blur is None else float(blur[1]) if blur[1] else 0.0
        if _ASKS_FOR_BLUR.match(text) and (blur is None or (blur[1] and not self._strength)):
            raise UsageError(
                f"'{text}' is not a blur",
                hint="use blur, or blur:STRENGTH in percent of the longer side, like blur:2",
            )
        if blur is not None or _names_a_file(text):
            return
        try:
            self._rgb = parse_colour(text)
        except UsageError as exc:
            raise UsageError(
                f"background '{text}' is neither a file that exists nor a colour",
                hint="use a name like green, #00b140, a picture, a video, or blur",
            ) from exc

    @property
    def files(self) -> list[str]:
        """The file it reads, if any."""
        return [] if self._rgb is not None or self._strength is not None else [self._text]

    def check(self) -> None:
        """Open the file once, so that a wrong one is known at the start. Raises InputError."""
        for name in self.files:
            with self._source(name, threads=1):
                pass

    @staticmethod
    def _source(name: str, *, threads: int) -> FileSource:
        from vidmatte.sources.file import FileSource

        return FileSource(name, threads=threads)

    def build(self, info: VideoInfo, layout: Layout) -> Background:
        """Make the background for pictures of `info` in the working `layout`, until `close`."""
        built = self._build(info, layout)
        self._built.append(built)
        return built

    def close(self) -> None:
        """Close the files of the backgrounds that were built."""
        while self._built:
            self._built.pop().close()

    def _build(self, info: VideoInfo, layout: Layout) -> Background:
        from vidmatte.compute.cpu import background

        if self._rgb is not None:
            return background.colour_background(self._rgb, info, layout)
        if self._strength is not None:
            return background.blur_background(self._strength or None, info, layout)
        with self._source(self._text, threads=1) as source:
            if source.info.is_still:
                picture = upright_rgb(source)
                return background.picture_background(picture, self._fit, info, layout)
        return background.video_background(
            partial(self._source, self._text, threads=1), self._fit, info, layout
        )


def _names_a_file(text: str) -> bool:
    return os.path.isfile(text) or "/" in text or Path(text).suffix != ""


def upright_rgb(source: FileSource) -> NDArray[np.uint8]:
    """Decode the first picture of an entered source into (H, W, 3|4) uint8 RGB(A), upright."""
    from vidmatte.compute.cpu.geometry import to_upright

    frame = next(iter(source))
    described = frame.picture.format
    has_alpha = described.has_palette or any(c.is_alpha for c in described.components)
    rgb = frame.picture.to_ndarray(format="rgba" if has_alpha else "rgb24")
    return cast("NDArray[np.uint8]", to_upright(rgb, source.info.orientation))
