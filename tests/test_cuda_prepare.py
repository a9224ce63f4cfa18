"""The device's network picture against the CPU's: every layout, colour, orientation, and HDR."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from conftest import decode, make_clip
from test_composite import PIX_FMTS, picture_of
from test_prepare import (
    COLOURS,
    NETWORK,
    ORIENTATIONS,
    area_mean,
    info_of,
    photograph,
    stored_picture,
)

from vidmatte.compute.cpu.colour import effective_colour, tone_map, yuv_colour
from vidmatte.compute.cpu.prepare import Preparer as HostPreparer
from vidmatte.compute.cuda.prepare import Preparer
from vidmatte.frames import Colour, Orientation, layout_of, plane_views

CPU = torch.device("cpu")
# Both round to 8 bits: values that lie at a half may fall to either side, and no more than these.
TOLERANCE, MEAN_TOLERANCE = 1, 0.1
# Light of HDR noise is far outside of BT.709: what its matrix leaves near zero depends on the last
# bit of 16, which swscale rounds otherwise. So few samples are off by more than the tolerance.
HDR_NOISE_SHARE = 0.005
SIZES = [(640, 384), (501, 333), (95, 61), (40, 300)]  # the last two smaller than the network's


def tensors_of(picture):
    return [torch.from_numpy(view.copy()) for view in plane_views(picture)]


def both(info, picture, size=NETWORK):
    """What the CPU and the device make of a picture."""
    host = np.empty((*size, 3), np.uint8)
    HostPreparer(info, size).prepare(picture, host)
    preparer = Preparer(info, layout_of(picture.format.name), size, CPU)
    device = preparer.prepare(tensors_of(picture))
    assert device.dtype == torch.uint8
    assert device.shape == host.shape
    assert device.is_contiguous()
    return host.astype(int), device.numpy().astype(int)


def check(info, picture, size=NETWORK):
    host, device = both(info, picture, size)
    error = abs(host - device)
    assert error.max() <= TOLERANCE
    assert error.mean() <= MEAN_TOLERANCE


@pytest.mark.parametrize("pix_fmt", PIX_FMTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_layout_and_size_is_prepared_as_on_the_cpu(pix_fmt, size):
    """Noise, which shows every weight; an alpha plane must not."""
    check(info_of(pix_fmt, *size), picture_of(pix_fmt, *size))


@pytest.mark.parametrize("pix_fmt", ["gbrp", "gbrp10le"])
def test_rgb_is_the_exact_area_mean(pix_fmt):
    rgb = photograph(640, 384)
    info = info_of(pix_fmt, 640, 384)
    layout = layout_of(pix_fmt)
    picture = stored_picture(rgb, pix_fmt, effective_colour(info, layout))
    result = Preparer(info, layout, NETWORK, CPU).prepare(tensors_of(picture)).numpy()
    # Rounded to the depth of the planes and then to 8 bits.
    assert abs(result - 255 * area_mean(rgb, NETWORK)).max() <= 0.5 + 0.5 * 255 / layout.peak


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("height", [240, 720])
def test_every_matrix_and_range_is_read_as_on_the_cpu(colour, height):
    info = info_of("yuv420p", 160, height, colour)
    rgb = np.tile(photograph(160, 240), (height // 240, 1, 1))
    check(info, stored_picture(rgb, "yuv420p", yuv_colour(info)))


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "gray", "gray10le", "gbrp10le"])
@pytest.mark.parametrize("level", [0, 40, 128, 255])
def test_grays_keep_their_level_from_black_to_white(pix_fmt, level):
    info, layout = info_of(pix_fmt, 96, 64), layout_of(pix_fmt)
    flat = np.full((64, 96, 3), level / 255)
    picture = stored_picture(flat, pix_fmt, effective_colour(info, layout))
    result = Preparer(info, layout, NETWORK, CPU).prepare(tensors_of(picture))
    assert (result == level).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_every_orientation_is_turned_as_on_the_cpu(orientation):
    info = info_of("yuv420p", 201, 133, orientation=orientation)
    check(info, stored_picture(photograph(201, 133), "yuv420p", yuv_colour(info)))
    layout = layout_of("yuv420p")
    answer = np.random.default_rng(0).random(NETWORK, np.float32)
    expected = HostPreparer(info, NETWORK).to_stored(answer)
    back = Preparer(info, layout, NETWORK, CPU).to_stored(torch.from_numpy(answer))
    assert back.is_contiguous()
    np.testing.assert_array_equal(back.numpy(), expected)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "field_order"),
    [
        ("libx264", "yuv420p", None),
        ("libx264", "yuv420p", "tff"),
        ("libx264", "yuv422p", "tff"),
        ("mpeg2video", "yuv420p", None),
        ("mpeg4", "yuv420p", None),
        ("mpeg1video", "yuv420p", None),
        ("ffv1", "yuv420p", None),
    ],
)
def test_chroma_is_read_where_its_codec_has_it(codec, pix_fmt, field_order, tmp_path):
    """swscale sees the place of chroma and the fields of a decoded picture; both move samples."""
    clip = make_clip(tmp_path / "s.mkv", 1, (352, 288), pix_fmt, codec=codec,
                     field_order=field_order)  # fmt: skip
    (picture,) = decode(clip)
    with av.open(str(clip)) as container:
        name = container.streams.video[0].codec_context.name
    info = replace(
        info_of(pix_fmt, 352, 288),
        codec=name,
        field_order="tff" if picture.interlaced_frame else "progressive",
    )
    check(info, picture)
    if codec not in ("mpeg1video", "ffv1"):
        host, device = both(replace(info, codec="", field_order="progressive"), picture)
        assert abs(host - device).max() > TOLERANCE  # or the clip would prove nothing


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "gbrp12le", "yuv422p16le"])
@pytest.mark.parametrize("size", [(320, 210), (95, 61)], ids=str)
def test_hdr_is_tone_mapped_as_on_the_cpu(transfer, pix_fmt, size):
    colour = Colour(9, 1, 9, transfer)
    info = info_of(pix_fmt, *size, colour, Orientation(90, True))
    own = effective_colour(info, layout_of(pix_fmt))
    check(info, stored_picture(photograph(*size), pix_fmt, own), NETWORK[::-1])
    host, device = both(info, picture_of(pix_fmt, *size), NETWORK[::-1])
    assert (abs(host - device) > TOLERANCE).mean() <= HDR_NOISE_SHARE


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_light_from_black_to_the_peak_is_mapped_by_the_same_curve(transfer):
    """Grays that nothing scales or converts: the two curves, sample by sample."""
    info = info_of("gbrp16le", 96, 64, Colour(9, 2, 9, transfer))
    ramp = np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96)
    preparer = Preparer(info, layout_of("gbrp16le"), (64, 96), CPU)
    device = preparer.prepare([torch.from_numpy(ramp)] * 3).numpy()
    host = tone_map(np.stack([ramp] * 3, -1), transfer)
    assert abs(device.astype(int) - host).max() <= TOLERANCE


def test_samples_beyond_white_and_black_saturate():
    preparer = Preparer(info_of("yuv420p", 96, 64), layout_of("yuv420p"), NETWORK, CPU)
    chroma = torch.full((32, 48), 128, dtype=torch.uint8)
    for sample in (0, 255):
        luma = torch.full((64, 96), sample, dtype=torch.uint8)
        assert (preparer.prepare([luma, chroma, chroma]) == sample).all()


@pytest.mark.parametrize("transfer", [1, 16, 18])
def test_nothing_reads_a_value_or_leaves_the_device(transfer):
    """Tensors without data stand for a device: to read one, or to mix it with others, raises."""
    info = info_of("yuv420p10le", 320, 210, Colour(9, 1, 9, transfer), Orientation(90, True))
    planes = [x.to("meta") for x in tensors_of(picture_of("yuv420p10le", 320, 210))]
    preparer = Preparer(info, layout_of("yuv420p10le"), NETWORK, torch.device("meta"))
    assert preparer.prepare(planes).device.type == "meta"
    assert preparer.to_stored(torch.zeros(NETWORK, device="meta")).device.type == "meta"
