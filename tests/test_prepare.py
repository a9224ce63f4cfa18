"""The network's picture against an exact area-averaged reference; orientation; HDR."""

from fractions import Fraction

import av
import numpy as np
import pytest
from skimage.data import astronaut

from vidmatte.compute.cpu.colour import (
    effective_colour,
    matrix_for,
    planes_from_rgb,
    tone_map,
    yuv_colour,
)
from vidmatte.compute.cpu.geometry import to_stored, to_upright
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.frames import Colour, Orientation, VideoInfo, layout_of, plane_views

NETWORK = (64, 96)
# swscale works in 14-bit coefficients and rounds three times: 0.75 of 255 on average is far below
# what a network can see, and a wrong matrix, range or filter is far above.
MEAN_TOLERANCE, FLAT_TOLERANCE = 0.75, 2

ORIENTATIONS = [Orientation(turn, mirror) for turn in (0, 90, 180, 270) for mirror in (False, True)]


def info_of(pix_fmt, width, height, colour=Colour(), orientation=Orientation()):  # noqa: B008
    return VideoInfo(
        "clip",
        width,
        height,
        pix_fmt,
        Fraction(1, 25),
        Fraction(25),
        orientation=orientation,
        colour=colour,
    )


def photograph(width, height):
    """A real picture (fine texture, saturated colours), float64 RGB 0..1."""
    picture = astronaut()
    picture = np.concatenate([picture, picture[:, ::-1]], axis=1)
    return picture[:height, :width] / 255


def stored_picture(rgb, pix_fmt, colour):
    """A picture whose planes hold `rgb` (float, stored orientation) in the given colour."""
    layout = layout_of(pix_fmt)
    picture = av.VideoFrame(rgb.shape[1], rgb.shape[0], pix_fmt)
    planes = planes_from_rgb(np.rint(rgb * 65535).astype(np.uint16), colour, layout)
    for view, plane in zip(plane_views(picture, writable=True), planes, strict=False):
        view[...] = plane
    return picture


def area_mean(picture, size):
    """Exact mean over the (fractional) boxes of a smaller grid."""
    for axis, count in enumerate(size):
        length = picture.shape[axis]
        total = np.concatenate([np.zeros_like(picture.take([0], axis)), picture.cumsum(axis)], axis)
        edges = np.linspace(0, length, count + 1)
        low = np.minimum(edges.astype(int), length - 1)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(picture.ndim)])
        at_edges = total.take(low, axis) + part * picture.take(low, axis)
        picture = np.diff(at_edges, axis=axis) * count / length
    return picture


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p", "gbrp", "yuvj420p"])
@pytest.mark.parametrize("size", [(640, 384), (501, 333)], ids=str)
def test_prepared_picture_is_the_area_mean(pix_fmt, size):
    info = info_of(pix_fmt, *size)
    rgb = photograph(*size)
    out = np.empty((*NETWORK, 3), np.uint8)
    Preparer(info, NETWORK).prepare(stored_picture(rgb, pix_fmt, yuv_colour(info)), out)
    error = out - 255 * area_mean(rgb, NETWORK)
    assert abs(error).mean() < MEAN_TOLERANCE
    assert abs(error.mean()) < 0.1


COLOURS = {
    "bt601": Colour(6, 1, 6, 6),
    "bt601_full": Colour(5, 2, 5, 6),
    "bt709": Colour(1, 1, 1, 1),
    "bt709_full": Colour(1, 2, 1, 1),
    "fcc": Colour(4, 1, 2, 2),
    "smpte240m": Colour(7, 1, 7, 7),
    "untagged": Colour(),
    "reserved": Colour(3, 0, 3, 3),
    "rgb_matrix_on_yuv": Colour(0, 1, 1, 1),
}


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("height", [360, 720])
def test_colour_is_read_by_its_matrix_and_range(colour, height):
    """The samples are computed here from the standards' formulas, not by the code under test."""
    width, rgb = 96, np.array([200, 90, 30]) / 255
    kr, kb = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087)}.get(
        colour.matrix, (0.299, 0.114)
    )
    if colour.matrix in (0, 2, 3) and height == 720:
        kr, kb = 0.2126, 0.0722
    luma = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    chroma = (rgb[2] - luma) / (2 - 2 * kb), (rgb[0] - luma) / (2 - 2 * kr)
    full = colour.range == 2
    samples = [luma * 255 if full else 16 + luma * 219]
    samples += [128 + c * (255 if full else 224) for c in chroma]
    picture = av.VideoFrame(width, height, "yuv420p")
    picture.colorspace, picture.color_range = colour.matrix, colour.range
    picture.color_primaries, picture.color_trc = colour.primaries, colour.transfer
    for view, sample in zip(plane_views(picture, writable=True), samples, strict=True):
        view[...] = round(sample)
    out = np.empty((*NETWORK, 3), np.uint8)
    Preparer(info_of("yuv420p", width, height, colour), NETWORK).prepare(picture, out)
    assert abs(out - 255 * rgb).max() <= FLAT_TOLERANCE


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_network_sees_the_picture_upright_and_its_answer_goes_back(orientation):
    upright = np.zeros((320, 480, 3))
    upright[:160, :240] = (1, 0, 0)  # top left red, top right green, bottom left blue
    upright[:160, 240:] = (0, 1, 0)
    upright[160:, :240] = (0, 0, 1)
    stored = to_stored(upright, orientation)
    info = info_of("yuv420p", stored.shape[1], stored.shape[0], orientation=orientation)
    assert info.upright_size == (480, 320)
    preparer = Preparer(info, NETWORK)
    out = np.empty((*NETWORK, 3), np.uint8)
    preparer.prepare(stored_picture(stored, "yuv420p", yuv_colour(info)), out)
    corners = out[16, 16], out[16, -16], out[-16, 16], out[-16, -16]
    expected = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))
    for corner, colour in zip(corners, expected, strict=True):
        assert abs(corner.astype(int) - colour).max() <= FLAT_TOLERANCE
    answer = np.random.default_rng(0).random(NETWORK, np.float32)
    back = preparer.to_stored(answer)
    assert back.flags.c_contiguous
    assert (back.shape[0] > back.shape[1]) == orientation.swaps_sides
    np.testing.assert_array_equal(to_upright(back, orientation), answer)


def test_orientation_mirrors_before_it_turns_clockwise():
    stored = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(to_upright(stored, Orientation(90)), [[3, 1], [4, 2]])
    np.testing.assert_array_equal(to_upright(stored, Orientation(270)), [[2, 4], [1, 3]])
    np.testing.assert_array_equal(to_upright(stored, Orientation(0, True)), [[2, 1], [4, 3]])
    np.testing.assert_array_equal(to_upright(stored, Orientation(90, True)), [[4, 2], [3, 1]])
    for orientation in ORIENTATIONS:
        np.testing.assert_array_equal(
            to_upright(to_stored(stored, orientation), orientation), stored
        )


GRAYS = ["gray", "gray10le", "gray16le", "yuvj420p", "yuv420p10le", "gbrp", "gbrp10le", "gbrp16le"]


@pytest.mark.parametrize("pix_fmt", GRAYS)
@pytest.mark.parametrize("level", [0, 40, 128, 255])
def test_grays_keep_their_level_from_black_to_white(pix_fmt, level):
    info = info_of(pix_fmt, 96, 64)
    layout = layout_of(pix_fmt)
    flat = np.full((64, 96, 3), level / 255)
    picture = stored_picture(flat, pix_fmt, effective_colour(info, layout))
    out = np.empty((*NETWORK, 3), np.uint8)
    Preparer(info, NETWORK).prepare(picture, out)
    assert (out == level).all()


def test_samples_beyond_white_and_black_saturate():
    """Limited range leaves room above white and below black: it must not wrap around."""
    out = np.empty((*NETWORK, 3), np.uint8)
    for sample, level in ((255, 255), (0, 0)):
        picture = av.VideoFrame(96, 64, "yuv420p")
        for view, value in zip(
            plane_views(picture, writable=True), (sample, 128, 128), strict=True
        ):
            view[...] = value
        Preparer(info_of("yuv420p", 96, 64), NETWORK).prepare(picture, out)
        assert (out == level).all()


@pytest.mark.parametrize("pix_fmt", ["nv12", "yuyv422", "bgr24", "p010le", "rgba"])
def test_packed_pictures_are_read_too(pix_fmt):
    rgb = photograph(192, 128)
    info = info_of("yuv420p", 192, 128)
    planar = stored_picture(rgb, "yuv420p", yuv_colour(info))
    packed = planar.reformat(format=pix_fmt)
    results = [np.empty((*NETWORK, 3), np.uint8) for _ in range(2)]
    Preparer(info, NETWORK).prepare(planar, results[0])
    Preparer(info_of(pix_fmt, 192, 128), NETWORK).prepare(packed, results[1])
    # swscale's own conversion to 4:2:2 or RGB at full size lies between the two.
    assert abs(results[0].astype(float) - results[1]).mean() < 2


def pq_inverse(nit):
    """SMPTE ST 2084, from the standard's decimal constants."""
    power = (nit / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@pytest.mark.parametrize(
    ("transfer", "coded", "low", "high"),
    [
        (16, 0.0, 0, 0),
        (16, pq_inverse(203 * 0.2159), 126, 130),  # mid-gray 128 of sRGB stays where it is
        (16, pq_inverse(203.0), 225, 250),  # reference white: bright, with room above
        (16, pq_inverse(1000.0), 250, 255),
        (16, pq_inverse(10000.0), 255, 255),
        (18, 0.0, 0, 0),
        (18, 0.75, 225, 250),  # BT.2408: reference white is 75 % HLG
        (18, 1.0, 250, 255),
    ],
)
def test_tone_mapping_of_gray(transfer, coded, low, high):
    rgb = np.full((2, 2, 3), round(coded * 65535), np.uint16)
    mapped = tone_map(rgb, transfer)
    assert mapped.dtype == np.uint8
    assert np.ptp(mapped[0, 0].astype(int)) <= 1
    assert low <= mapped.min()
    assert mapped.max() <= high


@pytest.mark.parametrize("transfer", [16, 18])
def test_tone_mapping_is_monotonic_and_the_same_for_every_picture(transfer):
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16)
    mapped = tone_map(np.repeat(ramp[None, :, None], 3, axis=2), transfer)
    assert (np.diff(mapped[0].astype(int), axis=0) >= 0).all()
    part = tone_map(np.repeat(ramp[None, 1000:1100, None], 3, axis=2), transfer)
    np.testing.assert_array_equal(part[0], mapped[0, 1000:1100])


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("rgb", [(128, 128, 128), (150, 60, 40), (30, 90, 160)], ids=str)
def test_hdr_source_looks_like_its_sdr_original(transfer, rgb):
    """Colours below the knee come back: PQ and HLG, BT.2020 to BT.709, through real planes."""
    colour = Colour(9, 1, 9, transfer)
    info = info_of("yuv420p10le", 192, 128, colour)
    flat = np.broadcast_to(np.array(rgb) / 255, (128, 192, 3))
    out = np.empty((*NETWORK, 3), np.uint8)
    Preparer(info, NETWORK).prepare(stored_picture(flat, "yuv420p10le", colour), out)
    assert abs(out.astype(int) - rgb).max() <= 3  # two quantisations to 10 bits, one to 8


def test_matrix_rows():
    """White is luma 1 without chroma; pure blue and red reach the ends of their axis."""
    for number in (1, 4, 5, 6, 7, 9, 10):
        matrix = matrix_for(Colour(number))
        np.testing.assert_allclose(matrix @ (1, 1, 1), (1, 0, 0), atol=1e-12)
        np.testing.assert_allclose((matrix @ (0, 0, 1))[1], 0.5)
        np.testing.assert_allclose((matrix @ (1, 0, 0))[2], 0.5)
