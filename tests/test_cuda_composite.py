"""Composites and blurs on the device against the CPU's: bit-equal, and within one of 255."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from background_scenes import info_of, subject_scene
from test_composite import (
    PIX_FMTS,
    SIZES,
    ConstantBackground,
    PlanesBackground,
    alpha_of,
    frame_of,
    picture_of,
)

from vidmatte.compute.cpu.background import blur_background
from vidmatte.compute.cpu.composite import Compositor, alpha_layout, pack_alpha
from vidmatte.compute.cpu.composite import chroma_alpha as host_chroma_alpha
from vidmatte.compute.cpu.composite import own_alpha as host_own_alpha
from vidmatte.compute.cuda.blur import BlurBackground
from vidmatte.compute.cuda.composite import (
    blend,
    chroma_alpha,
    composite,
    own_alpha,
    scaled_alpha,
)
from vidmatte.errors import UsageError
from vidmatte.frames import Matte, layout_of, plane_views

CPU = torch.device("cpu")
# Of the peak: the CPU enlarges in fixed point and from 8-bit samples, the device in floats.
BLUR_TOLERANCE = 1 / 255


def tensor_of(plane):
    return plane if isinstance(plane, int) else torch.from_numpy(plane.copy())


def tensors_of(picture):
    return [tensor_of(view) for view in plane_views(picture)]


def check_composite(picture, alpha, background, layout, interlaced):
    size = picture.width, picture.height
    compositor = Compositor(layout, *size, background=background, interlaced=interlaced)
    expected = plane_views(compositor.composite(Matte(frame_of(picture), alpha)))
    under = background.constant or [tensor_of(p) for p in background.planes(None, None)]
    result = composite(tensors_of(picture), tensor_of(alpha), under, layout, interlaced=interlaced)
    assert len(result) == len(expected)
    for own, host in zip(result, expected, strict=True):
        np.testing.assert_array_equal(own.numpy(), host)
        assert own.numpy().dtype == host.dtype


@pytest.mark.parametrize("pix_fmt", PIX_FMTS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_composite_is_bit_equal_to_the_cpu(pix_fmt, interlaced):
    layout = layout_of(pix_fmt)
    for size in SIZES:
        background = PlanesBackground(pix_fmt, *size)
        alpha = alpha_of(layout, *size)
        check_composite(picture_of(pix_fmt, *size), alpha, background, layout, interlaced)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gbrp", "yuv420p10le", "yuv444p16le", "gray"])
def test_composite_over_one_colour_is_bit_equal_to_the_cpu(pix_fmt):
    layout = layout_of(pix_fmt)
    background = ConstantBackground(
        *(0, layout.peak, layout.peak // 3)[: 1 + 2 * (pix_fmt != "gray")]
    )
    picture, alpha = picture_of(pix_fmt, 131, 67), alpha_of(layout, 131, 67)
    check_composite(picture, alpha, background, layout, False)


@pytest.mark.parametrize(("gray", "working"), [("gray", "yuv420p"), ("gray10le", "yuv444p10le")])
@pytest.mark.parametrize("constant", [False, True])
def test_a_gray_source_gets_the_colour_of_its_background(gray, working, constant):
    layout = layout_of(working)
    background = PlanesBackground(working, 33, 18)
    if constant:
        background = ConstantBackground(3, layout.peak, 77)
    picture, alpha = picture_of(gray, 33, 18), alpha_of(layout, 33, 18)
    check_composite(picture, alpha, background, layout, False)


def test_every_blend_of_8_bits_is_correctly_rounded():
    """All 2**24 of source, background and alpha, against whole numbers."""
    source = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    background = source.T.contiguous()
    over, under = source.to(torch.int32), background.to(torch.int32)
    for level in range(256):
        alpha = torch.full((256, 256), level, dtype=torch.uint8)
        exact = (under * 255 + (over - under) * level + 127) // 255
        assert torch.equal(blend(source, background, alpha).to(torch.int32), exact)


@pytest.mark.parametrize("near_tie", [False, True])
def test_blends_of_16_bits_are_correctly_rounded(near_tie):
    """Random samples, and those whose quotient lies nearest to a half."""
    rng = np.random.default_rng(0)
    over, under, alpha = rng.integers(0, 65536, (3, 200, 1000), np.int64)
    if near_tie:  # 65535 * n + 32767, the numerator, is odd times a power of two
        over = 1 << rng.integers(0, 16, over.shape)
        under = np.zeros_like(over)
        alpha = (rng.integers(0, over) * 65535 + 32767 + rng.integers(0, 2, over.shape)) // over
        numerator = over * alpha % 65535
        assert (abs(numerator - 32767.5) < 1).any()
    planes = (torch.from_numpy(x.astype(np.uint16)) for x in (over, under, alpha))
    exact = (under * 65535 + (over - under) * alpha + 32767) // 65535
    np.testing.assert_array_equal(blend(*planes).numpy(), exact)


@pytest.mark.parametrize(
    "pix_fmt", ["yuva420p", "gbrap", "yuva444p10le", "yuva422p12le", "yuv420p"]
)
def test_own_alpha_is_bit_equal_to_the_cpu(pix_fmt):
    layout = layout_of(pix_fmt)
    picture, alpha = picture_of(pix_fmt, 97, 53), alpha_of(layout, 97, 53)
    given = tensor_of(alpha)
    result = own_alpha(tensors_of(picture), given, layout)
    np.testing.assert_array_equal(result.numpy(), host_own_alpha(picture, alpha))
    assert (result is given) == (not layout.alpha)


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuv422p10le", "yuv420p9le", "gbrp12le", "gbrp14le"]
)
def test_packed_alpha_is_bit_equal_to_the_cpu(pix_fmt):
    layout = alpha_layout(layout_of(pix_fmt))
    alpha = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    alpha = alpha.astype(np.uint8) if layout.bits == 8 else alpha
    packed = pack_alpha(Matte(frame_of(picture_of(pix_fmt, 256, 256)), alpha), layout)
    result = scaled_alpha(tensor_of(alpha), layout.bits)
    np.testing.assert_array_equal(result.numpy(), plane_views(packed)[-1])


def test_given_planes_are_left_as_they_are():
    layout = layout_of("yuva420p")
    planes, alpha = tensors_of(picture_of("yuva420p", 33, 18)), tensor_of(alpha_of(layout, 33, 18))
    given = [*planes, alpha, *tensors_of(picture_of("yuv420p", 33, 18, 1))]
    before = [x.clone() for x in given]
    composite(planes, own_alpha(planes, alpha, layout), given[5:], layout)
    chroma_alpha(alpha, layout, interlaced=True)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("pix_fmt", ["yuv410p", "yuv411p", "yuv440p12le", "yuv420p16le"])
def test_chroma_alpha_of_the_extremes_is_bit_equal_to_the_cpu(pix_fmt):
    """The largest sums, which floats must still hold, and every mean near a half."""
    layout = layout_of(pix_fmt)
    full = 255 if layout.bits <= 8 else 65535
    alpha = full - np.random.default_rng(0).integers(0, 3, (101, 203))
    alpha = alpha.astype(np.uint8 if full == 255 else np.uint16)
    for interlaced in (False, True):
        result = chroma_alpha(tensor_of(alpha), layout, interlaced=interlaced)
        expected = host_chroma_alpha(alpha, layout, interlaced=interlaced)
        np.testing.assert_array_equal(result.numpy(), expected)


def check_blur(info, layout, frame, alpha, strength):
    expected = blur_background(strength, info, layout).planes(frame, alpha)
    blur = BlurBackground(strength, info, layout, CPU)
    result = blur.planes(tensors_of(frame.picture), tensor_of(alpha))
    assert len(result) == len(expected)
    for own, host in zip(result, expected, strict=True):
        assert own.numpy().dtype == host.dtype
        assert own.shape == host.shape
        host = np.minimum(host, layout.peak)  # of a small blur of noise, cubics overshoot
        error = abs(own.numpy().astype(np.int64) - host)
        assert error.max() <= max(1, BLUR_TOLERANCE * layout.peak)


@pytest.mark.parametrize(
    "pix_fmt",
    ["yuv420p", "yuv422p10le", "yuva444p", "yuv410p", "yuv440p12le", "gbrp", "gbrp16le", "gray"],
)
@pytest.mark.parametrize("size", [(320, 240), (323, 237), (17, 5)], ids=str)
@pytest.mark.parametrize("strength", [0.3, 2.0, 25.0])
def test_blur_is_that_of_the_cpu(pix_fmt, size, strength):
    info, layout = info_of(pix_fmt, size), layout_of(pix_fmt)
    frame, alpha = subject_scene(info, (230, 20, 20), np.array((120.0, 130.0, 140.0)))
    check_blur(info, layout, frame, alpha, strength)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv411p", "gbrp16le"])
@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_blur_of_noise_is_that_of_the_cpu(pix_fmt, strength):
    info, layout = info_of(pix_fmt, (161, 90)), layout_of(pix_fmt)
    frame = frame_of(picture_of(pix_fmt, 161, 90))
    check_blur(info, layout, frame, alpha_of(layout, 161, 90), strength)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(2), Fraction(1, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_blur_is_round_where_the_picture_is_shown(aspect, axis):
    """The spread of a blurred edge is sigma of the displayed size, in samples of either axis."""
    size = (640, 480)
    info, layout = info_of("gray", size, aspect=aspect), layout_of("gray")
    at = np.arange(size[1 - axis])
    line = np.where(at < len(at) // 2, 0, 200).astype(np.uint8)
    plane = np.broadcast_to(line if axis else line[:, None], size[::-1])
    alpha = torch.zeros(size[::-1], dtype=torch.uint8)
    (blurred,) = BlurBackground(2.0, info, layout, CPU).planes([tensor_of(plane)], alpha)
    edge = blurred.numpy().astype(np.float64)
    density = np.diff(edge[:, 320] if axis == 0 else edge[240]) / 200
    mean = (density * at[1:]).sum()
    spread = np.sqrt((density * (at[1:] - mean) ** 2).sum())
    sigma = 0.02 * max(size[0] * aspect, size[1])
    assert abs(mean - len(at) // 2) < 0.5
    assert abs(spread - (sigma / aspect if axis else sigma)) < 1


@pytest.mark.parametrize(("gray", "working"), [("gray", "yuv420p"), ("gray12le", "yuv422p12le")])
def test_blur_of_a_gray_source_in_a_yuv_layout(gray, working):
    info, layout = info_of(gray, (33, 21)), layout_of(working)
    frame = frame_of(picture_of(gray, 33, 21))
    check_blur(info, layout, frame, alpha_of(layout, 33, 21), 1.0)


@pytest.mark.parametrize("strength", [0, 26])
def test_blur_refuses_senseless_strengths(strength):
    with pytest.raises(UsageError, match="strength"):
        BlurBackground(strength, info_of("yuv420p", (64, 48)), layout_of("yuv420p"), CPU)


@pytest.mark.parametrize("pix_fmt", ["yuva420p", "yuv422p10le", "gbrp", "gray"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_nothing_reads_a_value_or_leaves_the_device(pix_fmt, interlaced):
    """Tensors without data stand for a device: to read one, or to mix it with others, raises."""
    info, layout = info_of(pix_fmt, (33, 18)), layout_of(pix_fmt)
    planes = [x.to("meta") for x in tensors_of(picture_of(pix_fmt, 33, 18))]
    alpha = own_alpha(planes, tensor_of(alpha_of(layout, 33, 18)).to("meta"), layout)
    assert scaled_alpha(alpha, 12).device.type == "meta"
    blurred = BlurBackground(2.0, info, layout, torch.device("meta")).planes(planes, alpha)
    for background in (blurred, [1] * len(blurred)):
        for plane in composite(planes, alpha, background, layout, interlaced=interlaced):
            assert (plane.device.type, plane.dtype) == ("meta", alpha.dtype)
