"""Make the one small upright RGB picture that the network sees, and bring its answer back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu.colour import SWS_MATRIX, tone_map, yuv_colour
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.frames import MATRIX_BT709, RANGE_FULL, VideoInfo

if TYPE_CHECKING:
    import av


class Preparer:
    """Scales pictures of one source to the network's size.

    `size` is the (height, width) of the network's upright picture; the picture is stretched to
    it. Belongs to one thread: it keeps one swscale context.
    """

    def __init__(self, info: VideoInfo, size: tuple[int, int]) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        colour = yuv_colour(info)
        self._orientation = info.orientation
        self._size = size[::-1] if info.orientation.swaps_sides else size
        self._matrix = SWS_MATRIX.get(colour.matrix, MATRIX_BT709)
        self._range = colour.range
        self._hdr_transfer = colour.transfer if colour.is_hdr else None
        self._reformatter = VideoReformatter()
        # Area averaging with exact chroma is as fast as swscale's default bilinear and ten times
        # nearer to the exact picture (measured: benchmarks/NOTES.md, Preparing).
        self._flags = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

    def prepare(self, picture: av.VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write the picture into `out`, (H, W, 3) uint8 RGB in the network's size, upright.

        `picture` is in its stored orientation and any format that swscale reads. PQ and HLG are
        tone-mapped by one fixed curve. Nothing is stretched to a picture's own range.
        """
        height, width = self._size
        small = self._reformatter.reformat(
            picture,
            width,
            height,
            "rgb24" if self._hdr_transfer is None else "rgb48le",
            src_colorspace=self._matrix,
            src_color_range=self._range,
            dst_color_range=RANGE_FULL,
            interpolation=self._flags,
            threads=1,
        )
        out[...] = to_upright(self._rgb(small), self._orientation)

    def _rgb(self, small: av.VideoFrame) -> NDArray[np.uint8]:
        plane = small.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(small.height, plane.line_size)
        if self._hdr_transfer is None:
            return rows[:, : small.width * 3].reshape(small.height, small.width, 3)
        wide = rows.view("<u2")[:, : small.width * 3].reshape(small.height, small.width, 3)
        return tone_map(wide, self._hdr_transfer)

    def to_stored(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring the network's upright (H, W) answer to the stored orientation, contiguous."""
        return np.ascontiguousarray(to_stored(probability, self._orientation))
