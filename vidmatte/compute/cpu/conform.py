"""Bring a decoder's pictures to the one planar layout and size that a run works in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidmatte.frames import Frame, Layout, VideoInfo, layout_of

if TYPE_CHECKING:
    import av

# Packed RGB that swscale takes to planar RGB without a detour through YUV.
DIRECT_RGB = frozenset({"rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb",
                        "0bgr", "rgb48le", "bgr48le", "rgba64le", "bgra64le"})  # fmt: skip


class Conformer:
    """Turns frames into frames of one planar layout and one size.

    Frames that have both already pass untouched, by reference. Semi-planar and packed pictures
    are only re-ordered. A change of size in the middle of a stream is scaled to the first size.
    `resized` and `reformatted` count such changes. Belongs to one thread.
    """

    def __init__(self, info: VideoInfo, layout: Layout) -> None:
        from av.video.reformatter import VideoReformatter

        self._info = info
        self._layout = layout
        self._reformatter = VideoReformatter()
        self._unpacker = VideoReformatter()
        self.resized = 0
        self.reformatted = 0
        self.resized_at_s = 0.0

    def conform(self, frame: Frame) -> Frame:
        """Return the frame with a picture in the working layout and size."""
        picture = frame.picture
        same_size = (picture.width, picture.height) == (self._info.width, self._info.height)
        if same_size and is_same_layout(picture.format.name, self._layout):
            return frame
        if not same_size:
            self.resized_at_s = self.resized_at_s if self.resized else frame.time_s
            self.resized += 1
        elif picture.format.name != self._info.pix_fmt:
            self.reformatted += 1
        return replace(frame, picture=self._convert(picture))

    def _convert(self, picture: av.VideoFrame) -> av.VideoFrame:
        from av.video.reformatter import Interpolation

        name = picture.format.name
        colour_range = 2 if name.startswith("yuvj") else int(picture.color_range) or 1
        if self._layout.model == "rgb":
            colour_range = 2
            if layout_of(name) is None and name not in DIRECT_RGB:
                step = "rgba64le" if self._layout.bits > 8 else "rgba"
                picture = self._unpacker.reformat(picture, format=step, threads=1)
        converted = self._reformatter.reformat(
            picture,
            self._info.width,
            self._info.height,
            self._layout.pix_fmt,
            src_color_range=colour_range,
            dst_color_range=colour_range,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        )
        if converted is picture:
            return picture
        converted.colorspace, converted.color_range = picture.colorspace, picture.color_range
        return converted


def is_same_layout(pix_fmt: str, wanted: Layout) -> bool:
    """Whether pictures of `pix_fmt` have the planes of `wanted`, whatever both are called."""
    own = layout_of(pix_fmt)
    return own is not None and replace(own, pix_fmt="") == replace(wanted, pix_fmt="")
