"""Background videos: position, orientation, colour, and their own time."""

from fractions import Fraction

import av
import numpy as np
import pytest
from background_scenes import (
    COLOUR_TOLERANCE,
    ORIENTATIONS,
    SDR,
    SOURCES,
    Clip,
    as_displayed,
    blank,
    check_ramp,
    clip_of_ramp,
    frame_of,
    info_of,
    picture_from,
    ramp,
)

from vidmatte.compute.cpu.background import video_background
from vidmatte.compute.cpu.colour import planes_from_rgb
from vidmatte.compute.cpu.fitting import change_matrix
from vidmatte.compute.cpu.looping import LoopedPictures
from vidmatte.errors import InputError
from vidmatte.frames import (
    Colour,
    Frame,
    Orientation,
    layout_of,
    plane_views,
)


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
