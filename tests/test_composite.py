"""Composites against an exact reference: every layout, odd sizes, depths, padded planes."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidmatte.compute.cpu.background import colour_background
from vidmatte.compute.cpu.composite import (
    Compositor,
    alpha_layout,
    chroma_alpha,
    matte_picture,
    own_alpha,
    pack_alpha,
    without_alpha,
)
from vidmatte.frames import Frame, Matte, VideoInfo, layout_of, plane_views

PIX_FMTS = [
    *("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "yuvj420p", "gray"),
    *("yuva420p", "yuva444p", "gbrp", "gbrap"),
    *("yuv420p9le", "yuv420p10le", "yuv422p10le", "yuv440p12le", "yuv444p14le", "yuv420p16le"),
    *("yuva444p10le", "yuva422p12le", "gbrp10le", "gbrap12le", "gbrp16le", "gray10le", "gray16le"),
]
SIZES = [(1, 1), (2, 3), (7, 5), (16, 16), (33, 18), (131, 6)]  # width, height


def picture_of(pix_fmt, width, height, seed=0):
    """Random samples in every plane, with random padding at the ends of the rows."""
    layout = layout_of(pix_fmt)
    picture = av.VideoFrame(width, height, pix_fmt)
    rng = np.random.default_rng(seed)
    for plane in picture.planes:
        noise = rng.integers(0, 256, plane.buffer_size, np.uint8)
        np.frombuffer(plane, np.uint8)[:] = noise
    for view in plane_views(picture, writable=True):
        view[...] = rng.integers(0, layout.peak + 1, view.shape)
    return picture


def frame_of(picture):
    return Frame(picture, 0, 0, Fraction(1, 25))


def alpha_of(layout, width, height, seed=0):
    """Soft alpha with plenty of exact zeros and ones."""
    full = 255 if layout.bits <= 8 else 65535
    rng = np.random.default_rng(seed + 1)
    alpha = rng.integers(0, full + 1, (height, width))
    alpha[rng.random((height, width)) < 0.3] = full
    alpha[rng.random((height, width)) < 0.3] = 0
    alpha[: height // 3, : width // 2] = full
    return alpha.astype(np.uint8 if full == 255 else np.uint16)


def covered(layout, plane, row, column, height, width, interlaced=False):
    """Index the luma samples that one sample of a plane covers, field by field if interlaced."""
    if plane == 0 or layout.model != "yuv":
        return np.ix_([row], [column])
    columns = range(column << layout.shift_x, (column + 1) << layout.shift_x)
    rows = range(row << layout.shift_y, (row + 1) << layout.shift_y)
    if interlaced and layout.shift_y:
        field, line = row % 2, row // 2
        rows = [2 * r + field for r in range(line << layout.shift_y, (line + 1) << layout.shift_y)]
    return np.ix_([r for r in rows if r < height], [c for c in columns if c < width])


def reference_alpha(alpha, layout, plane, shape, interlaced=False):
    """Mean alpha per sample of a plane, rounded half up to the alpha's own steps, in float64."""
    mean = np.empty(shape)
    for row, column in np.ndindex(shape):
        box = alpha[covered(layout, plane, row, column, *alpha.shape, interlaced)]
        mean[row, column] = np.floor(box.astype(np.float64).mean() + 0.5)
    return mean


def reference_blend(source, background, alpha):
    full = 255.0 if source.dtype == np.uint8 else 65535.0
    under = np.asarray(background, np.float64)
    return np.rint(under + (source.astype(np.float64) - under) * alpha / full)


class PlanesBackground:
    """Random planes in the working layout."""

    constant = None

    def __init__(self, pix_fmt, width, height, seed=5):
        self.picture = picture_of(pix_fmt, width, height, seed)

    def planes(self, frame, alpha):
        return plane_views(self.picture)[: self.count]

    @property
    def count(self):
        layout = layout_of(self.picture.format.name)
        return 1 if layout.model == "gray" else 3


class ConstantBackground:
    def __init__(self, *samples):
        self.constant = samples

    def planes(self, frame, alpha):
        raise AssertionError


@pytest.mark.parametrize("pix_fmt", PIX_FMTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interlaced", [False, True])
def test_composite_equals_the_exact_blend(pix_fmt, size, interlaced):
    layout = layout_of(pix_fmt)
    picture = picture_of(pix_fmt, *size)
    background = PlanesBackground(pix_fmt, *size)
    alpha = alpha_of(layout, *size)
    compositor = Compositor(layout, *size, background=background, interlaced=interlaced)
    result = compositor.composite(Matte(frame_of(picture), alpha))
    assert result.format.name == without_alpha(layout).pix_fmt
    for index, out in enumerate(plane_views(result)):
        mean = reference_alpha(alpha, layout, index, out.shape, interlaced)
        source = plane_views(picture)[index]
        expected = reference_blend(source, plane_views(background.picture)[index], mean)
        np.testing.assert_array_equal(out, expected)


def wide_chroma_mean(alpha):
    """Box mean of 2 by 2, without a loop, for even sizes."""
    boxes = alpha.reshape(alpha.shape[0] // 2, 2, alpha.shape[1] // 2, 2).astype(np.float64)
    return np.floor(boxes.mean((1, 3)) + 0.5)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("constant", [False, True])
def test_composite_of_many_tiles(pix_fmt, constant):
    layout, size = layout_of(pix_fmt), (1030, 300)
    picture, alpha = picture_of(pix_fmt, *size), alpha_of(layout, *size)
    alpha[:, 490:] = 0
    alpha[200:, 490:] = np.iinfo(alpha.dtype).max
    background = PlanesBackground(pix_fmt, *size)
    if constant:
        background = ConstantBackground(16, 128, layout.peak)
    matte = Matte(frame_of(picture), alpha)
    result = Compositor(layout, *size, background=background).composite(matte)
    for index, out in enumerate(plane_views(result)):
        under = background.constant or [np.array(p) for p in plane_views(background.picture)]
        mean = alpha if index == 0 else wide_chroma_mean(alpha)
        expected = reference_blend(plane_views(picture)[index], under[index], mean)
        np.testing.assert_array_equal(out, expected)


@given(
    pix_fmt=st.sampled_from(PIX_FMTS),
    width=st.integers(1, 40),
    height=st.integers(1, 24),
    interlaced=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_full_alpha_is_the_source_and_no_alpha_the_background(
    pix_fmt, width, height, interlaced, seed
):
    """Promise 1: where all covered alpha is 1, samples are bit-equal to the source."""
    layout = layout_of(pix_fmt)
    picture = picture_of(pix_fmt, width, height, seed)
    background = PlanesBackground(pix_fmt, width, height, seed ^ 1)
    alpha = alpha_of(layout, width, height, seed)
    full = np.iinfo(alpha.dtype).max
    compositor = Compositor(layout, width, height, background=background, interlaced=interlaced)
    result = compositor.composite(Matte(frame_of(picture), alpha))
    triples = zip(
        plane_views(result), plane_views(picture), plane_views(background.picture), strict=False
    )
    for index, (out, source, under) in enumerate(triples):
        for row, column in np.ndindex(out.shape):
            box = alpha[covered(layout, index, row, column, height, width, interlaced)]
            if box.size and box.min() == full:
                assert out[row, column] == source[row, column]
            if box.size and box.max() == 0:
                assert out[row, column] == under[row, column]


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_exact_for_every_alpha(bits):
    """All 8-bit triples of a grid, and 16-bit samples around the places where rounding turns."""
    pix_fmt, full = ("gray", 255) if bits == 8 else ("gray16le", 65535)
    if bits == 8:
        source, alpha = np.meshgrid(np.arange(256), np.arange(256))
    else:
        source, alpha = np.random.default_rng(3).integers(0, 65536, (2, 256, 256))
        source[:64] = np.random.default_rng(4).choice([0, 1, 65534, 65535], (64, 256))
        alpha[:32] = np.random.default_rng(5).choice([0, 1, 32767, 32768, 65534, 65535], (32, 256))
    dtype = np.uint8 if bits == 8 else np.uint16
    picture = av.VideoFrame(256, 256, pix_fmt)
    plane_views(picture, writable=True)[0][...] = source
    for under in (0, 1, full // 2, full - 1, full):
        background = ConstantBackground(under)
        compositor = Compositor(layout_of(pix_fmt), 256, 256, background=background)
        out = plane_views(compositor.composite(Matte(frame_of(picture), alpha.astype(dtype))))[0]
        # Integer arithmetic in int64: float64 would hide nothing here, but this proves it.
        numerator = source.astype(np.int64) * alpha + under * (full - alpha.astype(np.int64))
        np.testing.assert_array_equal(out, (2 * numerator + full) // (2 * full))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv411p", "yuv410p", "yuv440p"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_chroma_alpha_is_the_mean_of_what_it_covers(pix_fmt, dtype, size):
    layout = layout_of(pix_fmt)
    width, height = size
    alpha = np.random.default_rng(2).integers(0, np.iinfo(dtype).max + 1, (height, width))
    for interlaced in (False, True):
        # A view into a wider array: rows need not be contiguous.
        held = np.zeros((height, width + 9), dtype)
        held[:, 4 : 4 + width] = alpha
        result = chroma_alpha(held[:, 4 : 4 + width], layout, interlaced=interlaced)
        assert result.dtype == dtype
        assert result.shape == (-(-height >> layout.shift_y), -(-width >> layout.shift_x))
        expected = reference_alpha(alpha, layout, 1, result.shape, interlaced)
        np.testing.assert_array_equal(result, expected)


def test_interlaced_chroma_keeps_fields_apart():
    alpha = np.zeros((16, 8), np.uint8)
    alpha[1::2] = 255
    chroma = chroma_alpha(alpha, layout_of("yuv420p"), interlaced=True)
    np.testing.assert_array_equal(chroma[0::2], 0)
    np.testing.assert_array_equal(chroma[1::2], 255)


def test_composite_never_writes_into_the_source():
    picture = picture_of("yuv420p", 64, 48)
    before = [bytes(plane) for plane in picture.planes]
    info = VideoInfo("x", 64, 48, "yuv420p", Fraction(1, 25), Fraction(25))
    background = colour_background((0, 177, 64), info, layout_of("yuv420p"))
    compositor = Compositor(layout_of("yuv420p"), 64, 48, background=background)
    matte = Matte(frame_of(picture), alpha_of(layout_of("yuv420p"), 64, 48))
    first, second = compositor.composite(matte), compositor.composite(matte)
    assert before == [bytes(plane) for plane in picture.planes]
    assert all(
        np.array_equal(*pair) for pair in zip(*map(plane_views, (first, second)), strict=True)
    )
    assert not np.shares_memory(plane_views(first)[0], plane_views(second)[0])


def test_composite_carries_the_colour_tags():
    picture = picture_of("yuv420p10le", 8, 8)
    picture.colorspace, picture.color_range = 9, 1
    picture.color_primaries, picture.color_trc = 9, 16
    layout = layout_of("yuv420p10le")
    matte = Matte(frame_of(picture), alpha_of(layout, 8, 8))
    compositor = Compositor(layout, 8, 8, background=ConstantBackground(64, 512, 512))
    for result in (compositor.composite(matte), pack_alpha(matte, alpha_layout(layout))):
        assert (result.colorspace, result.color_range) == (9, 1)
        assert (result.color_primaries, result.color_trc) == (9, 16)


@pytest.mark.parametrize(("gray", "pix_fmt"), [("gray", "yuv420p"), ("gray12le", "yuv444p12le")])
def test_gray_over_colour_gets_chroma(gray, pix_fmt):
    layout = layout_of(pix_fmt)
    picture = picture_of(gray, 9, 7)
    alpha = alpha_of(layout, 9, 7)
    background = ConstantBackground(20, 30, layout.peak)
    compositor = Compositor(layout, 9, 7, background=background)
    luma, blue, _ = plane_views(compositor.composite(Matte(frame_of(picture), alpha)))
    np.testing.assert_array_equal(luma, reference_blend(plane_views(picture)[0], 20, alpha))
    mean = reference_alpha(alpha, layout, 1, blue.shape)
    neutral = np.full(blue.shape, 1 << (layout.bits - 1), blue.dtype)
    np.testing.assert_array_equal(blue, reference_blend(neutral, 30, mean))


@pytest.mark.parametrize("pix_fmt", ["yuva420p", "yuva444p10le", "gbrap12le", "yuva444p16le"])
def test_own_alpha_multiplies_the_matte(pix_fmt):
    layout = layout_of(pix_fmt)
    picture, alpha = picture_of(pix_fmt, 31, 17), alpha_of(layout, 31, 17)
    own = plane_views(picture)[3].astype(np.float64)
    result = own_alpha(picture, alpha)
    assert result.dtype == alpha.dtype
    np.testing.assert_array_equal(result, np.rint(alpha * own / layout.peak))
    plane_views(picture, writable=True)[3][...] = layout.peak
    np.testing.assert_array_equal(own_alpha(picture, alpha), alpha)


def test_own_alpha_of_an_opaque_source_is_the_matte():
    alpha = alpha_of(layout_of("yuv420p"), 5, 5)
    assert own_alpha(picture_of("yuv420p", 5, 5), alpha) is alpha


@pytest.mark.parametrize(
    ("pix_fmt", "expected"),
    [
        ("yuv420p", "yuva420p"),
        ("yuvj422p", "yuva422p"),
        ("yuv422p10le", "yuva422p10le"),
        ("yuva444p12le", "yuva444p12le"),
        ("gbrp", "gbrap"),
        ("gbrp14le", "gbrap14le"),
        ("gray", "yuva444p"),
        ("gray16le", "yuva444p16le"),
        ("yuv440p", None),
        ("yuv411p", None),
        ("yuv420p12le", None),
        ("gbrp9le", None),
    ],
)
def test_alpha_layout(pix_fmt, expected):
    layout = alpha_layout(layout_of(pix_fmt))
    assert (layout and layout.pix_fmt) == expected
    if layout:
        assert layout.alpha
        assert len(av.VideoFrame(4, 4, layout.pix_fmt).planes) == 4


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gbrp12le", "yuva444p10le", "gray"])
def test_pack_alpha_keeps_the_planes_and_adds_alpha(pix_fmt):
    layout = layout_of(pix_fmt)
    target = alpha_layout(layout)
    picture, alpha = picture_of(pix_fmt, 13, 7), alpha_of(layout, 13, 7)
    *colours, own = plane_views(pack_alpha(Matte(frame_of(picture), alpha), target))
    sources = plane_views(picture)
    for out, source in zip(colours, sources, strict=False):
        np.testing.assert_array_equal(out, source)
    if layout.model == "gray":
        assert all((plane == 1 << (layout.bits - 1)).all() for plane in colours[1:])
    full = 255 if layout.bits <= 8 else 65535
    np.testing.assert_array_equal(own, np.rint(alpha / full * target.peak))


def test_pack_alpha_takes_foreground_planes():
    layout = layout_of("yuv420p")
    matte = Matte(frame_of(picture_of("yuv420p", 8, 6)), alpha_of(layout, 8, 6))
    foreground = plane_views(picture_of("yuv420p", 8, 6, seed=9))
    packed = plane_views(pack_alpha(matte, alpha_layout(layout), foreground=foreground))
    for out, plane in zip(packed, foreground, strict=False):
        np.testing.assert_array_equal(out, plane)


@pytest.mark.parametrize(("pix_fmt", "expected"), [("yuv420p", "gray"), ("gbrp10le", "gray16le")])
def test_matte_picture_is_the_alpha(pix_fmt, expected):
    alpha = alpha_of(layout_of(pix_fmt), 21, 9)
    picture = matte_picture(Matte(frame_of(picture_of(pix_fmt, 21, 9)), alpha))
    assert picture.format.name == expected
    assert picture.color_range == 2
    np.testing.assert_array_equal(plane_views(picture)[0], alpha)
