"""Transparent outputs hold the matte and the source's colours when they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import decode, run_file
from numpy.typing import NDArray

from vidmatte.jobs import Cut, EncodingChoice

SIZE = 96, 64
FRAMES = 4
COLOURS = {"709": (1, 1, 1, 1), "untagged": (2, 0, 2, 2), "full range": (1, 2, 1, 1)}
PALETTE_TOLERANCE = 8.0  # of 255, mean: 256 colours and ordered dither
# Target, codec: how far alpha and colour inside may be off in the mean, of 255, and why.
TARGETS = {
    "prores": ("out.mov", None, 0.3, 2.0),  # lossy
    "qtrle": ("out.mov", "qtrle", 0.0, 1.0),  # lossless; YUV to RGB and back rounds
    "vp9": ("out.webm", None, 1.5, 3.0),  # lossy, alpha too; 4:2:0
    "ffv1": ("out.mkv", None, 0.0, 0.1),  # lossless; chroma of edge samples is the foreground's
    "png in mov": ("out.mov", "png", 0.0, 1.0),
    "apng": ("out.apng", None, 0.0, 1.0),
    "sequence": ("out_%02d.png", None, 0.0, 1.0),
}


def smooth_clip(path: Path, colour: tuple[int, int, int, int], frames: int = FRAMES) -> Path:
    """A source without noise, so that lossy encoders are measured by their colours."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = *SIZE, "yuv420p"
        context.colorspace, context.color_range = colour[:2]
        context.color_primaries, context.color_trc = colour[2:]
        for index in range(frames):
            picture = av.VideoFrame(*SIZE, "yuv420p")
            for number, plane in enumerate(picture.planes):
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
                y, x = np.mgrid[: rows.shape[0], : rows.shape[1]]
                ramp = 60 + 2 * index + x if number == 0 else 100 + y + 20 * (number - 1)
                rows[...] = np.clip(ramp, 30, 220)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def rgba_of(path: Path) -> list[NDArray[Any]]:
    """Decode to (H, W, 4) uint8, WebM with the decoder that does not drop alpha."""
    if path.suffix == ".webm":
        pictures = _vp9_with_alpha(path)
    elif "%" in path.name:
        pictures = [decode(path.with_name(path.name % n))[0] for n in range(1, FRAMES + 1)]
    else:
        pictures = decode(path)
    return [_rgba(picture) for picture in pictures]


def _vp9_with_alpha(path: Path) -> list[av.VideoFrame]:
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        return [picture for packet in packets for picture in decoder.decode(packet)]


def _rgba(picture: av.VideoFrame) -> NDArray[Any]:
    """Convert by the picture's own tags; alpha is read as it is stored."""
    rgb = picture.reformat(
        format="rgb48le", src_colorspace=1 if picture.colorspace == 1 else 5
    ).to_ndarray()
    return np.dstack([rgb / 257.0, stored_alpha(picture)])


def stored_alpha(picture: av.VideoFrame) -> NDArray[Any]:
    name = picture.format.name
    if name in ("rgba", "argb"):
        return np.asarray(picture.to_ndarray()[..., 3 if name == "rgba" else 0], np.float64)
    if not picture.format.has_palette and len(picture.planes) < 4:
        return np.full((picture.height, picture.width), 255.0)
    plane = np.frombuffer(memoryview(picture.planes[3]), np.uint8)
    bits = picture.format.components[3].bits
    rows = (plane if bits == 8 else plane.view("<u2")).reshape(picture.height, -1)
    return np.asarray(rows[:, : picture.width] * (255 / ((1 << bits) - 1)), np.float64)


def source_rgb(path: Path) -> list[NDArray[Any]]:
    return [_rgba(picture)[..., :3] for picture in decode(path)]


def mattes_of(path: Path) -> list[NDArray[Any]]:
    return [picture.to_ndarray().astype(np.float64) for picture in decode(path)]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("target", TARGETS)
def test_alpha_and_colours_come_back(tmp_path: Path, target: str, colour: str) -> None:
    name, codec, alpha_tolerance, colour_tolerance = TARGETS[target]
    source = smooth_clip(tmp_path / "in.mkv", COLOURS[colour])
    output, matte = tmp_path / name, tmp_path / "matte.mkv"
    run_file(
        source, output, matte,
        backend="null:disc", contents=("transparent", "matte"), encoding=EncodingChoice(codec),
    )  # fmt: skip
    found, mattes, colours = rgba_of(output), mattes_of(matte), source_rgb(source)
    assert len(found) == len(mattes) == FRAMES
    for picture, alpha, true_colour in zip(found, mattes, colours, strict=True):
        assert alpha.min() == 0
        assert alpha.max() == 255
        assert np.abs(picture[..., 3] - alpha).mean() <= alpha_tolerance
        inside = alpha == 255
        assert np.abs(picture[..., :3] - true_colour)[inside].mean() <= colour_tolerance


def gif_pictures(path: Path) -> list[NDArray[Any]]:
    return [np.asarray(p.to_ndarray(format="bgra"), np.float64) for p in decode(path)]


@pytest.mark.parametrize("frames", [FRAMES, 30])
def test_transparent_gif_has_the_matte_in_one_bit(tmp_path: Path, frames: int) -> None:
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["709"], frames)
    run_file(
        source, tmp_path / "out.gif", tmp_path / "matte.mkv",
        backend="null:disc", contents=("transparent", "matte"),
    )  # fmt: skip
    found, mattes = gif_pictures(tmp_path / "out.gif"), mattes_of(tmp_path / "matte.mkv")
    assert len(found) == len(mattes) == frames
    for picture, alpha, colour in zip(found, mattes, source_rgb(source), strict=True):
        sure = np.abs(alpha - 128) > 2
        np.testing.assert_array_equal(picture[sure, 3], np.where(alpha[sure] > 128, 255.0, 0.0))
        inside = alpha == 255
        assert np.abs(picture[..., 2::-1] - colour)[inside].mean() <= PALETTE_TOLERANCE


def test_opaque_gif_is_opaque_and_keeps_its_times(tmp_path: Path) -> None:
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["709"])
    run_file(source, tmp_path / "out.gif", backend="null")
    pictures = decode(tmp_path / "out.gif")
    assert [p.time for p in pictures] == pytest.approx([k / 25 for k in range(FRAMES)], abs=0.005)
    for picture, colour in zip(gif_pictures(tmp_path / "out.gif"), source_rgb(source), strict=True):
        assert picture[..., 3].min() == 255
        assert np.abs(picture[..., 2::-1] - colour).mean() <= PALETTE_TOLERANCE


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".tif"])
def test_preview_is_the_frame_at_its_time(tmp_path: Path, suffix: str) -> None:
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["709"], 10)
    target = tmp_path / f"out{suffix}"
    result = run_file(source, target, cut=Cut(start_s=0.24, frames=1))
    assert result.frames == 1
    (picture,) = decode(target)
    expected = source_rgb(source)[6]
    found = picture.to_ndarray(format="rgb24").astype(float)
    other = source_rgb(source)[5]
    assert np.abs(found - expected).mean() <= 1.5
    assert np.abs(found - expected).mean() < np.abs(found - other).mean()


@pytest.mark.parametrize("content", ["transparent", "matte"])
def test_webp_holds_alpha(tmp_path: Path, content: str) -> None:
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["709"])
    names = [tmp_path / "out.webp", tmp_path / "matte.png"]
    run_file(
        source, *names,
        backend="null:disc", contents=(content, "matte"), cut=Cut(frames=1),
    )  # fmt: skip
    (picture,), (matte,) = decode(names[0]), decode(names[1])
    alpha = matte.to_ndarray(format="gray")
    shown = stored_alpha(picture) if content == "transparent" else picture.to_ndarray(format="gray")
    np.testing.assert_allclose(shown, alpha, atol=1)


@pytest.mark.parametrize("name", ["m.jpg", "m.gif", "m.apng", "m.webm", "m.mp4", "m.tif"])
def test_matte_is_full_range_in_every_format(tmp_path: Path, name: str) -> None:
    """Steps of a quarter grey: a range conversion would move them by 16 and more."""
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["709"])
    cut = Cut(frames=1)
    names = [tmp_path / "out.mkv", tmp_path / name, tmp_path / "exact.png"]
    run_file(
        source, *names,
        backend="null:disc", contents=("opaque", "matte", "matte"), cut=cut,
    )  # fmt: skip
    (found,), (exact,) = decode(names[1]), decode(names[2])
    luma = found.reformat(format="gray", src_color_range=2, dst_color_range=2).to_ndarray()
    off = np.abs(luma.astype(int) - exact.to_ndarray(format="gray"))
    assert off.mean() <= 1.0


def test_full_range_in_prores_is_said(tmp_path: Path) -> None:
    source = smooth_clip(tmp_path / "in.mkv", COLOURS["full range"])
    result = run_file(source, tmp_path / "out.mov", contents=("transparent",))
    assert any("full range becomes limited" in note for note in result.notes)
