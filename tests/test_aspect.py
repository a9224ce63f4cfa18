"""The shape of pixels leaves as it came, in every container and whatever the codec is."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import pytest
from conftest import decode, fill_picture, make_clip, run_file

from vidmatte import ebml
from vidmatte.frames import Orientation, VideoInfo
from vidmatte.jobs import EncodingChoice
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.plan import Content, plan_output

RATIOS = [Fraction(15, 16), Fraction(2), Fraction(12, 11)]  # the last: no whole number of pixels
SIZE = (64, 48)
OUTPUTS: list[tuple[Content, str]] = [
    *(("opaque", suffix) for suffix in (".mkv", ".webm", ".mov", ".mp4")),
    *(("matte", suffix) for suffix in (".mkv", ".webm", ".mov", ".mp4")),
    *(("transparent", suffix) for suffix in (".mkv", ".webm", ".mov")),
]
TRACKS, NAME = ebml.TRACKS, bytes.fromhex("536e")
TURNED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def aspect_of(path: Path) -> Fraction | None:
    with av.open(str(path)) as container:
        return container.streams.video[0].sample_aspect_ratio


def info(ratio: Fraction, **more: object) -> VideoInfo:
    given = {"pix_fmt": "yuv420p", "time_base": Fraction(1, 25), "frame_rate": Fraction(25)}
    return VideoInfo("in", *SIZE, sample_aspect_ratio=ratio, **given | more)  # type: ignore[arg-type]


def picture(index: int) -> av.VideoFrame:
    made = av.VideoFrame(*SIZE, "yuv420p")
    fill_picture(made, index)
    made.pts, made.time_base = index, Fraction(1, 25)
    return made


def write(path: Path, pictures: int, made: FileSink) -> None:
    with closing(made):
        for index in range(pictures):
            made.write(picture(index))


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@pytest.mark.parametrize(("content", "suffix"), OUTPUTS)
def test_every_output_keeps_the_shape_of_pixels(
    content: Content, suffix: str, ratio: Fraction, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, SIZE, sar=ratio, audio="aac")
    result = run_file(source, tmp_path / f"o{suffix}", contents=(content,))
    assert aspect_of(tmp_path / f"o{suffix}") == ratio
    assert len(decode(tmp_path / f"o{suffix}")) == 5
    assert [note for note in result.notes if "pixels" in note] == []


@pytest.mark.parametrize("codec", ["vp9", "av1", "h265", "ffv1", "mjpeg"])
def test_every_codec_in_matroska_keeps_it(codec: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, SIZE, sar=RATIOS[0])
    run_file(source, tmp_path / "o.mkv", encoding=EncodingChoice(codec=codec))
    assert aspect_of(tmp_path / "o.mkv") == RATIOS[0]


@pytest.mark.parametrize("closed", [False, True])
def test_an_unfinished_file_has_it_too_and_keeps_its_name(closed: bool, tmp_path: Path) -> None:
    path = tmp_path / "o.mkv"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    plan = plan_output(info(RATIOS[2]), ".mkv", "matte")
    muxing = Muxing(video_metadata={"title": "a name"}, threads=1)
    sink = FileSink(descriptor, str(path), plan, info(RATIOS[2]), muxing)
    for index in range(40):
        sink.write(picture(index))
    if closed:
        sink.close()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.sample_aspect_ratio, stream.metadata["title"]) == (RATIOS[2], "a name")
    data = path.read_bytes()
    sink.close()
    os.close(descriptor)
    start = data[:1000].rindex(TRACKS)  # behind the mention in the table
    found = ebml.element(data[start : start + ebml.HEAD_BYTES])
    assert found is not None
    assert found.size is not None
    contents = data[start + found.head : start + found.head + found.size]
    checksum, *_ = ebml.children(contents)
    true = ebml.CRC, crc32(contents[6:]).to_bytes(4, "little")
    assert checksum == (true if closed else (ebml.VOID, bytes(4)))  # it comes at the end


def test_square_pixels_leave_the_header_alone(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3, SIZE)
    run_file(source, tmp_path / "o.mkv", contents=("matte",))
    assert NAME + b"\xa0" not in (tmp_path / "o.mkv").read_bytes()[:2000]


def test_pictures_turned_by_a_quarter_have_the_inverse(tmp_path: Path) -> None:
    path = tmp_path / "o.webm"
    turned = info(RATIOS[1], orientation=Orientation(90), display_matrix=TURNED)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    plan = plan_output(turned, ".webm", "opaque")
    write(path, 3, FileSink(descriptor, str(path), plan, turned))
    os.close(descriptor)
    assert aspect_of(path) == 1 / RATIOS[1]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_where_it_cannot_be_said_a_line_says_so(kind: str, tmp_path: Path) -> None:
    """A pipe's header is gone once it is written; AVI takes it from nowhere."""
    suffix, codec = (".webm", "vp9") if kind == "pipe" else (".avi", "huffyuv")
    plan = plan_output(info(RATIOS[0]), suffix, "opaque", codec=codec)
    if kind == "file":
        path = tmp_path / "o.avi"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        sink = FileSink(descriptor, str(path), plan, info(RATIOS[0]))
        write(path, 3, sink)
    else:
        read, descriptor = os.pipe()
        drain = threading.Thread(target=lambda: open(read, "rb").close())
        sink = FileSink(descriptor, "p", plan, info(RATIOS[0]), streamed=True)
        with closing(sink):
            sink.write(picture(0))
        drain.start()
        drain.join()
    os.close(descriptor)
    assert [note for note in sink.report.notes if "pixels of 15/16 become square" in note]
