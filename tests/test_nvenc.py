"""NVENC: it stands in where that loses nothing, and is told what x264 is told."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import decode, leftovers, make_clip, run_file
from test_hardware import semi_planar

from vidmatte import device_frames
from vidmatte.errors import OutputError, UsageError
from vidmatte.frames import Colour, VideoInfo, plane_views
from vidmatte.jobs import EncodingChoice
from vidmatte.sinks import _hardware as encoding
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.plan import plan_output


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
        assert not encoding.has_nvenc(codec, gpu=0)
    source = make_clip(tmp_path / "s.mp4", 2)
    with pytest.raises(OutputError, match="no NVIDIA encoder") as caught:
        run_file(source, tmp_path / "o.mp4", encoding=EncodingChoice(codec="hevc_nvenc"))
    assert "h264 or hevc" in (caught.value.hint or "")
    assert leftovers(tmp_path) == ["s.mp4"]


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("codec", "pix_fmt"), [("h264_nvenc", "yuv420p"),
                                                ("hevc_nvenc", "yuv420p10le")])  # fmt: skip
def test_nvenc_keeps_what_x264_keeps(codec: str, pix_fmt: str, gpu: int, tmp_path: Path) -> None:
    if not encoding.has_nvenc(codec, gpu=gpu):
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
