"""Colour arithmetic: RGB to a source's code values, HDR to SDR for the network, colour names."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import row_bands
from vidmatte.errors import UsageError
from vidmatte.frames import (
    MATRIX_BT709,
    MATRIX_RGB,
    MATRIX_UNKNOWN,
    PRIMARIES_BT2020,
    RANGE_FULL,
    RANGE_UNKNOWN,
    TRANSFER_HLG,
    TRANSFER_PQ,
    Colour,
    Layout,
    VideoInfo,
)

if TYPE_CHECKING:
    from vidmatte.frames import Samples

Floats = NDArray[np.float32]

# The keying green of paint and fabric, not CSS's dark "green"; the rest are CSS Color 4 names.
_NAMES = {
    "green": (0, 177, 64),
    "aqua": (0, 255, 255),
    "beige": (245, 245, 220),
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "cyan": (0, 255, 255),
    "fuchsia": (255, 0, 255),
    "gold": (255, 215, 0),
    "gray": (128, 128, 128),
    "grey": (128, 128, 128),
    "lime": (0, 255, 0),
    "magenta": (255, 0, 255),
    "maroon": (128, 0, 0),
    "navy": (0, 0, 128),
    "olive": (128, 128, 0),
    "orange": (255, 165, 0),
    "pink": (255, 192, 203),
    "purple": (128, 0, 128),
    "red": (255, 0, 0),
    "silver": (192, 192, 192),
    "skyblue": (135, 206, 235),
    "teal": (0, 128, 128),
    "turquoise": (64, 224, 208),
    "violet": (238, 130, 238),
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
}

# (Kr, Kb) by ISO/IEC 23091-2 matrix number: BT.709, FCC, BT.601 (two), SMPTE 240M, BT.2020 (two;
# constant luminance, 10, is taken for 9: FFmpeg decodes it no other way).
_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_YCGCO = 8

# The matrices that swscale knows, as its SWS_CS numbers. It refuses pictures tagged with others
# (YCgCo, ICtCp, reserved): what it converts of these is read as BT.709.
SWS_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}

# Chromaticities (x, y) of red, green, blue and of white D65: BT.709-6 item 1.3, BT.2020-2 table 3.
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
_D65 = (0.3127, 0.3290)


def _xyz_from_rgb(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Build the normalised primary matrix of SMPTE RP 177-1993, section 3.3."""
    columns = np.array([(x, y, 1 - x - y) for x, y in primaries]).T
    white = np.array([_D65[0], _D65[1], 1 - sum(_D65)]) / _D65[1]
    scaled: NDArray[np.float64] = columns * np.linalg.solve(columns, white)
    return scaled


# Linear BT.709 RGB in BT.2020 primaries (BT.2087-0 gives it in four digits: too few near black).
BT709_TO_BT2020 = np.linalg.solve(_xyz_from_rgb(_BT2020), _xyz_from_rgb(_BT709))

REFERENCE_WHITE_NIT = 203.0  # BT.2408-7, section 2.1: HDR reference white
HLG_PEAK_NIT, HLG_GAMMA = 1000.0, 1.2  # BT.2100-2, table 5: nominal display and its system gamma
HLG_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Read a colour as (red, green, blue), each 0..255.

    Takes a name (`green` is the keying green #00b140; the rest as in CSS), `#rgb`, `#rrggbb` or
    `r,g,b`.

    Raises:
        UsageError: the text is none of these.

    """
    word = text.strip().lower()
    if word in _NAMES:
        return _NAMES[word]
    if match := re.fullmatch(r"#?([0-9a-f]{6})", word):
        value = int(match[1], 16)
        return value >> 16, value >> 8 & 255, value & 255
    if match := re.fullmatch(r"#([0-9a-f])([0-9a-f])([0-9a-f])", word):
        red, green, blue = (17 * int(digit, 16) for digit in match.groups())
        return red, green, blue
    if match := re.fullmatch(r"(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})", word):
        red, green, blue = (int(number) for number in match.groups())
        if max(red, green, blue) <= 255:
            return red, green, blue
    raise UsageError(
        f"not a colour: {text}",
        hint="use a name (green, white, ...), #rrggbb or r,g,b with 0..255; names: "
        + " ".join(sorted(_NAMES)),
    )


def yuv_colour(info: VideoInfo) -> Colour:
    """Say how the source's YUV samples are to be read, filling what it leaves untagged.

    `Colour.resolved`, except that yuvj formats have the full range and that an RGB matrix, which
    YUV planes cannot have, counts as untagged.
    """
    colour = info.colour
    if info.pix_fmt.startswith("yuvj"):
        colour = replace(colour, range=RANGE_FULL)
    if colour.matrix == MATRIX_RGB:
        colour = replace(colour, matrix=MATRIX_UNKNOWN)
    return colour.resolved(info.height)


def effective_colour(info: VideoInfo, layout: Layout) -> Colour:
    """Say how the samples of the working layout are to be read.

    RGB planes have no matrix and the full range; untagged gray sources have the full range, as
    FFmpeg reads them. A gray source that gets chroma must carry this range in its output's tags,
    or players stretch its luma.
    """
    if layout.model == "rgb":
        return replace(info.colour, matrix=MATRIX_RGB, range=RANGE_FULL)
    if info.pix_fmt.startswith(("gray", "ya", "mono")) and info.colour.range == RANGE_UNKNOWN:
        return replace(yuv_colour(info), range=RANGE_FULL)
    return yuv_colour(info)


def matrix_for(colour: Colour) -> NDArray[np.float64]:
    """Return the 3x3 matrix from R'G'B' (0..1) to Y' (0..1), Cb, Cr (-0.5..0.5).

    BT.709-6 item 3.2, BT.601-7 section 2.5, BT.2020-2 table 4; matrices nobody decodes are
    taken for BT.709.
    """
    if colour.matrix == _YCGCO:
        return np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]])
    kr, kb = _LUMA_WEIGHTS.get(colour.matrix, _LUMA_WEIGHTS[MATRIX_BT709])
    luma = np.array([kr, 1 - kr - kb, kb])
    blue = (np.array([0.0, 0.0, 1.0]) - luma) / (2 * (1 - kb))
    red = (np.array([1.0, 0.0, 0.0]) - luma) / (2 * (1 - kr))
    return np.stack([luma, blue, red])


def scale_and_offset(colour: Colour, layout: Layout) -> tuple[NDArray[np.float64], ...]:
    """Return (scale, offset), each of three planes, from unit values to code values.

    BT.2100-2 table 9: limited range is 219 (chroma 224) steps of `2**(bits-8)` from 16 (128).
    """
    step = float(1 << (layout.bits - 8))
    if layout.model == "rgb":
        return np.full(3, float(layout.peak)), np.zeros(3)
    if colour.range == RANGE_FULL:
        return np.full(3, float(layout.peak)), np.array([0.0, 128 * step, 128 * step])
    return np.array([219.0, 224.0, 224.0]) * step, np.array([16.0, 128.0, 128.0]) * step


@lru_cache(maxsize=8)
def rgb_matrix(colour: Colour, layout: Layout, peak: int, shift: int) -> NDArray[np.float32]:
    """Return the 3 x (planes + 1) matrix from samples, and 1, to R'G'B' in 0..peak.

    The samples are those of `layout`, shifted left by `shift` bits.
    """
    scale, offset = (values * (1 << shift) for values in scale_and_offset(colour, layout))
    if layout.model == "rgb":
        inverse = np.eye(3)[[2, 0, 1]] * peak / scale
    else:
        inverse = np.linalg.inv(matrix_for(colour)) * peak / scale
    if layout.model == "gray":
        inverse, offset = inverse[:, :1], offset[:1]
    return np.column_stack([inverse, -inverse @ offset]).astype(np.float32)


def colour_samples(rgb: tuple[int, int, int], colour: Colour, layout: Layout) -> tuple[int, ...]:
    """Return the sample of each colour plane for one sRGB colour (0..255)."""
    picture = np.array(rgb, np.uint8).reshape(1, 1, 3)
    return tuple(int(plane[0, 0]) for plane in planes_from_rgb(picture, colour, layout))


def planes_from_rgb(
    rgb: NDArray[np.uint8] | NDArray[np.uint16], colour: Colour, layout: Layout
) -> list[Samples]:
    """Convert an sRGB picture to the colour planes of a layout, correctly rounded.

    `rgb` is (H, W, 3), uint8 or uint16 over its full range, in the stored orientation. SDR
    takes R'G'B' as they are, as players do; wide-gamut and HDR sources get a conversion in
    linear light with white at 203 nit. Chroma is the mean over the luma samples it covers.
    """
    height, width = rgb.shape[:2]
    dtype = np.uint8 if layout.bits <= 8 else np.uint16
    sizes = [(height, width)]
    if layout.model != "gray":
        sizes += [(-(-height >> layout.shift_y), -(-width >> layout.shift_x))] * 2
    planes = [np.empty(size, dtype) for size in sizes]
    for band in row_bands(height):
        values = _band_values(rgb[band], colour, layout)
        for index, plane in enumerate(planes):
            shift_y = layout.shift_y if index else 0
            part = plane[band.start >> shift_y : band.stop >> shift_y]
            unit = values[..., index]
            if index:
                unit = _covered_mean(unit, 1 << layout.shift_x, 1 << layout.shift_y)
            part[...] = np.clip(np.rint(unit), 0, layout.peak)
    return planes


def _band_values(rgb: NDArray[np.uint8 | np.uint16], colour: Colour, layout: Layout) -> Floats:
    """Return code values before rounding, (H, W, planes), in plane order."""
    coded = _coded(rgb, colour)
    scale, offset = scale_and_offset(colour, layout)
    if layout.model == "rgb":
        values: Floats = coded[..., [1, 2, 0]] * np.float32(layout.peak)
        return values
    matrix = (matrix_for(colour) * scale[:, None]).astype(np.float32)
    return coded @ matrix.T + offset.astype(np.float32)


def _covered_mean(values: Floats, step_x: int, step_y: int) -> Floats:
    """Average boxes; those cut by the right and lower edge are smaller."""
    for axis, step in ((0, step_y), (1, step_x)):
        if step > 1:
            values = np.moveaxis(_covered_row_mean(np.moveaxis(values, axis, 0), step), 0, axis)
    return values


def _covered_row_mean(values: Floats, step: int) -> Floats:
    total = values[::step].copy()
    count = np.ones((len(total), 1), np.float32)
    for offset in range(1, step):
        part = values[offset::step]
        total[: len(part)] += part
        count[: len(part)] += 1
    total /= count
    return total


def _coded(srgb: NDArray[np.uint8 | np.uint16], colour: Colour) -> Floats:
    """Bring sRGB samples to R'G'B' (0..1) of the source's primaries and transfer."""
    peak = int(np.iinfo(srgb.dtype).max)
    if not (colour.is_hdr or colour.primaries == PRIMARIES_BT2020):
        return srgb.astype(np.float32) / np.float32(peak)
    linear: Floats = _srgb_decode_table(peak)[srgb] @ BT709_TO_BT2020.T.astype(np.float32)
    np.clip(linear, 0, 1, out=linear)
    if colour.transfer == TRANSFER_HLG:
        return _hlg_from_linear(linear)
    steps = np.rint(np.sqrt(linear) * np.float32(65535)).astype(np.uint16)
    return _encode_table(colour.transfer)[steps]


@lru_cache(maxsize=2)
def _srgb_decode_table(peak: int) -> Floats:
    return srgb_to_linear(np.arange(peak + 1, dtype=np.float32) / np.float32(peak))


@lru_cache(maxsize=2)
def _encode_table(transfer: int) -> Floats:
    """Map sqrt(linear), in 65536 steps, to PQ with white at 203 nit, or to the sRGB curve."""
    linear = (np.arange(65536) / 65535) ** 2
    if transfer == TRANSFER_PQ:
        return _pq_from_nit(linear * REFERENCE_WHITE_NIT)
    return linear_to_srgb(linear.astype(np.float32))


def srgb_to_linear(coded: Floats) -> Floats:
    """Undo the sRGB curve (IEC 61966-2-1), 0..1."""
    power = ((coded + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    return np.where(coded <= np.float32(0.04045), coded / np.float32(12.92), power)


def linear_to_srgb(linear: Floats) -> Floats:
    """Apply the sRGB curve (IEC 61966-2-1), 0..1."""
    power = np.float32(1.055) * linear ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(linear <= np.float32(0.0031308), linear * np.float32(12.92), power)


# SMPTE ST 2084:2014, section 5; also BT.2100-2 table 4.
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_from_nit(nit: NDArray[np.float64]) -> Floats:
    power = (nit / 10000) ** _PQ_M1
    coded = ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2
    return coded.astype(np.float32)


def _nit_from_pq(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    power = coded ** (1 / _PQ_M2)
    nit: NDArray[np.float64] = 10000 * (
        np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)
    ) ** (1 / _PQ_M1)
    return nit


# BT.2100-2 table 5: the HLG reference OETF.
_HLG_A = 0.17883277
_HLG_B, _HLG_C = 1 - 4 * _HLG_A, 0.5 - _HLG_A * np.log(4 * _HLG_A)


def _hlg_from_linear(linear: Floats) -> Floats:
    """Invert the OOTF (BT.2100-2 table 5, with black at 0), then apply the OETF; 1 is 203 nit."""
    display = linear * np.float32(REFERENCE_WHITE_NIT / HLG_PEAK_NIT)
    luminance = np.maximum(display @ HLG_LUMA, np.float32(1e-9))[..., None]
    scene = display * luminance ** np.float32((1 - HLG_GAMMA) / HLG_GAMMA)
    high = np.maximum(scene, np.float32(1 / 12))
    log = np.float32(_HLG_A) * np.log(12 * high - np.float32(_HLG_B)) + np.float32(_HLG_C)
    return np.where(scene <= np.float32(1 / 12), np.sqrt(3 * scene), log)


def _scene_from_hlg(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    exponential = (np.exp((coded - _HLG_C) / _HLG_A) + _HLG_B) / 12
    return np.where(coded <= 0.5, coded**2 / 3, exponential)


@lru_cache(maxsize=2)
def hdr_decode_table(transfer: int) -> Floats:
    """Map a 16-bit coded value to linear light: PQ to white = 203 nit, HLG to scene light."""
    coded = np.arange(65536) / 65535
    if transfer == TRANSFER_PQ:
        return (_nit_from_pq(coded) / REFERENCE_WHITE_NIT).astype(np.float32)
    return _scene_from_hlg(coded).astype(np.float32)


# Where tone mapping leaves the straight line, and its knee: 1 is reference white.
_KNEE = 0.75


@lru_cache(maxsize=1)
def sdr_encode_table() -> NDArray[np.uint8]:
    """Map sqrt(linear / 64), in 4096 steps, to 8-bit sRGB with highlights rolled off softly.

    Up to the knee light stays as it is; above, `knee + (1 - knee) * (1 - exp(-x))` with
    x = (light - knee) / (1 - knee) joins it with the same slope and never clips.
    """
    linear = (np.arange(4096) / 4095) ** 2 * 64
    excess = np.maximum(linear - _KNEE, 0) / (1 - _KNEE)
    rolled = np.where(linear <= _KNEE, linear, _KNEE + (1 - _KNEE) * -np.expm1(-excess))
    return np.rint(linear_to_srgb(rolled.astype(np.float32)) * 255).astype(np.uint8)


def tone_map(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Bring a PQ or HLG picture in BT.2020 primaries to 8-bit sRGB, the same for every frame.

    `rgb` is (H, W, 3) uint16, full range. Reference white (203 nit) stays bright, light above
    it is rolled off; nothing depends on the picture's own minimum or maximum.
    """
    mapped = np.empty(rgb.shape, np.uint8)
    for band in row_bands(len(rgb)):
        mapped[band] = _tone_map_band(rgb[band], transfer)
    return mapped


def _tone_map_band(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    linear = hdr_decode_table(transfer)[rgb]
    if transfer == TRANSFER_HLG:
        luminance = np.maximum(linear @ HLG_LUMA, np.float32(1e-9))[..., None]
        linear *= luminance ** np.float32(HLG_GAMMA - 1)
        linear *= np.float32(HLG_PEAK_NIT / REFERENCE_WHITE_NIT)
    linear = linear @ np.linalg.inv(BT709_TO_BT2020).T.astype(np.float32)
    steps = np.sqrt(np.clip(linear, 0, 64) / np.float32(64))
    mapped: NDArray[np.uint8] = sdr_encode_table()[np.rint(steps * 4095).astype(np.uint16)]
    return mapped
