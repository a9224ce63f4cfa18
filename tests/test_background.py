"""Backgrounds decoded back by the standards' formulas: position, orientation, colour, time."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from vidmatte.backdrop import Backdrop
from vidmatte.compute.cpu.background import (
    blur_background,
    colour_background,
    picture_background,
    video_background,
)
from vidmatte.compute.cpu.colour import effective_colour, parse_colour, planes_from_rgb
from vidmatte.compute.cpu.composite import Compositor
from vidmatte.compute.cpu.fitting import change_matrix
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.compute.cpu.looping import LoopedPictures
from vidmatte.errors import InputError, UsageError
from vidmatte.frames import (
    Colour,
    Frame,
    Matte,
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


# --- an independent decoder: planes to display R'G'B' 0..255, in sRGB ------------------------

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


@pytest.mark.parametrize("rgb", COLOURS, ids=str)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_colour_decodes_back(source, rgb):
    info = info_of(*source[:3])
    layout = layout_of(info.pix_fmt)
    image = np.broadcast_to(np.array(rgb, np.uint8), (30, 40, 3))
    for background in (
        colour_background(rgb, info, layout),
        picture_background(image, "stretch", info, layout),
        picture_background(image.astype(np.uint16) * 257, "cover", info, layout),
    ):
        planes = stored_planes(background, info)
        assert [p.shape for p in planes] == [
            (info.height, info.width),
            *[(-(-info.height >> layout.shift_y), -(-info.width >> layout.shift_x))] * 2,
        ]
        tolerance = max(COLOUR_TOLERANCE, worst_rounding(planes, source))
        assert abs(as_displayed(planes, source) - rgb).max() <= tolerance


@pytest.mark.parametrize(("pix_fmt", "colour", "full"), [
    ("gray", Colour(), True),
    ("gray", Colour(range=1), False),
    ("gray12le", Colour(), True),
])  # fmt: skip
@pytest.mark.parametrize("level", [0, 100, 255])
def test_gray_backgrounds_of_gray_sources(pix_fmt, colour, full, level):
    info = info_of(pix_fmt, (50, 30), colour)
    planes = stored_planes(colour_background((level,) * 3, info, layout_of(pix_fmt)), info)
    assert len(planes) == 1
    back = 255 * decoded(planes, layout_of(pix_fmt), 6, full)
    assert abs(back - level).max() <= COLOUR_TOLERANCE


def test_gray_source_in_a_yuv_layout_keeps_its_full_range():
    info = info_of("gray", (50, 30))
    assert effective_colour(info, layout_of("yuv420p")).range == 2
    samples = colour_background((255, 255, 255), info, layout_of("yuv420p")).constant
    assert samples == (255, 128, 128)


def test_hdr_white_is_at_203_nit():
    """BT.2408: 58 % of PQ, 75 % of HLG."""
    for transfer, percent in ((16, 58.07), (18, 75.0)):
        info = info_of("yuv420p10le", (8, 8), Colour(9, 1, 9, transfer))
        luma, *chroma = colour_background((255,) * 3, info, layout_of("yuv420p10le")).constant
        assert abs(luma - (64 + 876 * percent / 100)) <= 1
        assert chroma == [512, 512]


# --- geometry ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("aspect", [SQUARE, Fraction(64, 45)], ids=str)
def test_picture_lies_where_a_viewer_expects_it(orientation, fit, aspect):
    info = info_of("yuv420p", (360, 288), SDR, orientation, aspect)
    for image_size in ((500, 700), (900, 300), (80, 60)):
        background = picture_background(ramp(*image_size), fit, info, layout_of("yuv420p"))
        check_ramp(background.planes(blank(info), np.zeros(1)), info, fit, image_size)


@pytest.mark.parametrize("size", [(361, 289), (361, 288)], ids=str)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv411p", "yuv440p", "gbrp"])
def test_picture_in_odd_sizes_and_other_layouts(pix_fmt, size):
    info = info_of(pix_fmt, size)
    background = picture_background(ramp(640, 480, np.uint16), "cover", info, layout_of(pix_fmt))
    check_ramp(background.planes(blank(info), np.zeros(1)), info, "cover", (640, 480))


def test_transparent_picture_lies_over_black():
    info = info_of("gbrp", (4, 4))
    image = np.full((4, 4, 4), 200, np.uint8)
    image[:2, :, 3], image[2:, :, 3] = 255, 51
    green = picture_background(image, "stretch", info, layout_of("gbrp")).planes(None, None)[0]
    assert (green[:2] == 200).all()
    assert (green[2:] == 40).all()


# --- video ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("own", ORIENTATIONS[::3], ids=str)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_video_lies_where_a_viewer_expects_it(own, orientation, fit):
    info = info_of("yuv422p10le", (360, 288), SDR, orientation, Fraction(16, 15))
    own_info = info_of("yuv420p10le", (400, 200), Colour(1, 1, 1, 1), own)
    background = video_background(clip_of_ramp(own_info).open, fit, info, layout_of("yuv422p10le"))
    planes = background.planes(blank(info), np.zeros(1))
    check_ramp(planes, info, fit, own_info.upright_size)


@pytest.mark.parametrize("own_aspect", [Fraction(1, 2), Fraction(3, 2)], ids=str)
def test_video_with_its_own_pixel_shape(own_aspect):
    info = info_of("yuv420p", (320, 200))
    own_info = info_of("yuv420p", (300, 260), Colour(6, 1, 6, 6), Orientation(90), own_aspect)
    background = video_background(clip_of_ramp(own_info).open, "cover", info, layout_of("yuv420p"))
    shape = 260, int(300 * own_aspect)
    check_ramp(background.planes(blank(info), np.zeros(1)), info, "cover", shape)


@pytest.mark.parametrize("own", ["bt601", "bt709_full", "yuvj", "bt709_10", "pq", "hlg", "gbr"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_video_colour_decodes_back(own, source):
    """Every kind of background over every kind of source; HDR colours are below the knee."""
    own_pix_fmt, own_size, own_colour = SOURCES[own][:3]
    own_info, info = info_of(own_pix_fmt, own_size, own_colour), info_of(*source[:3])
    rgb = (120, 150, 60)
    flat = np.broadcast_to(np.array(rgb, np.uint8), (own_size[1], own_size[0], 3))
    clip = Clip(own_info, [frame_of(picture_from(flat, own_info))])
    background = video_background(clip.open, "stretch", info, layout_of(info.pix_fmt))
    planes = background.planes(blank(info), np.zeros(1))
    error = as_displayed(planes, source) - rgb
    # The background's own 8-bit YUV is rounded before ours is, and swscale dithers 10 bits to 8:
    # the colour is right on average, single samples may be off by another step each.
    assert abs(error.mean((0, 1))).max() <= COLOUR_TOLERANCE
    assert abs(error).max() <= COLOUR_TOLERANCE + 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv411p", "yuv444p12le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("own", "wanted"), [(6, 1), (1, 6), (9, 1), (8, 1), (1, 7)])
def test_change_of_matrix_keeps_every_colour(pix_fmt, full, own, wanted):
    """Against planes made in the wanted matrix directly; smooth colours, so chroma has no edges."""
    layout, size = layout_of(pix_fmt), (97, 65)
    picture = ramp(*size, np.uint16)
    picture[..., 2] = 65535 - picture[..., 0]
    colours = [Colour(matrix, 2 if full else 1) for matrix in (own, wanted)]
    given, expected = (planes_from_rgb(picture, colour, layout) for colour in colours)
    changed = change_matrix(given, *colours, layout)
    step = 1 << (layout.bits - 8)
    for plane, reference in zip(changed, expected, strict=True):
        error = plane.astype(float) - reference
        assert plane.shape == reference.shape
        assert plane.dtype == reference.dtype
        # Three roundings of one step each, and at the edges enlarged chroma is flat.
        assert abs(error).mean() <= 0.7 * max(step / 4, 1)
        assert abs(error[2:-4, 2:-4]).max() <= 2 * max(step / 2, 1)


def test_a_very_wide_video_is_cut_before_it_is_scaled():
    own_info = info_of("yuv420p", (2000, 4))
    info = info_of("yuv420p", (64, 480))
    background = video_background(clip_of_ramp(own_info).open, "cover", info, layout_of("yuv420p"))
    luma = background.planes(blank(info), np.zeros(1))[0]
    assert luma.shape == (480, 64)


def numbered_clip(times_ms, rate=25, durations=40):
    info = info_of("gray", (8, 8), rate=rate)
    frames = []
    for index, time_ms in enumerate(times_ms):
        picture = av.VideoFrame(8, 8, "gray")
        plane_views(picture, writable=True)[0][...] = index
        frames.append(Frame(picture, index, time_ms, Fraction(1, 1000), durations))
    return Clip(info, frames)


def shown(pictures, time_s):
    return int(plane_views(pictures.at(time_s))[0][0, 0])


def test_video_keeps_its_own_times_and_loops():
    clip = numbered_clip([500, 600, 900])  # 0 ms, 100 ms, 400 ms; ends at 440 ms
    pictures = LoopedPictures(clip.open)
    times = [0, 0.09, 0.1, 0.39, 0.4, 0.43, 0.44, 0.53, 0.54, 0.84, 0.88]
    assert [shown(pictures, t) for t in times] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 0]
    assert clip.opened == 3
    pictures.close()
    pictures.close()
    assert clip.closed == 3


def test_video_of_unknown_durations_ends_after_one_frame_time():
    pictures = LoopedPictures(numbered_clip([0, 100], rate=10, durations=0).open)
    assert [shown(pictures, t) for t in (0.0, 0.19, 0.21)] == [0, 1, 0]


def test_a_leap_in_time_costs_at_most_two_loops():
    clip = numbered_clip([0, 40, 80])
    pictures = LoopedPictures(clip.open)
    assert shown(pictures, 0.0) == 0
    assert shown(pictures, 36000.05) == 36000050 % 120 // 40
    assert clip.decoded <= 9
    assert shown(pictures, 5.0) == 36000050 % 120 // 40  # never backwards


def test_a_video_of_one_picture_is_a_still():
    clip = numbered_clip([70])
    pictures = LoopedPictures(clip.open)
    assert [shown(pictures, t) for t in (0, 5, 5000)] == [0, 0, 0]
    assert clip.opened == 1


def test_a_video_without_pictures_is_an_error():
    background = video_background(
        numbered_clip([]).open, "cover", info_of("gray", (8, 8)), layout_of("gray")
    )
    with pytest.raises(InputError, match="no picture"):
        background.planes(blank(info_of("gray", (8, 8))), np.zeros(1))
    background.close()


def test_video_starts_with_the_first_frame_and_never_writes_into_its_pictures():
    clip = numbered_clip([0, 40, 80, 120])
    info = info_of("gray", (8, 8))
    background = video_background(clip.open, "stretch", info, layout_of("gray"))
    levels = []
    for time_ms in (9000, 9039, 9041, 9100):
        picture = av.VideoFrame(8, 8, "gray")
        planes = background.planes(frame_of(picture, time_ms), np.zeros(1))
        levels.append(int(planes[0][4, 4]))
    assert levels == [0, 0, 1, 2]
    background.close()


# --- blur -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p", "yuv410p", "gbrp"])
@pytest.mark.parametrize("size", [(320, 240), (323, 237)], ids=str)
@pytest.mark.parametrize("strength", [0.3, 2.0, 10.0])
def test_blur_leaves_the_subject_out(pix_fmt, size, strength):
    """A red disc in a gray room must not tint the blurred room: no halo around the subject."""
    info = info_of(pix_fmt, size)
    frame, alpha = subject_scene(info, (230, 20, 20), np.array((120.0, 130.0, 140.0)))
    planes = blur_background(strength, info, layout_of(pix_fmt)).planes(frame, alpha)
    sources = plane_views(frame.picture)
    assert [p.shape for p in planes] == [p.shape for p in sources]
    assert [p.dtype for p in planes] == [p.dtype for p in sources]
    back = 255 * decoded(planes, layout_of(pix_fmt), 6, pix_fmt == "gbrp")
    error = abs(back - (120, 130, 140))
    # Chroma of 4:1:0 covers 4 by 4: nearer than that, source samples hold both colours.
    assert error[shrink_mask(alpha == 0, 4)].max() <= COLOUR_TOLERANCE
    assert error[alpha == 0].mean() <= COLOUR_TOLERANCE / 2


def test_blur_of_a_room_without_subject_is_a_gaussian():
    """Against scipy-free direct convolution: the variance of a blurred line is sigma squared."""
    info = info_of("gray", (640, 480))
    picture = av.VideoFrame(640, 480, "gray")
    plane = plane_views(picture, writable=True)[0]
    plane[...] = 0
    plane[:, 320:] = 200
    alpha = np.zeros((480, 640), np.uint8)
    background = blur_background(2.0, info, layout_of("gray"))
    edge = background.planes(frame_of(picture), alpha)[0][240].astype(np.float64)
    density = np.diff(edge) / 200
    at = np.arange(639) + 1.0
    mean = (density * at).sum()
    sigma = np.sqrt((density * (at - mean) ** 2).sum())
    assert abs(mean - 320) < 0.5
    assert abs(sigma - 0.02 * 640) < 1.0


def test_blur_of_a_picture_full_of_subject_is_still_a_picture():
    info = info_of("yuv420p", (64, 48))
    picture = picture_from(ramp(64, 48), info)
    alpha = np.full((48, 64), 255, np.uint8)
    planes = blur_background(None, info, layout_of("yuv420p")).planes(frame_of(picture), alpha)
    for plane, source in zip(planes, plane_views(picture), strict=True):
        assert abs(plane.mean() - source.mean()) < 2


def test_blur_of_a_gray_source_in_a_yuv_layout():
    picture = av.VideoFrame(33, 21, "gray")
    plane_views(picture, writable=True)[0][...] = 77
    background = blur_background(1.0, info_of("gray", (33, 21)), layout_of("yuv420p"))
    luma, *chroma = background.planes(frame_of(picture), np.zeros((21, 33), np.uint8))
    assert (luma == 77).all()
    assert all(plane.shape == (11, 17) and (plane == 128).all() for plane in chroma)


@pytest.mark.parametrize("strength", [0, -1, 26, float("nan")])
def test_blur_refuses_senseless_strengths(strength):
    with pytest.raises(UsageError, match="strength"):
        blur_background(strength, info_of("yuv420p", (64, 48)), layout_of("yuv420p"))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gbrp", "gray"])
def test_every_kind_composites(pix_fmt):
    info, layout = info_of(pix_fmt, (45, 33)), layout_of(pix_fmt)
    frame, alpha = subject_scene(info, (230, 20, 20), np.array((120.0, 130.0, 140.0)))
    own_info = info_of("yuv420p", (32, 32))
    for background in (
        colour_background((1, 2, 3), info, layout),
        picture_background(ramp(20, 30), "contain", info, layout),
        video_background(clip_of_ramp(own_info).open, "cover", info, layout),
        blur_background(None, info, layout),
    ):
        compositor = Compositor(layout, 45, 33, background=background)
        result = compositor.composite(Matte(frame, alpha))
        inside = alpha == np.iinfo(alpha.dtype).max
        np.testing.assert_array_equal(
            plane_views(result)[0][inside], plane_views(frame.picture)[0][inside]
        )
        background.close()


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("green", (0, 177, 64)),
        (" White ", (255, 255, 255)),
        ("#0f8", (0, 255, 136)),
        ("#12aBfF", (18, 171, 255)),
        ("12abff", (18, 171, 255)),
        ("1, 20,255", (1, 20, 255)),
    ],
)
def test_colours_that_can_be_meant(text, expected):
    assert parse_colour(text) == expected


@pytest.mark.parametrize("text", ["", "greeen", "#12345", "256,0,0", "1,2", "1,2,3,4", "-1,0,0"])
def test_colours_that_cannot(text):
    with pytest.raises(UsageError, match="not a colour"):
        parse_colour(text)


@pytest.mark.parametrize("text", ["blur:0", "blur:x", "blur:-1", "blur:"])
def test_a_blur_of_no_strength_is_refused_with_what_works(text: str) -> None:
    with pytest.raises(UsageError, match="is not a blur") as caught:
        Backdrop(text)
    assert "blur:2" in (caught.value.hint or "")
