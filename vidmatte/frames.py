"""What travels through the pipeline: frames, mattes, and what a source says of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import av
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.uint8] | NDArray[np.uint16]

# ISO/IEC 23091-2 code points, as FFmpeg's AVCOL_* numbers them.
MATRIX_RGB, MATRIX_BT709, MATRIX_UNKNOWN = 0, 1, 2
MATRIX_BT470BG, MATRIX_SMPTE170M = 5, 6
PRIMARIES_UNKNOWN, PRIMARIES_BT2020 = 2, 9
TRANSFER_UNKNOWN, TRANSFER_PQ, TRANSFER_HLG = 2, 16, 18
RANGE_UNKNOWN, RANGE_LIMITED, RANGE_FULL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Layout:
    """How a planar picture lies in memory.

    Planes come in FFmpeg's order: Y U V [A], or G B R [A], or Y alone. Samples are uint8 up to
    8 bits, else little-endian uint16 with the value in the low `bits`. A chroma plane covers
    `1 << shift_x` by `1 << shift_y` luma samples per sample and is rounded up in size.
    """

    pix_fmt: str
    model: Literal["yuv", "rgb", "gray"]
    shift_x: int
    shift_y: int
    bits: int
    alpha: bool

    @property
    def peak(self) -> int:
        """The largest sample value, `2**bits - 1`."""
        return (1 << self.bits) - 1


_PLANAR = re.compile(r"(yuv)(a|j)?(4\d\d)p(?:(\d+)le)?|(gbr)(a)?p(?:(\d+)le)?|gray(?:(\d+)le)?")
_SHIFTS = {"410": (2, 2), "411": (2, 0), "420": (1, 1), "422": (1, 0), "440": (0, 1), "444": (0, 0)}


def layout_of(pix_fmt: str) -> Layout | None:
    """Describe a planar pixel format, or return None for packed, semi-planar and palette ones."""
    match = _PLANAR.fullmatch(pix_fmt)
    if match is None:
        return None
    yuv, flag, sampling, yuv_bits, gbr, gbr_alpha, gbr_bits, gray_bits = match.groups()
    if yuv:
        shift_x, shift_y = _SHIFTS[sampling]
        return Layout(pix_fmt, "yuv", shift_x, shift_y, int(yuv_bits or 8), flag == "a")
    if gbr:
        return Layout(pix_fmt, "rgb", 0, 0, int(gbr_bits or 8), gbr_alpha == "a")
    return Layout(pix_fmt, "gray", 0, 0, int(gray_bits or 8), False)


@dataclass(frozen=True, slots=True)
class Colour:
    """Colour tags as ISO/IEC 23091-2 numbers; 2 (range: 0) means untagged."""

    matrix: int = MATRIX_UNKNOWN
    range: int = RANGE_UNKNOWN
    primaries: int = PRIMARIES_UNKNOWN
    transfer: int = TRANSFER_UNKNOWN

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer is PQ or HLG."""
        return self.transfer in (TRANSFER_PQ, TRANSFER_HLG)

    def resolved(self, height: int) -> Colour:
        """Fill untagged values with what players assume: 601 below 720 lines, else 709; limited."""
        matrix = self.matrix
        if matrix in (MATRIX_UNKNOWN, 3):
            matrix = MATRIX_SMPTE170M if height < 720 else MATRIX_BT709
        return replace(self, matrix=matrix, range=self.range or RANGE_LIMITED)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to make a stored picture upright: mirror left-right if `mirror`, then turn clockwise."""

    rotate_cw: Literal[0, 90, 180, 270] = 0
    mirror: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether upright width is stored height."""
        return self.rotate_cw in (90, 270)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a source says of itself before the first frame.

    `width`, `height` are stored (before turning), `frame_rate`, `frame_count` and `duration_s`
    are hints that files get wrong: time stamps are the truth. `display_matrix` is the container's
    nine int32 values (16.16, 2.30 in the last column), kept to be written back unchanged.
    `mastering_display` and `content_light` are HDR10's static metadata in x265's notation.
    """

    name: str
    width: int
    height: int
    pix_fmt: str
    time_base: Fraction
    frame_rate: Fraction
    frame_count: int | None = None
    duration_s: float | None = None
    sample_aspect_ratio: Fraction = Fraction(1)
    orientation: Orientation = Orientation()
    display_matrix: tuple[int, ...] | None = None
    colour: Colour = Colour()
    field_order: Literal["progressive", "tff", "bff"] = "progressive"
    mastering_display: str | None = None
    content_light: str | None = None
    codec: str = ""
    container: str = ""
    is_still: bool = False
    is_live: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after turning, before the sample aspect ratio."""
        if self.orientation.swaps_sides:
            return self.height, self.width
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture with its time.

    `picture` belongs to the decoder, which predicts later pictures from it: read-only for
    everybody. `pts` and `duration` count `time_base`; a duration of 0 is unknown. `index` counts
    the source's frames from 0.
    """

    picture: av.VideoFrame
    index: int
    pts: int
    time_base: Fraction
    duration: int = 0

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass(frozen=True, slots=True)
class Matte:
    """A frame and its alpha.

    `alpha` is (H, W) in the stored orientation of the frame: uint8 0..255 for sources of 8 bits,
    uint16 0..65535 above. 0 is background.
    """

    frame: Frame
    alpha: Samples


def plane_views(picture: av.VideoFrame, *, writable: bool = False) -> list[Samples]:
    """View the planes of a planar picture without copying.

    Returns arrays (H, W) of uint8, or uint16 above 8 bits, in plane order; rows may be padded.
    Pass `writable=True` only for a picture of our own, never for a decoder's.
    """
    import numpy as np

    layout = layout_of(picture.format.name)
    assert layout is not None, picture.format.name
    sample = np.dtype(np.uint8 if layout.bits <= 8 else "<u2")
    views = []
    for plane in picture.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).view(sample)
        rows = rows.reshape(plane.height, plane.line_size // sample.itemsize)
        if not writable:
            rows.flags.writeable = False
        views.append(rows[:, : plane.width])
    return views
