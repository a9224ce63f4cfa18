"""NVDEC and NVENC: used where they give the same, left alone where they do not or are not there."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import decode, digest, leftovers, make_clip, run_file

from vidmatte import device_frames
from vidmatte.errors import OutputError, UsageError
from vidmatte.frames import Colour, Frame, VideoInfo, plane_views
from vidmatte.jobs import EncodingChoice
from vidmatte.sinks import _hardware as encoding
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.plan import plan_output
from vidmatte.sources import _hardware as decoding
from vidmatte.sources import file as source_file
from vidmatte.sources.file import FileSource


@pytest.fixture
def gpu() -> int:
    """The GPU to test on; skips where there is none, unless one is required."""
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("VIDMATTE_REQUIRE_CUDA") == "1":
            pytest.fail("VIDMATTE_REQUIRE_CUDA=1 and torch sees no GPU")
        pytest.skip("needs an NVIDIA GPU")
    return 0


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


def takes_all(encoder: str, size: tuple[int, int]) -> bool:
    return True


def test_an_encoder_that_takes_no_such_pictures_is_not_planned() -> None:
    asked = []

    def small_ones(encoder: str, size: tuple[int, int]) -> bool:
        asked.append((encoder, size))
        return size[0] < 1000

    assert plan_output(info(), ".mp4", "opaque", nvenc=small_ones).codec == "libx264"
    small = info(size=(640, 360))
    assert plan_output(small, ".mp4", "opaque", nvenc=small_ones).codec == "h264_nvenc"
    assert asked == [("h264_nvenc", (1280, 720)), ("h264_nvenc", (640, 360))]


HDR10 = {"mastering_display": "G(1,1)B(1,1)R(1,1)WP(1,1)L(1,1)"}


def info(pix_fmt: str = "yuv420p", size: tuple[int, int] = (1280, 720), **more: Any) -> VideoInfo:
    return VideoInfo(
        "in", *size, pix_fmt, time_base=Fraction(1, 1000), frame_rate=Fraction(25), **more
    )


@pytest.mark.parametrize(
    ("source", "suffix", "expected"),
    [
        (info(), ".mp4", "h264_nvenc"),
        (info(), ".ts", "h264_nvenc"),
        (info("yuv420p10le"), ".mp4", "hevc_nvenc"),
        (info("rgb24"), ".mp4", "h264_nvenc"),
        (info("yuv422p"), ".mp4", "libx264"),
        (info("yuv444p"), ".mkv", "libx264"),
        (info(size=(1281, 720)), ".mp4", "libx264"),
        (info(size=(128, 96)), ".mp4", "libx264"),
        (info(size=(7680, 4320)), ".mp4", "libx264"),
        (info("yuv420p10le", (7680, 4320)), ".mp4", "hevc_nvenc"),
        (info(field_order="tff"), ".mp4", "libx264"),
        (info("yuv420p10le", **HDR10), ".mp4", "libx265"),
        (info(), ".webm", "libvpx-vp9"),
        (info(), ".avi", "libx264"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nvenc_stands_in_where_it_loses_nothing(
    source: VideoInfo, suffix: str, expected: str
) -> None:
    plan = plan_output(source, suffix, "opaque", nvenc=takes_all)
    assert plan.codec == expected
    software = plan_output(source, suffix, "opaque")
    assert (plan.pix_fmt, plan.notes) == (software.pix_fmt, software.notes)
    assert "nvenc" not in software.codec
    named = plan_output(source, suffix, "opaque", codec=software.codec, nvenc=takes_all)
    assert named == plan_output(source, suffix, "opaque", codec=software.codec)


def test_a_matte_stays_lossless() -> None:
    for suffix in (".mp4", ".mkv"):
        assert "nvenc" not in plan_output(info(), suffix, "matte", nvenc=takes_all).codec
    options = plan_output(info(), ".mp4", "matte", codec="h264_nvenc").options
    assert options == {"preset": "p4", "tune": "lossless"}


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "expected"),
    [
        ("h264_nvenc", "yuv420p", "yuv420p"),
        ("h264_nvenc", "yuv444p", "yuv444p"),
        ("h264_nvenc", "yuv420p10le", "yuv420p"),
        ("hevc_nvenc", "yuv420p10le", "yuv420p10le"),
        ("hevc_nvenc", "yuv422p10le", "yuv420p10le"),
    ],
)
def test_what_nvenc_is_sent_when_named(codec: str, pix_fmt: str, expected: str) -> None:
    plan = plan_output(info(pix_fmt), ".mov", "opaque", codec=codec)
    assert (plan.codec, plan.pix_fmt) == (codec, expected)


def test_quality_and_presets_are_translated() -> None:
    def options(**given: Any) -> dict[str, str]:
        return plan_output(info(), ".mp4", "opaque", nvenc=takes_all, **given).options

    assert options() == {"preset": "p4", "rc": "vbr", "cq": "18", "b": "0"}
    assert options(crf=0)["cq"] == "1"  # 0 is no quality at all for NVENC
    assert options(crf=63)["cq"] == "51"
    assert options(preset="veryfast")["preset"] == "p3"
    assert options(preset="p7")["preset"] == "p7"
    with pytest.raises(UsageError, match="unknown preset"):
        options(preset="nosuch")


@pytest.mark.parametrize("codec", encoding.FORMATS)
def test_ffmpeg_has_the_options_that_it_is_given(codec: str) -> None:
    """Options that an encoder does not know are ignored without a word."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    known = context.supported_options
    private = {option.name: option for option in known.private}
    for lossless in (False, True):
        given = encoding.nvenc_options(codec, None, None, lossless=lossless)
        for name, value in (given | {"gpu": "0"}).items():
            choices = {c.name for c in private[name].choices} if name in private else set()
            assert name in {o.name for o in known.generic} or value in choices or value.isdigit()
    assert set(encoding.PRESETS.values()) <= {c.name for c in private["preset"].choices}
    assert (private["cq"].min, private["cq"].max) == (0, 51)
    assert context.max_b_frames == -1  # the preset's own, as far as the card has them


def test_ten_bits_are_only_reordered_for_nvenc() -> None:
    """The encoder gets them as PyAV converts what is not in its format, with threads."""
    _, planes = semi_planar("p010le")
    picture = av.VideoFrame(70, 50, "yuv420p10le")
    for own, given in zip(plane_views(picture, writable=True), planes, strict=True):
        own[...] = given
    for _ in range(200):
        packed = picture.reformat(format="p010le", threads=4)
        back = device_frames.in_planes(packed, "yuv420p10le")
        for own, given in zip(plane_views(back), planes, strict=True):
            np.testing.assert_array_equal(own, given)


class StoppedError(Exception):
    """Ends a test where the encoder would start."""


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "sent"),
    [("h264_nvenc", "yuv420p", "yuv420p"), ("hevc_nvenc", "yuv420p10le", "p010le")],
)
def test_nvenc_is_told_what_x264_is_told(
    codec: str, pix_fmt: str, sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = info(pix_fmt, colour=Colour(9, 1, 9, 16), sample_aspect_ratio=Fraction(4, 3))
    told: list[av.VideoCodecContext] = []

    def start(self: FileSink, context: av.VideoCodecContext) -> None:
        told.append(context)
        raise StoppedError

    monkeypatch.setattr(FileSink, "_start", start)
    path = tmp_path / "o.mp4"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for name in (codec, "libx264" if codec == "h264_nvenc" else "libx265"):
        plan = plan_output(source, ".mp4", "opaque", codec=name)
        with pytest.raises(StoppedError):
            FileSink(descriptor, str(path), plan, source, Muxing(gpu=1))
    os.close(descriptor)
    ours, software = told
    assert (ours.pix_fmt, ours.options["gpu"]) == (sent, "1")
    assert "gpu" not in software.options
    assert ours.codec_tag == software.codec_tag
    for name in ("width", "height", "time_base", "framerate", "gop_size", "sample_aspect_ratio",
                 "colorspace", "color_range", "color_primaries", "color_trc"):  # fmt: skip
        assert getattr(ours, name) == getattr(software, name), name


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_without_a_card_there_is_no_nvenc(tmp_path: Path) -> None:
    for codec in encoding.FORMATS:
        assert not encoding.has_nvenc(codec)
        assert not encoding.has_nvenc(codec, 0)
    source = make_clip(tmp_path / "s.mp4", 2)
    with pytest.raises(OutputError, match="no NVIDIA encoder") as caught:
        run_file(source, tmp_path / "o.mp4", encoding=EncodingChoice(codec="hevc_nvenc"))
    assert "h264 or hevc" in (caught.value.hint or "")
    assert leftovers(tmp_path) == ["s.mp4"]


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("codec", "pix_fmt"), [("h264_nvenc", "yuv420p"),
                                                ("hevc_nvenc", "yuv420p10le")])  # fmt: skip
def test_nvenc_keeps_what_x264_keeps(codec: str, pix_fmt: str, gpu: int, tmp_path: Path) -> None:
    if not encoding.has_nvenc(codec, gpu):
        pytest.skip("this card has no encoder, as data-centre cards")
    source = make_clip(
        tmp_path / "s.mkv", 30, (320, 180), pix_fmt=pix_fmt, codec="ffv1", colour=(1, 1, 1, 1),
        sar=Fraction(4, 3), pts=[40 * n + n % 3 for n in range(30)], time_base=Fraction(1, 1000),
    )  # fmt: skip
    run_file(source, tmp_path / "o.mkv", encoding=EncodingChoice(codec=codec))
    before, after = decode(source), decode(tmp_path / "o.mkv")
    assert [f.time for f in after] == [f.time for f in before]
    assert {(int(f.colorspace), int(f.color_range), f.format.name) for f in after} == {
        (1, 1, pix_fmt)
    }
    with av.open(str(tmp_path / "o.mkv")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
