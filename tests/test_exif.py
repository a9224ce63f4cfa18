"""Pictures come out upright, whatever their EXIF block says or pretends to say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from conftest import decode, run_file
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidmatte.frames import Orientation
from vidmatte.sources.file import FileSource

Picture = NDArray[np.uint8]
JPEG_MEAN_TOLERANCE = 2.5  # of 255: two lossy steps; 4:2:0 bleeds over the quarters' borders
# Exif 2.32, tag 274: what the 0th row and column are; as what makes the picture upright.
UPRIGHT: dict[int, Callable[[Picture], Picture]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


def quarters(width: int = 96, height: int = 64) -> Picture:
    """Four colours, no two arrangements of which are alike; RGB."""
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[: height // 2, : width // 2] = (230, 40, 40)
    picture[height // 2 :, : width // 2] = (40, 200, 60)
    picture[: height // 2, width // 2 :] = (60, 60, 220)
    return picture


def exif_of(orientation: int) -> bytes:
    entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def jpeg_with(block: bytes) -> bytes:
    found, data = cv2.imencode(".jpg", quarters()[..., ::-1])
    assert found
    payload = b"Exif\0\0" + block
    segment = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    return data.tobytes()[:2] + segment + data.tobytes()[2:]


def png_with(block: bytes) -> bytes:
    found, data = cv2.imencode(".png", quarters()[..., ::-1])
    assert found
    body = b"eXIf" + block
    chunk = struct.pack(">I", len(block)) + body + struct.pack(">I", zlib.crc32(body))
    return data.tobytes()[:33] + chunk + data.tobytes()[33:]


def rgb_of(path: Path) -> NDArray[Any]:
    (picture,) = decode(path)
    return picture.to_ndarray(format="rgb24")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_with_exif_is_written_upright(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "in.png").write_bytes(png_with(exif_of(orientation)))
    run_file(tmp_path / "in.png", tmp_path / "out.png", contents=("transparent",))
    expected = UPRIGHT[orientation](quarters())
    np.testing.assert_array_equal(rgb_of(tmp_path / "out.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_written_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    (tmp_path / "in.jpg").write_bytes(jpeg_with(exif_of(orientation)))
    target = tmp_path / f"out{suffix}"
    run_file(tmp_path / "in.jpg", target)
    found, expected = rgb_of(target).astype(int), UPRIGHT[orientation](quarters())
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= JPEG_MEAN_TOLERANCE


def test_jpeg_becomes_a_video_with_its_turn(tmp_path: Path) -> None:
    (tmp_path / "in.jpg").write_bytes(jpeg_with(exif_of(7)))
    run_file(tmp_path / "in.jpg", tmp_path / "out.mp4")
    with FileSource(tmp_path / "out.mp4") as source:
        assert source.info.orientation == Orientation(90, True)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.integers(0, 2**32 - 1).map(exif_of))
def test_hostile_exif_never_stops_a_picture(
    tmp_path_factory: pytest.TempPathFactory, block: bytes
) -> None:
    path = tmp_path_factory.mktemp("exif") / "in.jpg"
    path.write_bytes(jpeg_with(block))
    with FileSource(path) as source:
        assert (source.info.width, source.info.height) == (96, 64)
        assert len(list(source)) == 1


def packed(suffix: str, picture: NDArray[Any]) -> bytes:
    found, data = cv2.imencode(suffix, picture)
    assert found
    return data.tobytes()


COLOUR = quarters(33, 17)
ALPHA = np.broadcast_to(np.linspace(0, 255, 33).astype(np.uint8), (17, 33))
KINDS: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
    "rgb": (COLOUR, COLOUR),
    "rgb16": (COLOUR.astype(np.uint16) * 257, COLOUR),
    "gray": (COLOUR[..., 0], np.dstack([COLOUR[..., 0]] * 3)),
    "gray16": (COLOUR[..., 0].astype(np.uint16) * 257, np.dstack([COLOUR[..., 0]] * 3)),
    "one pixel": (COLOUR[:1, :1], COLOUR[:1, :1]),
    "one row": (COLOUR[:1], COLOUR[:1]),
}


def samples(picture: av.VideoFrame) -> NDArray[Any]:
    """(H, W, 4) of a packed RGBA picture, at its own depth."""
    deep = picture.format.name == "rgba64be"
    plane = np.frombuffer(memoryview(picture.planes[0]), ">u2" if deep else np.uint8)
    rows = plane.reshape(picture.height, -1)[:, : picture.width * 4]
    return rows.reshape(picture.height, picture.width, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_lossless_pictures_keep_their_pixels(tmp_path: Path, kind: str, suffix: str) -> None:
    picture, expected = KINDS[kind]
    stored = picture[..., ::-1] if picture.ndim == 3 else picture
    source, target = tmp_path / f"in{suffix}", tmp_path / "out.png"
    source.write_bytes(packed(suffix, np.ascontiguousarray(stored)))
    run_file(source, target, contents=("transparent",))
    (written,) = decode(target)
    deep = picture.dtype == np.uint16
    assert written.format.name == ("rgba64be" if deep else "rgba")
    np.testing.assert_array_equal(
        samples(written)[..., :3], expected.astype(np.uint16) * (257 if deep else 1)
    )


@pytest.mark.parametrize("depth", [8, 16])
def test_own_alpha_and_the_colours_under_it_stay(tmp_path: Path, depth: int) -> None:
    factor = 1 if depth == 8 else 257
    picture = np.dstack([COLOUR[..., ::-1], ALPHA]).astype(np.uint16) * factor
    data = packed(".png", picture.astype(np.uint8 if depth == 8 else np.uint16))
    (tmp_path / "in.png").write_bytes(data)
    run_file(tmp_path / "in.png", tmp_path / "out.png", contents=("transparent",))
    (written,) = decode(tmp_path / "out.png")
    pixels = samples(written)
    np.testing.assert_array_equal(pixels[..., 3], ALPHA.astype(np.uint16) * factor)
    shown = ALPHA > 0
    np.testing.assert_array_equal(pixels[shown, :3], COLOUR[shown].astype(np.uint16) * factor)
