"""Make the one small upright RGB picture that the network sees, and bring its answer back."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.colour import effective_colour, rgb_matrix, tone_map
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.frames import MATRIX_BT709, Layout, VideoInfo, layout_of, plane_views

if TYPE_CHECKING:
    import av

_SMALL = {"yuv": "yuv444p16le", "rgb": "gbrp16le", "gray": "gray16le"}


class Preparer:
    """Scales pictures of one source to the network's size.

    `size` is the (height, width) of the network's upright picture; the picture is stretched to
    it. Belongs to one thread: it keeps one swscale context.
    """

    def __init__(self, info: VideoInfo, size: tuple[int, int]) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._info = info
        self._size = size[::-1] if info.orientation.swaps_sides else size
        self._reformatter = VideoReformatter()
        # Without the last, planar RGB of even widths goes through YUV and loses half its columns.
        self._flags = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP

    def prepare(self, picture: av.VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write the picture into `out`, (H, W, 3) uint8 RGB in the network's size, upright.

        `picture` is in its stored orientation; formats that are not planar are read as swscale
        reads them. PQ and HLG are tone-mapped by one fixed curve. Nothing is stretched to a
        picture's own range.
        """
        cv2 = load_cv2()
        colour = self._info.colour
        small, bits = _small_layout(picture.format.name)
        planes = self._scaled(picture, small)
        matrix = self._matrix(small, bits, peak=small.peak if colour.is_hdr else 255)
        stored = cv2.transform(cv2.merge(planes), matrix)
        if colour.is_hdr:
            stored = tone_map(stored, colour.transfer)
        else:
            np.minimum(stored, 255, out=stored)
        out[...] = to_upright(stored, self._info.orientation)

    def _matrix(self, small: Layout, bits: int, *, peak: int) -> NDArray[np.float32]:
        """Return the matrix from small samples to RGB; swscale deepens samples by a shift."""
        own = replace(small, bits=bits)
        return rgb_matrix(effective_colour(self._info, own), own, peak, small.bits - bits)

    def _scaled(self, picture: av.VideoFrame, small: Layout) -> list[NDArray[np.uint8 | np.uint16]]:
        """Scale the planes, and nothing else: area means, chroma at the size of luma.

        Converting to RGB here, small, takes half the time that swscale takes to do both, and
        reads every matrix there is; its bilinear default is no faster and ten times as far from
        the exact mean (measured: benchmarks/NOTES.md, Preparing). Equal matrices and ranges keep
        swscale from converting.
        """
        own_range = effective_colour(self._info, small).range
        height, width = self._size
        scaled = self._reformatter.reformat(
            picture,
            width,
            height,
            small.pix_fmt,
            src_colorspace=MATRIX_BT709,
            dst_colorspace=MATRIX_BT709,
            src_color_range=own_range,
            dst_color_range=own_range,
            interpolation=self._flags,
            threads=1,
        )
        return list(plane_views(scaled))

    def to_stored(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring the network's upright (H, W) answer to the stored orientation, contiguous."""
        return np.ascontiguousarray(to_stored(probability, self._info.orientation))


@lru_cache(maxsize=16)
def _small_layout(pix_fmt: str) -> tuple[Layout, int]:
    """Choose the layout to scale a format into, and tell the bits of the format itself.

    16 bits cost nothing and save two roundings to 8.
    """
    from av.video.format import VideoFormat

    own, described = layout_of(pix_fmt), VideoFormat(pix_fmt)
    model = own.model if own is not None else "rgb" if described.is_rgb else "yuv"
    small = layout_of(_SMALL[model])
    assert small is not None
    return small, described.components[0].bits
