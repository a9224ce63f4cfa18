"""Runs of whole files: the sound, text and data beside the picture, in sync and whole."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from conftest import (
    decode,
    make_clip,
    packets_of,
    run_file,
    times_of,
)

from vidmatte.jobs import Cut, EncodingChoice

MKV_TICK = Fraction(1, 1000)


def widest_gap(path: Path) -> float:
    """How far, in seconds, picture and sound lie apart in the order of the file."""
    last, gap = {"video": 0.0, "audio": 0.0}, 0.0
    with av.open(str(path)) as container:
        packets = sorted(
            (p for p in container.demux() if p.size and p.pos is not None and p.dts is not None),
            key=lambda p: p.pos,
        )
        for packet in packets:
            last[packet.stream.type] = float(packet.dts * packet.time_base)
            gap = max(gap, abs(last["video"] - last["audio"]))
    return gap


@pytest.mark.parametrize(
    ("source_name", "output_name", "codec"),
    [("s.mp4", "o.mp4", "aac"), ("s.mkv", "o.mkv", "libopus"), ("s.mov", "o.mov", "pcm_s16le"),
     ("s.mkv", "o.mp4", "aac"), ("s.mp4", "o.mkv", "aac"), ("s.mkv", "o.mkv", "flac"),
     ("s.webm", "o.webm", "libopus")],
)  # fmt: skip
def test_sound_is_copied_packet_by_packet(
    source_name: str, output_name: str, codec: str, tmp_path: Path
) -> None:
    video = "libvpx-vp9" if source_name.endswith("webm") else "libx264"
    source = make_clip(tmp_path / source_name, 25, codec=video, audio=codec)
    result = run_file(source, tmp_path / output_name)
    before = packets_of(source, "audio")
    after = packets_of(tmp_path / output_name, "audio")
    assert result.copied_streams == 1
    assert b"".join(data for _, data in before) == b"".join(data for _, data in after)
    if codec != "pcm_s16le":  # its packets are cut by the reader, not stored
        assert [data for _, data in before] == [data for _, data in after]
    # Where priming begins before zero, Matroska shifts all streams alike: compare with the picture.
    starts = [times_of(path)[0] for path in (source, tmp_path / output_name)]
    lags = [sound[0][0] - start for sound, start in zip((before, after), starts, strict=True)]
    assert abs(lags[0] - lags[1]) <= MKV_TICK


@pytest.mark.parametrize("audio_first", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_far_from_its_pictures_in_the_file_stays_in_sync(
    audio_first: bool, suffix: str, tmp_path: Path
) -> None:
    source = make_clip(
        tmp_path / f"s{suffix}", 120, rate=10, audio="aac", audio_first=audio_first,
        muxer={"max_interleave_delta": "1"},
    )  # fmt: skip
    run_file(source, tmp_path / f"o{suffix}")
    before, after = packets_of(source, "audio"), packets_of(tmp_path / f"o{suffix}", "audio")
    assert [data for _, data in before] == [data for _, data in after]
    assert all(abs(a - b) <= MKV_TICK for (a, _), (b, _) in zip(before, after, strict=True))
    assert widest_gap(tmp_path / f"o{suffix}") < 1.5


def test_sound_that_starts_late_or_outlasts_the_picture_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mkv", 10, audio="aac", audio_s=2.0, audio_start_s=0.5)
    run_file(source, tmp_path / "o.mkv")
    assert packets_of(tmp_path / "o.mkv", "audio") == packets_of(source, "audio")


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_a_mov_gets_aac_for_what_it_cannot_hold(codec: str, tmp_path: Path) -> None:
    """FFmpeg lists FLAC and Opus for .mov and then refuses them with no reason."""
    source = make_clip(tmp_path / "s.mkv", 25, audio=codec)
    result = run_file(source, tmp_path / "o.mov")
    with av.open(str(tmp_path / "o.mov")) as container:
        assert [s.codec_context.name for s in container.streams.audio] == ["aac"]
    assert any("converted to aac" in note for note in result.notes)


def test_webm_gets_opus_and_says_so(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 25, audio="aac")
    result = run_file(source, tmp_path / "o.webm")
    with av.open(str(tmp_path / "o.webm")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name in ("opus", "libopus")
        heard = sum(f.samples for f in container.decode(audio=0)) / 48000
    assert heard == pytest.approx(1.0, abs=0.06)
    assert any("is converted to opus" in note for note in result.notes)


def rich_source(folder: Path) -> Path:
    """A Matroska with sound, subtitles, an attachment, chapters and tags."""
    base = make_clip(
        folder / "base.mkv", 50, audio="aac", metadata={"title": "Ünïted", "artist": "A"},
        chapters=2,
    )  # fmt: skip
    subtitles, note, rich = folder / "s.srt", folder / "note.txt", folder / "rich.mkv"
    subtitles.write_text("1\n00:00:00,200 --> 00:00:01,000\nHello\n\n"
                         "2\n00:00:01,200 --> 00:00:01,900\nWorld\n\n"
                         "3\n00:00:01,200 --> 00:00:01,900\nAt once\n")  # fmt: skip
    note.write_text("attached")
    with av.open(str(base)) as source, av.open(str(rich), "w") as target, \
            av.open(str(subtitles)) as words:  # fmt: skip
        target.metadata.update(source.metadata)
        target.set_chapters(source.chapters())
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for stream in source.streams:
            streams[stream.index].metadata.update(stream.metadata)
        text = target.add_stream_from_template(words.streams.subtitles[0])
        target.add_attachment("note.txt", "text/plain", note.read_bytes())
        for packet in words.demux():
            if packet.size:
                packet.stream = text
                target.mux(packet)
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return rich


def test_subtitles_chapters_attachments_and_tags_are_kept(tmp_path: Path) -> None:
    source = rich_source(tmp_path)
    run_file(source, tmp_path / "o.mkv")
    with av.open(str(source)) as a, av.open(str(tmp_path / "o.mkv")) as b:
        kinds = [sorted(s.type for s in c.streams) for c in (a, b)]
        assert kinds[0] == kinds[1] == ["attachment", "audio", "subtitle", "video"]
        assert b.metadata["title"] == "Ünïted"
        assert [c["metadata"] for c in a.chapters()] == [c["metadata"] for c in b.chapters()]
        languages = [c.streams.audio[0].metadata.get("language") for c in (a, b)]
        assert languages == ["eng", "eng"]
    lines = packets_of(source, "subtitle")
    assert [words for _, words in lines] == [b"Hello", b"World", b"At once"]
    assert lines == packets_of(tmp_path / "o.mkv", "subtitle")


def test_what_a_container_cannot_hold_is_named(tmp_path: Path) -> None:
    result = run_file(rich_source(tmp_path), tmp_path / "o.mp4")
    left_out = [note for note in result.notes if "left out" in note]
    assert any("attachment" in note for note in left_out)
    assert any("subtitle" in note for note in left_out)


def test_a_time_code_that_a_pipe_cannot_read_is_left_out(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 10, options={"bf": "0"}, muxer={"movflags": "faststart"})
    timed = tmp_path / "t.mp4"
    with av.open(path) as source, av.open(timed, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.metadata["timecode"] = "01:02:03:04"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    for suffix in (".mp4", ".mov", ".mkv"):
        output = tmp_path / f"o{suffix}"
        with timed.open("rb") as pipe:
            arguments = ["run", "-", output, "--backend", "null", "-b", "red"]
            done = subprocess.run(
                [sys.executable, "-m", "vidmatte", *arguments],
                input=pipe.read(), capture_output=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"data stream 1" in done.stderr
        assert len(decode(output)) == 10


def test_one_picture_of_a_video_has_no_sound(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 75, audio="aac")
    run_file(source, tmp_path / "o.mp4", cut=Cut(start_s=1.0, frames=1))
    with av.open(tmp_path / "o.mp4") as container:
        assert [s.type for s in container.streams] == ["video"]
    assert len(decode(tmp_path / "o.mp4")) == 1


def test_a_transport_stream_keeps_its_sound_as_it_is(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 25, audio="aac")
    result = run_file(source, tmp_path / "o.ts")
    assert (result.copied_streams, result.notes) == (1, [])
    bare = [payload for _, payload in packets_of(source, "audio")]
    framed = [payload for _, payload in packets_of(tmp_path / "o.ts", "audio")]
    assert [f[-len(b) :] for f, b in zip(framed, bare, strict=True)] == bare


def test_no_audio_leaves_the_sound_out(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, audio="aac")
    run_file(source, tmp_path / "o.mp4", encoding=EncodingChoice(audio=False))
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert [s.type for s in container.streams] == ["video"]
