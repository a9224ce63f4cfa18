"""The output table: source format, size and extension to codec, pixel format and printed line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import decode, make_clip, run_file

from vidmatte.errors import UsageError
from vidmatte.frames import Colour, Orientation, VideoInfo, layout_of
from vidmatte.jobs import EncodingChoice
from vidmatte.sinks._hardware import SENT_AS
from vidmatte.sinks.plan import (
    ALLOWED,
    CONTAINERS,
    ENCODER_FORMATS,
    PICTURES,
    Content,
    nearest_format,
    plan_output,
    working_format,
)

SD = (640, 480)
ODD = (641, 481)
HDR = Colour(9, 1, 9, 16)


def info(pix_fmt: str = "yuv420p", size: tuple[int, int] = SD, **more: Any) -> VideoInfo:
    return VideoInfo(
        "in", *size, pix_fmt, time_base=Fraction(1, 1000), frame_rate=Fraction(25), **more
    )


# source format, size, extension, content, codec asked for → encoder, format, words of the notes
TABLE: list[tuple[str, tuple[int, int], str, Content, str | None, str, str, list[str]]] = [
    ("yuv420p", SD, ".mp4", "opaque", None, "libx264", "yuv420p", []),
    ("yuvj420p", SD, ".mp4", "opaque", None, "libx264", "yuv420p", []),
    ("nv12", SD, ".mp4", "opaque", None, "libx264", "yuv420p", []),
    ("yuv422p", SD, ".mp4", "opaque", None, "libx264", "yuv422p", []),
    ("uyvy422", SD, ".mkv", "opaque", None, "libx264", "yuv422p", []),
    ("yuv444p", SD, ".mp4", "opaque", None, "libx264", "yuv444p", []),
    ("yuv440p", SD, ".mp4", "opaque", None, "libx264", "yuv444p", []),
    ("yuv410p", SD, ".mp4", "opaque", None, "libx264", "yuv420p", []),
    ("yuv411p", SD, ".mp4", "opaque", None, "libx264", "yuv422p", []),
    ("gray", SD, ".mp4", "opaque", None, "libx264", "yuv420p", []),
    ("gray10le", SD, ".mp4", "opaque", None, "libx265", "yuv420p10le", []),
    ("yuv420p10le", SD, ".mp4", "opaque", None, "libx265", "yuv420p10le", []),
    ("p010le", SD, ".mov", "opaque", None, "libx265", "yuv420p10le", []),
    ("yuv422p10le", SD, ".mkv", "opaque", None, "libx265", "yuv422p10le", []),
    ("yuv444p12le", SD, ".mp4", "opaque", None, "libx265", "yuv444p12le", []),
    ("yuv420p10le", SD, ".mp4", "opaque", "h264", "libx264", "yuv420p10le", []),
    ("yuv420p10le", SD, ".webm", "opaque", None, "libsvtav1", "yuv420p10le", []),
    ("yuv420p", ODD, ".mp4", "opaque", None, "libx264", "yuv444p", ["641x481 is odd"]),
    ("yuv420p10le", ODD, ".mp4", "opaque", None, "libx265", "yuv444p10le", ["is odd"]),
    ("yuv444p", ODD, ".mp4", "opaque", None, "libx264", "yuv444p", []),
    ("yuv420p", (640, 481), ".mp4", "opaque", None, "libx264", "yuv444p", ["is odd"]),
    ("yuv422p", (640, 481), ".mp4", "opaque", None, "libx264", "yuv422p", []),
    ("yuv420p", ODD, ".mkv", "opaque", "ffv1", "ffv1", "yuv420p", []),
    ("yuv420p", ODD, ".webm", "opaque", None, "libvpx-vp9", "yuv420p", []),
    ("rgb24", SD, ".mp4", "opaque", None, "libx264", "yuv420p", ["RGB source", "ffv1"]),
    ("gbrp10le", SD, ".mov", "opaque", None, "libx265", "yuv420p10le", ["RGB source", "ffv1"]),
    ("rgb24", SD, ".mkv", "opaque", None, "libx264", "yuv444p", ["RGB source", "ffv1"]),
    ("gbrp", SD, ".mkv", "opaque", "ffv1", "ffv1", "bgr0", []),
    ("gbrp10le", SD, ".mkv", "opaque", "ffv1", "ffv1", "gbrp10le", []),
    ("yuv444p16le", SD, ".mp4", "opaque", None, "libx265", "yuv444p12le", ["16 bits become 12"]),
    ("yuv422p", SD, ".mp4", "opaque", "mpeg4", "mpeg4", "yuv420p", ["chroma is reduced"]),
    ("yuv420p", SD, ".webm", "opaque", None, "libvpx-vp9", "yuv420p", []),
    ("yuv420p", SD, ".ts", "opaque", None, "libx264", "yuv420p", []),
    ("yuv420p", SD, ".avi", "opaque", None, "libx264", "yuv420p", []),
    ("yuv420p", SD, ".mov", "transparent", None, "prores_ks", "yuva444p10le", []),
    ("yuv420p", SD, ".mov", "transparent", "qtrle", "qtrle", "argb", []),
    ("yuv420p", SD, ".webm", "transparent", None, "libvpx-vp9", "yuva420p", []),
    ("yuv420p", SD, ".mkv", "transparent", None, "ffv1", "yuva420p", []),
    ("yuv422p10le", SD, ".mkv", "transparent", None, "ffv1", "yuva422p10le", []),
    ("yuv420p", SD, ".gif", "transparent", None, "gif", "pal8", []),
    ("yuv420p", SD, ".apng", "transparent", None, "apng", "rgba", []),
    ("yuv420p", SD, ".mkv", "matte", None, "ffv1", "gray", []),
    ("yuv420p10le", SD, ".mkv", "matte", None, "ffv1", "gray16le", []),
    ("yuv420p", SD, ".mp4", "matte", None, "libx264", "gray", []),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:5])))
def test_the_table(row: Any) -> None:
    pix_fmt, size, suffix, content, codec, encoder, expected, notes = row
    plan = plan_output(info(pix_fmt, size), suffix, content, codec=codec)
    assert (plan.codec, plan.pix_fmt) == (encoder, expected)
    assert plan.container == CONTAINERS[suffix]
    for words in notes:
        assert any(words in note for note in plan.notes), plan.notes
    if not notes:
        losses = [n for n in plan.notes if "become" in n or "reduced" in n or "odd" in n]
        assert losses == []


PICTURE_TABLE: list[tuple[str, str, Content, str, str]] = [
    ("yuv420p", ".png", "opaque", "png", "rgb24"),
    ("yuv420p", ".png", "transparent", "png", "rgba"),
    ("yuv420p10le", ".png", "transparent", "png", "rgba64be"),
    ("yuv420p", ".png", "matte", "png", "gray"),
    ("yuv420p10le", ".png", "matte", "png", "gray16be"),
    ("yuvj420p", ".jpg", "opaque", "mjpeg", "yuvj420p"),
    ("yuv420p", ".webp", "transparent", "libwebp", "bgra"),
    ("yuv420p", ".tiff", "transparent", "tiff", "rgba"),
]


@pytest.mark.parametrize("row", PICTURE_TABLE, ids=lambda row: "-".join(row))
@pytest.mark.parametrize("is_sequence", [True, False])
def test_the_table_of_pictures(row: Any, is_sequence: bool) -> None:
    pix_fmt, suffix, content, encoder, expected = row
    plan = plan_output(info(pix_fmt), suffix, content, is_sequence=is_sequence)
    assert (plan.codec, plan.pix_fmt) == (encoder, expected)
    assert plan.kind == ("sequence" if is_sequence else "picture")


REFUSALS: list[tuple[str, Content, str | None, str, str]] = [
    (".xyz", "opaque", None, "'.xyz'", ".mp4"),
    ("", "opaque", None, "no extension", ".mp4"),
    (".mp4", "transparent", None, "cannot hold transparency", ".mov"),
    (".ts", "transparent", None, "cannot hold transparency", ".webm"),
    (".jpg", "transparent", None, "cannot hold transparency", ".png"),
    (".mp4", "opaque", "prores", "cannot hold prores", ".mov"),
    (".webm", "opaque", "h264", "cannot hold h264", ".mp4"),
    (".mov", "transparent", "h264", "cannot hold transparency", "prores"),
    (".mp4", "opaque", "nosuch", "unknown codec", "hevc"),
]


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_what_cannot_be_is_refused_with_what_can(row: Any) -> None:
    suffix, content, codec, message, hint = row
    with pytest.raises(UsageError, match=message) as caught:
        plan_output(info(), suffix, content, codec=codec)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_an_unknown_preset_is_refused(encoder: str) -> None:
    with pytest.raises(UsageError, match="unknown preset"):
        plan_output(info(), ".mp4", "opaque", codec=encoder, preset="nosuch")


def test_the_defaults_of_the_encoder() -> None:
    options = plan_output(info(), ".mp4", "opaque").options
    assert options == {"preset": "veryfast", "crf": "18"}
    asked = plan_output(info(), ".mp4", "opaque", crf=30, preset="slow").options
    assert asked == {"preset": "slow", "crf": "30"}
    assert plan_output(info(), ".mp4", "matte").options["qp"] == "0"


def test_hdr_in_eight_bits_is_said() -> None:
    source = info("yuv420p10le", colour=HDR)
    assert plan_output(source, ".mp4", "opaque").notes == ()
    notes = plan_output(source, ".mp4", "opaque", codec="mpeg4").notes
    assert any("HDR" in note for note in notes)


@pytest.mark.parametrize(("suffix", "turned"), [(".mp4", False), (".mkv", False), (".avi", True),
                                                (".ts", True), (".webm", True)])  # fmt: skip
def test_what_cannot_hold_an_orientation_is_turned(suffix: str, turned: bool) -> None:
    source = info(orientation=Orientation(90), display_matrix=(0, 1, 0, -1, 0, 0, 0, 0, 1))
    plan = plan_output(source, suffix, "opaque")
    assert plan.turned == turned
    assert any("upright" in note for note in plan.notes) == turned


def test_every_encoder_takes_what_the_table_sends_it() -> None:
    for encoder, formats in ENCODER_FORMATS.items():
        codec = av.Codec(encoder, "w")
        offered = {f.name for f in codec.video_formats or ()}
        if offered:
            sent = {SENT_AS.get((encoder, name), name) for name in formats}
            assert sent <= offered | {"bgra", "pal8"}, encoder
    for encoders in ALLOWED.values():
        assert set(encoders) <= set(ENCODER_FORMATS)
    assert set(PICTURES.values()) <= set(ENCODER_FORMATS)


@pytest.mark.parametrize("name", sorted(av.video.format.names))
def test_every_pixel_format_has_a_planar_working_format(name: str) -> None:
    working = layout_of(working_format(name))
    assert working is not None
    source = av.VideoFormat(name)
    if "hwaccel" in dir(source) or not source.components:
        return
    depth = max(component.bits for component in source.components)
    if not name.startswith("bayer") and depth <= 16 and name not in ("pal8",):
        assert working.bits >= min(depth, 16), f"{name} in {working.pix_fmt}"


def test_nearest_loses_alpha_last() -> None:
    wanted = layout_of("yuva422p10le")
    assert wanted is not None
    assert nearest_format(wanted, ("yuv422p10le", "yuva420p", "yuv444p12le")) == "yuva420p"
    assert nearest_format(wanted, ("yuva444p10le", "yuva422p16le")) in (
        "yuva444p10le", "yuva422p16le")  # fmt: skip


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_codecs_that_aim_at_a_bit_rate_keep_the_picture(codec: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mkv", 25, (320, 240), colour=(6, 1, 6, 6))
    run_file(source, tmp_path / "o.mov", encoding=EncodingChoice(codec=codec))
    before, after = (
        [np.asarray(f.to_ndarray(format="rgb24"), float) for f in decode(path)]
        for path in (source, tmp_path / "o.mov")
    )
    assert np.square(np.subtract(before, after)).mean() < 12  # 37 dB
