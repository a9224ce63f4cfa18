"""Sources, backgrounds and an independent decoder that the tests of backgrounds share."""

import itertools
from fractions import Fraction

import av
import numpy as np

from vidmatte.compute.cpu.colour import effective_colour, planes_from_rgb
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.frames import (
    Colour,
    Frame,
    Orientation,
    VideoInfo,
    layout_of,
    plane_views,
)

COLOUR_TOLERANCE = 2.0  # of 255, after decoding back: the bound
# Tests on ramps allow one step more: half a chroma sample of position is worth that much there.
RAMP_TOLERANCE = 3.0
ORIENTATIONS = [Orientation(turn, mirror) for turn in (0, 90, 180, 270) for mirror in (False, True)]
SDR, UPRIGHT, SQUARE = Colour(), Orientation(), Fraction(1)


def info_of(pix_fmt, size, colour=SDR, orientation=UPRIGHT, aspect=SQUARE, rate=25):
    return VideoInfo(
        "clip",
        *size,
        pix_fmt,
        Fraction(1, 1000),
        Fraction(rate),
        sample_aspect_ratio=aspect,
        orientation=orientation,
        colour=colour,
    )


def frame_of(picture, time_ms=0, index=0):
    return Frame(picture, index, time_ms, Fraction(1, 1000), 40)


def blank(info):
    return frame_of(av.VideoFrame(info.width, info.height, info.pix_fmt))


def stored_planes(background, info):
    """The planes of a background of any kind for a blank frame."""
    layout = layout_of(info.pix_fmt)
    if background.constant is None:
        return background.planes(blank(info), np.zeros((info.height, info.width), np.uint8))
    shapes = [(info.height, info.width)]
    shapes += [(-(-info.height >> layout.shift_y), -(-info.width >> layout.shift_x))] * 2
    return [np.full(*pair) for pair in zip(shapes, background.constant, strict=False)]


WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 7: (0.212, 0.087), 4: (0.30, 0.11)}
BT2020_TO_BT709 = np.array(  # BT.2407-0, section 2, with the digits that its primaries give
    [
        [1.6604910, -0.5876411, -0.0728499],
        [-0.1245505, 1.1328999, -0.0083494],
        [-0.0181508, -0.1005789, 1.1187297],
    ]
)


def enlarge(plane, shape, shift_y, shift_x):
    """Chroma to luma size, linear between the centres of what each sample covers."""
    for axis, shift in ((0, shift_y), (1, shift_x)):
        if shift:
            count = plane.shape[axis]
            at = (np.arange(shape[axis]) + 0.5) / (1 << shift) - 0.5
            at = np.clip(at, 0, count - 1)
            low = np.minimum(at.astype(int), max(count - 2, 0))
            part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
            high = np.minimum(low + 1, count - 1)
            plane = plane.take(low, axis) * (1 - part) + plane.take(high, axis) * part
    return plane


def decoded(planes, layout, matrix, full_range):
    """Planes to R'G'B' in 0..1 of the source's own transfer, (H, W, 3)."""
    planes = [plane.astype(np.float64) for plane in planes]
    step = 1 << (layout.bits - 8)
    if layout.model == "rgb":
        return np.stack([planes[2], planes[0], planes[1]], -1) / layout.peak
    black, luma_span, chroma_span = (0, layout.peak, layout.peak)
    if not full_range:
        black, luma_span, chroma_span = 16 * step, 219 * step, 224 * step
    luma = (planes[0] - black) / luma_span
    if layout.model == "gray":
        return np.stack([luma] * 3, -1)
    blue, red = (
        (enlarge(p, luma.shape, layout.shift_y, layout.shift_x) - 128 * step) / chroma_span
        for p in planes[1:]
    )
    kr, kb = WEIGHTS.get(matrix, (0.299, 0.114))
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    return np.stack([r, (luma - kr * r - kb * b) / (1 - kr - kb), b], -1)


def nit_from_pq(coded):
    power = np.clip(coded, 0, 1) ** (1 / 78.84375)
    return 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (
        1 / 0.1593017578125
    )


def nit_from_hlg(coded):
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = scene @ (0.2627, 0.6780, 0.0593)
    return 1000 * np.maximum(luminance, 0)[..., None] ** 0.2 * scene


def displayed(rgb, transfer, primaries):
    """R'G'B' of the source to sRGB 0..255, with 203 nit as white."""
    if transfer in (16, 18):
        linear = (nit_from_pq if transfer == 16 else nit_from_hlg)(rgb) / 203
    elif primaries == 9:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    else:
        return rgb * 255
    linear = np.clip(linear @ BT2020_TO_BT709.T, 0, 1)
    coded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return coded * 255


SOURCES = {
    "bt601": ("yuv420p", (96, 64), Colour(6, 1, 6, 6), 6, False),
    "bt601_625": ("yuv422p", (96, 64), Colour(5, 1, 5, 6), 5, False),
    "bt709": ("yuv420p", (96, 64), Colour(1, 1, 1, 1), 1, False),
    "bt709_full": ("yuv420p", (96, 64), Colour(1, 2, 1, 1), 1, True),
    "yuvj": ("yuvj420p", (96, 64), Colour(), 6, True),
    "untagged_sd": ("yuv420p", (96, 64), Colour(), 6, False),
    "untagged_hd": ("yuv420p", (96, 720), Colour(), 1, False),
    "smpte240m": ("yuv420p", (96, 64), Colour(7, 1, 7, 7), 7, False),
    "bt709_10": ("yuv422p10le", (96, 64), Colour(1, 1, 1, 1), 1, False),
    "bt2020_sdr": ("yuv420p10le", (96, 64), Colour(9, 1, 9, 14), 9, False),
    "pq": ("yuv420p10le", (96, 64), Colour(9, 1, 9, 16), 9, False),
    "pq_full_12": ("yuv444p12le", (96, 64), Colour(9, 2, 9, 16), 9, True),
    "hlg": ("yuv420p10le", (96, 64), Colour(9, 1, 9, 18), 9, False),
    "gbr": ("gbrp", (96, 64), Colour(0, 2, 1, 13), 0, True),
    "gbr_10": ("gbrp10le", (96, 64), Colour(), 0, True),
    "odd_411": ("yuv411p", (97, 65), Colour(), 6, False),
}
COLOURS = [(0, 177, 64), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 40, 90), (20, 60, 200)]


def as_displayed(planes, source):
    pix_fmt, _, colour, matrix, full_range = source
    rgb = decoded(planes, layout_of(pix_fmt), matrix, full_range)
    return displayed(rgb, colour.transfer, colour.primaries)


def worst_rounding(planes, source):
    """How far half a code value in every plane moves the displayed colour.

    Near black the wide-gamut matrix and sRGB's slope make up to 4 of 255 from half a 10-bit
    step: no code value is nearer than that.
    """
    planes = [plane[:4, :4].astype(np.float64) for plane in planes]
    centre = as_displayed(planes, source)
    moves = itertools.product((-0.5, 0.5), repeat=3)
    moved = [[p + m for p, m in zip(planes, move, strict=True)] for move in moves]
    return max(abs(as_displayed(m, source) - centre).max() for m in moved)


def ramp(width, height, dtype=np.uint8):
    """Red rises to the right, green downwards, blue is constant."""
    x, y = (np.arange(n) + 0.5 for n in (width, height))
    picture = np.empty((height, width, 3))
    picture[..., 0] = 40 + 180 * x / width
    picture[..., 1] = (40 + 180 * y / height)[:, None]
    picture[..., 2] = 90
    return np.rint(picture * (np.iinfo(dtype).max / 255)).astype(dtype)


def expected_ramp(fit, image_size, info):
    """What an upright viewer with square pixels must see, and where it is background at all."""
    width, height = info.upright_size
    aspect = info.sample_aspect_ratio
    aspect = float(1 / aspect if info.orientation.swaps_sides else aspect)
    x, y = ((np.arange(n) + 0.5) / n - 0.5 for n in (width, height))
    shown_w, shown_h = width * aspect, float(height)
    factors = shown_w / image_size[0], shown_h / image_size[1]
    if fit != "stretch":
        factor = max(factors) if fit == "cover" else min(factors)
        x, y = x * shown_w / (factor * image_size[0]), y * shown_h / (factor * image_size[1])
    seen = np.empty((height, width, 3))
    seen[..., 0], seen[..., 2] = 40 + 180 * (x + 0.5), 90
    seen[..., 1] = (40 + 180 * (y + 0.5))[:, None]
    inside = (abs(x) < 0.5) & (abs(y) < 0.5)[:, None]
    return seen, inside


def shrink_mask(mask, margin):
    """Forget `margin` samples around every edge of a mask, where kinds of pixels mix."""
    kept = mask.copy()
    for dy, dx in itertools.product((-margin, 0, margin), repeat=2):
        kept &= np.roll(mask, (dy, dx), (0, 1))
    return kept


def check_ramp(planes, info, fit, image_size, margin=8):
    layout = layout_of(info.pix_fmt)
    colour = effective_colour(info, layout)
    rgb = decoded(planes, layout, colour.matrix, colour.range == 2)
    upright = to_upright(displayed(rgb, colour.transfer, colour.primaries), info.orientation)
    seen, inside = expected_ramp(fit, image_size, info)
    centre = np.zeros(inside.shape, bool)
    centre[margin:-margin, margin:-margin] = True
    error = abs(upright - seen).max(-1)
    assert (shrink_mask(inside, margin) & centre).any()
    assert error[shrink_mask(inside, margin) & centre].max() <= RAMP_TOLERANCE
    bars = shrink_mask(~inside, margin) & centre
    assert fit == "contain" or not bars.any()
    if bars.any():
        assert upright[bars].max() <= COLOUR_TOLERANCE


class Clip:
    """A source of given pictures and times that counts how often it is opened and closed."""

    def __init__(self, info, frames):
        self.info, self._frames = info, frames
        self.opened = self.closed = self.decoded = 0

    def open(self):
        return self

    def __enter__(self):
        self.opened += 1
        return self

    def __exit__(self, *_):
        self.closed += 1

    def __iter__(self):
        for frame in self._frames:
            self.decoded += 1
            yield frame


def picture_from(rgb_upright, info):
    """A decoded picture of a background video that shows `rgb_upright`."""
    layout = layout_of(info.pix_fmt)
    picture = av.VideoFrame(info.width, info.height, info.pix_fmt)
    rgb = np.ascontiguousarray(to_stored(rgb_upright, info.orientation))
    planes = planes_from_rgb(rgb, effective_colour(info, layout), layout)
    for view, plane in zip(plane_views(picture, writable=True), planes, strict=False):
        view[...] = plane
    return picture


def clip_of_ramp(info):
    return Clip(info, [frame_of(picture_from(ramp(*info.upright_size, np.uint16), info))])


def subject_scene(info, subject, room):
    """A source with a disc of one colour in a room of another, and the disc's alpha."""
    y, x = np.ogrid[: info.height, : info.width]
    radius = info.height * 0.3
    distance = np.hypot(x - info.width / 2, y - info.height / 2)
    alpha = np.clip(radius + 2 - distance, 0, 4)[..., None] / 4
    rgb = room + alpha * (np.array(subject, float) - room)
    layout = layout_of(info.pix_fmt)
    picture = picture_from(np.rint(rgb).astype(np.uint8), info)
    full = 255 if layout.bits <= 8 else 65535
    dtype = np.uint8 if full == 255 else np.uint16
    return frame_of(picture), np.rint(alpha[..., 0] * full).astype(dtype)
