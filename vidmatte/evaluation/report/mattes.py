"""Read, small and upright, the matte that an output holds, and what the output looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from vidmatte.compute.cpu.geometry import to_upright
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.errors import InputError
from vidmatte.frames import Colour, VideoInfo, plane_views

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Picture = NDArray[np.uint8]

Holds = Literal["alpha", "matte", "opaque"]
MOST_TINT = 12  # levels of 255: what lossy compression may colour a grey matte


class SmallMatteReader:
    """Reads mattes out of the pictures of one file: their alpha, or themselves where grey.

    `size` is the (height, width) to read at. Belongs to one thread.
    """

    def __init__(self, info: VideoInfo, size: tuple[int, int]) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        plain = replace(info, colour=Colour(range=info.colour.range))  # no curve for light
        self._preparer = Preparer(plain, size)
        self._info, self._size = info, size
        self._reformatter = VideoReformatter()
        self._flags = Interpolation.AREA | Interpolation.ACCURATE_RND

    def read(self, picture: av.VideoFrame) -> Floats | None:
        """Return the matte, (h, w) float32 0..1 upright, or None if the picture holds none."""
        if has_alpha(picture):
            alpha = self._alpha(picture)
        else:
            rgb = np.empty((*self._size, 3), np.uint8)
            self._preparer.prepare(picture, rgb)
            red, green, blue = cv2.split(rgb)
            if any(cv2.norm(green, other, cv2.NORM_INF) > MOST_TINT for other in (red, blue)):
                return None
            alpha = np.asarray(green, np.uint8)
        return np.multiply(alpha, np.float32(1 / 255), dtype=np.float32)

    def _alpha(self, picture: av.VideoFrame) -> Picture:
        height, width = self._size[::-1] if self._info.orientation.swaps_sides else self._size
        small = self._reformatter.reformat(
            picture, width, height, "yuva444p", interpolation=self._flags, threads=1
        )
        return np.asarray(to_upright(plane_views(small)[3], self._info.orientation), np.uint8)


def has_alpha(picture: av.VideoFrame) -> bool:
    """Whether the picture's format carries transparency."""
    return any(component.is_alpha for component in picture.format.components)


def what_it_holds(reader: SmallMatteReader, picture: av.VideoFrame) -> Holds:
    """Say where a file's matte is: in its alpha, in its grey pictures, or nowhere."""
    if has_alpha(picture):
        return "alpha"
    return "opaque" if reader.read(picture) is None else "matte"


def no_matte(name: str, when: str) -> InputError:
    """Say that a file's pictures hold no matte."""
    return InputError(
        f"{name}: {when} in colour and opaque, so no matte can be read from it",
        hint="name its matte too: --alpha FILE, as `vidmatte run --alpha FILE` writes it",
    )
