"""NVDEC: used where it gives the same pictures, left alone where it does not or is not there."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import decode, digest, make_clip

from vidmatte import device_frames
from vidmatte.frames import Frame, VideoInfo, plane_views
from vidmatte.sources import _hardware as decoding
from vidmatte.sources import file as source_file
from vidmatte.sources.file import FileSource


def read(path: Path, **options: Any) -> tuple[str, VideoInfo, list[Frame], list[str]]:
    with FileSource(path, **options) as source:
        return source.decoder_name, source.info, list(source), source.damage


def same_as_software(path: Path, decoder: str, **options: Any) -> None:
    name, info, frames, damage = read(path, gpu=0, **options)
    _, software_info, expected, software_damage = read(path, **options)
    assert (name, info, damage) == (decoder, software_info, software_damage)
    times = [(f.index, f.pts, f.duration) for f in frames]
    assert times == [(f.index, f.pts, f.duration) for f in expected]
    for frame, other in zip(frames, expected, strict=True):
        on_host = device_frames.to_host(frame)
        for own, given in zip(
            plane_views(on_host.picture), plane_views(other.picture), strict=True
        ):
            np.testing.assert_array_equal(own, given)


class Pretence:
    """Lets the software decoder pass for a GPU whose pictures may be `wrong`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, wrong: bool = False) -> None:
        self.asked: list[int] = []
        monkeypatch.setattr(source_file, "accelerator", self.accelerator)
        monkeypatch.setattr(source_file, "is_same", lambda picture, first: not wrong)

    def accelerator(self, gpu: int) -> None:
        self.asked.append(gpu)


@pytest.mark.parametrize("options", [{}, {"start_s": 0.5, "end_s": 1.1}])
def test_without_a_gpu_ffmpeg_decodes_every_picture(options: Any, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 40, options={"bf": "3"})
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU")
    same_as_software(path, "FFmpeg", **options)


@pytest.mark.parametrize("options", [{}, {"start_s": 0.5, "end_s": 1.1}])
def test_moving_to_the_gpu_loses_no_picture(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "s.mp4", 40, options={"bf": "3"})
    pretence = Pretence(monkeypatch)
    same_as_software(path, "NVDEC", **options)
    assert pretence.asked == [0]


def test_a_gpu_that_decodes_otherwise_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pretence(monkeypatch, wrong=True)
    same_as_software(make_clip(tmp_path / "s.mp4", 40), "FFmpeg")


def test_a_gpu_that_decodes_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "s.mp4", 12)
    Pretence(monkeypatch)
    opened = FileSource._open_decoder

    class Refusing:
        def decode(self, packet: object) -> list[av.VideoFrame]:
            raise av.error.ExternalError(1, "cuvidCreateDecoder failed")

    calls: list[int] = []

    def open_decoder(self: FileSource, threads: int) -> Any:
        calls.append(threads)
        return Refusing() if len(calls) == 2 else opened(self, threads)

    monkeypatch.setattr(FileSource, "_open_decoder", open_decoder)
    same_as_software(path, "FFmpeg")


def test_damage_is_counted_once_after_moving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "s.mp4", 40, (320, 180))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    Pretence(monkeypatch)
    same_as_software(path, "NVDEC")
    assert read(path)[3]


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "size", "tried"),
    [
        (".mp4", "libx264", "yuv420p", (64, 48), True),
        (".mp4", "libx265", "yuv420p10le", (64, 48), True),
        (".mp4", "libx264", "yuv422p", (64, 48), False),
        (".mp4", "libx264", "yuv444p", (64, 48), False),
        (".mkv", "ffv1", "yuv420p", (64, 48), False),
        (".webm", "libvpx-vp9", "yuv420p", (63, 48), False),
        (".webm", "libsvtav1", "yuv420p", (64, 64), False),
    ],
)
def test_only_what_any_decoder_gives_alike_is_tried(
    suffix: str,
    codec: str,
    pix_fmt: str,
    size: tuple[int, int],
    tried: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_clip(tmp_path / f"s{suffix}", 3, size, codec=codec, pix_fmt=pix_fmt)
    pretence = Pretence(monkeypatch)
    with FileSource(path, gpu=1) as source:
        assert source.info.pix_fmt == pix_fmt
        assert source.decoder_name == ("NVDEC" if tried else "FFmpeg")
    assert pretence.asked == [1] * tried


def test_what_cannot_be_read_twice_is_left_to_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "s.mp4", 12, audio="aac")
    pretence = Pretence(monkeypatch)
    packets: list[Any] = []
    with FileSource(path, gpu=0, on_packet=packets.append) as source:
        assert len(list(source)) == 12
    assert packets
    assert pretence.asked == []


def semi_planar(pix_fmt: str, seed: int = 0) -> tuple[av.VideoFrame, list[Any]]:
    """A picture of noise as NVDEC lays it out, and its samples in planes Y, U, V."""
    picture = av.VideoFrame(70, 50, pix_fmt)
    kind, bits = (np.uint8, 8) if pix_fmt == "nv12" else (np.uint16, 10)
    planes: list[Any] = []
    for plane in picture.planes:
        rows = np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)
        samples = np.random.default_rng(seed).integers(0, 1 << bits, rows.shape, kind)
        rows[:] = samples << (0 if bits == 8 else 6)
        planes.append(samples[:, :70])
    return picture, [planes[0], planes[1][:, ::2], planes[1][:, 1::2]]


@pytest.mark.parametrize(("pix_fmt", "planar"), device_frames.PLANAR.items())
def test_planes_of_the_gpu_are_only_reordered(pix_fmt: str, planar: str) -> None:
    picture, expected = semi_planar(pix_fmt)
    picture.pts, picture.color_range, picture.colorspace = 7, 1, 1
    result = device_frames.in_planes(picture, planar)
    assert (result.format.name, result.pts) == (planar, 7)
    assert (int(result.color_range), int(result.colorspace)) == (1, 1)
    for own, given in zip(plane_views(result), expected, strict=True):
        np.testing.assert_array_equal(own, given)


class DevicePicture:
    """Looks like a picture on a GPU: PyAV has no way to make one without."""

    def __init__(self, picture: av.VideoFrame) -> None:
        self._picture = picture
        self.format, self.sw_format = av.VideoFormat("cuda"), picture.format

    def __getattr__(self, name: str) -> Any:
        return getattr(self._picture, name)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pretended device picture be downloaded."""
    original = device_frames.in_planes
    for module in (decoding, device_frames):
        monkeypatch.setattr(module, "in_planes", lambda p, name: original(p._picture, name))


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize(("pix_fmt", "planar"), device_frames.PLANAR.items())
def test_the_first_picture_must_be_the_same_bit_for_bit(pix_fmt: str, planar: str) -> None:
    picture, _ = semi_planar(pix_fmt)
    host = picture.reformat(format=planar, threads=1)
    device: Any = DevicePicture(picture)
    assert decoding.is_same(device, host)
    assert not decoding.is_same(picture, host)  # it came from the software decoder after all
    other: Any = DevicePicture(semi_planar(pix_fmt, seed=1)[0])
    assert not decoding.is_same(other, host)
    host.pts = 1
    assert not decoding.is_same(device, host)
    unknown: Any = DevicePicture(picture.reformat(format="yuv444p"))
    assert not decoding.is_same(unknown, host)


@pytest.mark.usefixtures("downloads")
def test_a_device_frame_can_be_downloaded() -> None:
    picture, expected = semi_planar("p010le")
    device: Any = DevicePicture(picture)
    frame = device_frames.to_host(Frame(device, 3, 9, Fraction(1, 25)))
    assert (frame.index, frame.pts, frame.picture.format.name) == (3, 9, "yuv420p10le")
    np.testing.assert_array_equal(plane_views(frame.picture)[2], expected[2])
    assert device_frames.to_host(frame) is frame


@pytest.mark.parametrize("pix_fmt", device_frames.PLANAR)
def test_torch_sees_the_planes_without_a_copy(pix_fmt: str) -> None:
    import torch

    picture, expected = semi_planar(pix_fmt)
    name, capsules = device_frames.device_planes(DevicePicture(picture))  # type: ignore[arg-type]
    luma, chroma = (torch.from_dlpack(capsule) for capsule in capsules)
    assert name == pix_fmt
    assert (tuple(luma.shape), tuple(chroma.shape)) == ((50, 70), (25, 35, 2))
    shift = 6 if pix_fmt == "p010le" else 0
    np.testing.assert_array_equal(luma.numpy() >> shift, expected[0])
    np.testing.assert_array_equal(chroma.numpy()[..., 1] >> shift, expected[2])
    assert luma.data_ptr() == np.frombuffer(memoryview(picture.planes[0]), np.uint8).ctypes.data


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("libx265", "yuv420p10le")])
@pytest.mark.parametrize("size", [(320, 180), (1920, 1080)])
def test_nvdec_is_ffmpeg_bit_for_bit(
    codec: str, pix_fmt: str, size: tuple[int, int], gpu: int, tmp_path: Path
) -> None:
    options = {"bf": "3"} if codec == "libx264" else {}
    path = make_clip(tmp_path / "s.mp4", 40, size, codec=codec, pix_fmt=pix_fmt, options=options)
    same_as_software(path, "NVDEC")


class Driver:
    """Stands for the CUDA driver's library."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.flags: list[tuple[int, int]] = []

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7
        return 0 if ordinal < self.gpus else 101

    def cuDevicePrimaryCtxSetFlags_v2(self, device: Any, flags: int) -> int:  # noqa: N802
        self.flags.append((device.value, flags))
        return 0


@pytest.mark.parametrize(("gpu", "flags"), [(0, [(7, 4)]), (1, [])])
def test_ffmpeg_can_share_the_context_that_torch_makes(
    gpu: int, flags: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(1)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    assert decoding.accelerator(gpu).is_hw_owned
    assert driver.flags == flags


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert decoding.accelerator(0).is_hw_owned


@pytest.mark.needs_cuda
def test_torch_reads_planes_on_the_gpu(gpu: int, tmp_path: Path) -> None:
    import torch

    path = make_clip(tmp_path / "s.mp4", 8, (320, 180))
    with FileSource(path, gpu=gpu) as source:
        for frame, host in zip(source, decode(path), strict=True):
            _, capsules = device_frames.device_planes(frame.picture)
            luma, chroma = (torch.from_dlpack(capsule) for capsule in capsules)
            assert luma.is_cuda
            torch.cuda.synchronize()
            planes = plane_views(host)
            np.testing.assert_array_equal(luma.cpu().numpy(), planes[0])
            np.testing.assert_array_equal(chroma[..., 0].cpu().numpy(), planes[1])
            assert digest(device_frames.to_host(frame).picture) == digest(host)
