"""Writing video files: time stamps, key frames, closing, descriptors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import decode, fill_picture, make_clip, packets_of, run_file, times_of

from vidmatte.errors import OutputError
from vidmatte.frames import VideoInfo
from vidmatte.sinks.file import FileSink
from vidmatte.sinks.plan import Content, plan_output

CLOCK = Fraction(1, 1000)


def info(**more: Any) -> VideoInfo:
    values: dict[str, Any] = {
        "pix_fmt": "yuv420p", "time_base": CLOCK, "frame_rate": Fraction(25)
    }  # fmt: skip
    return VideoInfo("in", 64, 48, **(values | more))


def picture(index: int, pts: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    made = av.VideoFrame(64, 48, pix_fmt)
    fill_picture(made, index)
    made.pts, made.time_base = pts, CLOCK
    return made


@contextmanager
def sink_of(path: Path, content: Content = "opaque", **more: Any) -> Iterator[FileSink]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield FileSink(
            descriptor, str(path), plan_output(info(**more), path.suffix, content), info(**more)
        )
        os.fstat(descriptor)  # the descriptor stays the caller's
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".nut"])
def test_pictures_keep_their_times(suffix: str, tmp_path: Path) -> None:
    stamps = [0, 40, 90, 700, 2000, 2001, 2050]
    with sink_of(tmp_path / f"o{suffix}") as sink:
        for index, pts in enumerate(stamps):
            sink.write(picture(index, pts))
        sink.close()
    times = times_of(tmp_path / f"o{suffix}")
    # These hold no decode time below zero, which B-frames need, and shift all alike.
    start = times[0] if suffix in (".ts", ".nut") else 0
    assert [round((t - start) * 1000) for t in times] == stamps


def test_times_that_do_not_move_on_are_moved(tmp_path: Path) -> None:
    with sink_of(tmp_path / "o.mp4") as sink:
        for index, pts in enumerate([0, 40, 40, 30, 80]):
            sink.write(picture(index, pts))
        sink.close()
    times = times_of(tmp_path / "o.mp4")
    assert len(times) == 5
    assert times == sorted(set(times))
    assert times[-1] == Fraction(80, 1000)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_apng_keeps_a_variable_rate(rate: Fraction, tmp_path: Path) -> None:
    stamps = [0, 40, 90, 700, 2000, 2010, 2050]
    with sink_of(tmp_path / "o.apng", frame_rate=rate) as sink:
        for index, pts in enumerate(stamps):
            sink.write(picture(index, pts))
        sink.close()
        assert sink.report.notes == []
    assert [round(t * 1000) for t in times_of(tmp_path / "o.apng")] == stamps


@pytest.mark.parametrize(("suffix", "said"), [(".avi", True), (".mkv", False)])
def test_a_variable_rate_that_is_lost_is_said(suffix: str, said: bool, tmp_path: Path) -> None:
    with sink_of(tmp_path / f"o{suffix}") as sink:
        for index, pts in enumerate([0, 5, 10, 15, 20, 400]):
            sink.write(picture(index, pts))
        sink.close()
        assert [n for n in sink.report.notes if "moved by up to 0.14 s" in n] == sink.report.notes
        assert bool(sink.report.notes) == said


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(5)])
def test_a_key_frame_comes_about_every_second(rate: Fraction, tmp_path: Path) -> None:
    with sink_of(tmp_path / "o.mkv", frame_rate=rate) as sink:
        for index in range(int(3 * rate)):
            sink.write(picture(index, round(1000 * index / rate)))
        sink.close()
    keys = [i for i, f in enumerate(decode(tmp_path / "o.mkv")) if f.key_frame]
    assert max(b - a for a, b in zip(keys, [*keys[1:], int(3 * rate)], strict=True)) <= rate + 1


def test_the_part_plays_before_it_is_closed(tmp_path: Path) -> None:
    with sink_of(tmp_path / "o.mp4") as sink:
        for index in range(100):
            sink.write(picture(index, 40 * index))
        assert times_of(tmp_path / "o.mp4")[-1] >= 2
        sink.close()
    assert len(decode(tmp_path / "o.mp4")) == 100


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    with sink_of(tmp_path / "o.mp4") as sink:
        sink.write(picture(0, 0))
        sink.close()
        size = (tmp_path / "o.mp4").stat().st_size
        sink.close()
        assert (tmp_path / "o.mp4").stat().st_size == size


def test_closing_without_a_picture_is_no_crash(tmp_path: Path) -> None:
    with sink_of(tmp_path / "o.mp4") as sink:
        sink.close()
    with pytest.raises(av.error.InvalidDataError):  # nothing to play: the run removes such a part
        av.open(str(tmp_path / "o.mp4"))


def test_a_reader_that_leaves_is_an_output_error() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = FileSink(write, "the pipe", plan_output(info(), ".mkv", "opaque"), info(), streamed=True)

    def write_many() -> None:
        for index in range(200):
            sink.write(picture(index, 40 * index))

    with pytest.raises(OutputError, match="the pipe: the reader has gone"):
        write_many()
    with pytest.raises(OutputError):
        sink.close()
    sink.close()
    os.close(write)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".ts", ".webm", ".nut"])
def test_a_stream_needs_no_seeking(suffix: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    received: list[bytes] = []

    def receive() -> None:
        with open(read, "rb") as stream:
            received.append(stream.read())

    reader = threading.Thread(target=receive)
    reader.start()
    sink = FileSink(write, "p", plan_output(info(), suffix, "opaque"), info(), streamed=True)
    for index in range(30):
        sink.write(picture(index, 40 * index))
    sink.close()
    os.close(write)
    reader.join()
    copy = tmp_path / f"copy{suffix}"
    copy.write_bytes(received[0])
    assert len(decode(copy)) == 30


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, audio="aac")
    os.mkfifo(tmp_path / "fifo.mkv")
    run_file(source, tmp_path / "first.mp4")  # what libraries open once and for all
    before = len(os.listdir("/proc/self/fd"))
    run_file(source, tmp_path / "o.mp4", tmp_path / "a.mkv", contents=("opaque", "matte"))
    assert len(os.listdir("/proc/self/fd")) == before
    received: list[int] = []

    def read() -> None:
        with (tmp_path / "fifo.mkv").open("rb") as stream:
            received.append(len(stream.read()))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    run_file(source, tmp_path / "fifo.mkv")
    reader.join(5)
    assert not reader.is_alive()
    assert received[0] > 1000
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_sound_streams_stay_two(tmp_path: Path) -> None:
    both = make_clip(tmp_path / "one.mkv", 25, audio="aac")
    source = tmp_path / "two.mkv"
    with av.open(str(both)) as one, av.open(str(source), "w") as two:
        video = two.add_stream_from_template(one.streams.video[0])
        sounds = [two.add_stream_from_template(one.streams.audio[0]) for _ in range(2)]
        for language, stream in zip(("eng", "deu"), sounds, strict=True):
            stream.metadata["language"] = language
        for packet in one.demux():
            if not packet.size:
                continue
            if packet.stream.type == "video":
                packet.stream = video
                two.mux(packet)
                continue
            copy = av.Packet(bytes(packet))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base = packet.time_base
            for target, item in zip(sounds, (packet, copy), strict=True):
                item.stream = target
                two.mux(item)
    result = run_file(source, tmp_path / "o.mp4")
    assert result.copied_streams == 2
    with av.open(str(tmp_path / "o.mp4")) as container:
        languages = [s.metadata["language"] for s in container.streams.audio]
    assert languages == ["eng", "deu"]


@pytest.mark.parametrize(("name", "pix_fmt"), [("o.webm", "yuva420p"), ("o.mov", "yuva444p"),
                                               ("o.mkv", "yuva420p")])  # fmt: skip
def test_transparent_outputs_carry_alpha(name: str, pix_fmt: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5)
    run_file(source, tmp_path / name, contents=("transparent",), backend="null:disc")
    if name.endswith(".webm"):  # the default decoder drops alpha
        with av.open(str(tmp_path / name)) as container:
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            assert isinstance(decoder, av.VideoCodecContext)
            packets = [p for p in container.demux(video=0) if p.size]
            frames = [f for p in [*packets, None] for f in decoder.decode(p)]
    else:
        frames = decode(tmp_path / name)
    assert len(frames) == 5
    assert frames[0].format.name.startswith(pix_fmt)
    alpha = frames[2].to_ndarray(format="rgba")[..., 3]
    assert alpha.min() < 10
    assert alpha.max() > 245


def test_a_gif_keeps_its_count_and_its_times(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 40, rate=10)
    run_file(source, tmp_path / "o.gif", contents=("transparent",), backend="null:disc")
    assert times_of(tmp_path / "o.gif") == [Fraction(n, 10) for n in range(40)]


def test_sound_is_not_asked_of_a_container_without_it(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, audio="aac")
    run_file(source, tmp_path / "o.apng", contents=("transparent",))
    assert len(decode(tmp_path / "o.apng")) == 5


def test_damaged_sound_does_not_cost_the_picture(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.ts", 50, audio="aac")
    data = bytearray(source.read_bytes())
    for packet in range(0, len(data), 188):
        pid = (data[packet + 1] & 0x1F) << 8 | data[packet + 2]
        if pid == 0x101 and packet // 188 % 5 == 0:
            data[packet + 20 : packet + 188] = bytes(168)
    source.write_bytes(data)
    for suffix in (".mp4", ".webm"):
        assert run_file(source, tmp_path / f"o{suffix}").frames == 50
        assert len(packets_of(tmp_path / f"o{suffix}", "audio")) > 20


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_hevc_carries_the_tag_that_apple_players_open(suffix: str, tmp_path: Path) -> None:
    with sink_of(tmp_path / f"o{suffix}", pix_fmt="yuv420p10le") as sink:
        for index in range(3):
            sink.write(picture(index, index * 40, "yuv420p10le"))
        sink.close()
    with av.open(tmp_path / f"o{suffix}") as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"
