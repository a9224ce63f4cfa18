"""Backgrounds decoded back by the standards' formulas: position, orientation, colour."""

from fractions import Fraction

import numpy as np
import pytest
from background_scenes import (
    COLOUR_TOLERANCE,
    COLOURS,
    ORIENTATIONS,
    SDR,
    SOURCES,
    SQUARE,
    as_displayed,
    blank,
    check_ramp,
    clip_of_ramp,
    decoded,
    info_of,
    ramp,
    stored_planes,
    subject_scene,
    worst_rounding,
)

from vidmatte.compute.cpu.background import (
    blur_background,
    colour_background,
    picture_background,
    video_background,
)
from vidmatte.compute.cpu.colour import effective_colour, parse_colour
from vidmatte.compute.cpu.composite import Compositor
from vidmatte.errors import UsageError
from vidmatte.frames import (
    Colour,
    Matte,
    layout_of,
    plane_views,
)


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
