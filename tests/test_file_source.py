"""Decoding files as they are: guarded, in order, every picture once, damage counted."""

from __future__ import annotations

import gc
import os
import re
import weakref
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import pytest
from conftest import decode, digest, leftovers, make_clip, run_file, times_of

from vidmatte.errors import InputError
from vidmatte.frames import Frame
from vidmatte.jobs import Cut
from vidmatte.sources._shared import Timeline, open_descriptor
from vidmatte.sources.companions import Companions, SideChannel
from vidmatte.sources.file import FileSource


def frames_of(path: Path, **options: float) -> list[Frame]:
    with FileSource(path, **options) as source:  # type: ignore[arg-type]
        return list(source)


def test_every_picture_comes_once_in_order_as_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 40, options={"bf": "3"})
    frames = frames_of(path)
    assert [f.index for f in frames] == list(range(40))
    assert [f.pts for f in frames] == sorted({f.pts for f in frames})
    assert [digest(f.picture) for f in frames] == [digest(p) for p in decode(path)]


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_a_source_is_gone_when_it_is_left(count: int, tmp_path: Path) -> None:
    """A live background is opened again for every loop: decoders must not wait for the gc."""
    path = make_clip(tmp_path / "s.mp4", 20, (320, 180))
    opened: list[weakref.ref[FileSource]] = []
    gc.collect()
    gc.disable()
    try:
        with FileSource(path) as source:
            opened.append(weakref.ref(source))
            frames = list(islice(source, count))
        del source, frames
        assert opened[0]() is None
    finally:
        gc.enable()


def test_what_a_source_says_of_itself(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "s.mp4", 10, (72, 48), rate=Fraction(30000, 1001), colour=(1, 1, 1, 1),
        sar=Fraction(4, 3), display_matrix=[0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30],
    )  # fmt: skip
    with FileSource(path) as source:
        info = source.info
    assert (info.width, info.height, info.pix_fmt) == (72, 48, "yuv420p")
    assert info.frame_rate == Fraction(30000, 1001)
    assert (info.frame_count, info.sample_aspect_ratio) == (10, Fraction(4, 3))
    assert (info.colour.matrix, info.colour.range) == (1, 1)
    assert (info.orientation.rotate_cw, info.orientation.mirror) == (90, False)
    assert info.duration_s == pytest.approx(10 * 1001 / 30000, abs=0.01)
    assert not info.is_still
    assert info.field_order == "progressive"


PLAYLISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile {secret}\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>',
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n",
    "image.mp4": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}


@pytest.mark.fault
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_cannot_open_another(name: str, tmp_path: Path) -> None:
    secret = make_clip(tmp_path / "secret.mp4", 3)
    bait = tmp_path / name
    bait.write_text(PLAYLISTS[name].format(secret=secret))
    with pytest.raises(InputError, match="is not a video or picture"), FileSource(bait):
        pass


@pytest.mark.fault
@pytest.mark.parametrize(
    "name", ["http://example.invalid/a.mp4", "concat:a|b", "lavfi:testsrc", "pipe:0", "data:,x",
             "fd:0", "file:/etc/passwd"],
)  # fmt: skip
def test_an_address_is_a_file_name(name: str) -> None:
    with pytest.raises(InputError, match="no such file"), FileSource(name):
        pass


@pytest.mark.fault
def test_only_regular_files_are_opened_and_nothing_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        open_descriptor(tmp_path / "fifo")
    with pytest.raises(InputError, match="is a folder"):
        open_descriptor(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        open_descriptor("/dev/zero")
    with pytest.raises(InputError, match="not a usable file name"):
        open_descriptor("a\0b")


@pytest.mark.fault
def test_descriptors_are_closed_by_every_door(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 3)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("s.mp4", "empty.mp4", "text.mp4"):
        try:
            frames_of(tmp_path / name)
        except InputError:
            assert name != path.name
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.fault
def test_the_reason_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match="is empty"):
        frames_of(tmp_path / "empty.mp4")
    whole = make_clip(tmp_path / "s.mp4", 30, (160, 96)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        frames_of(tmp_path / "cut.mp4")
    both = make_clip(tmp_path / "both.mkv", 5, audio="aac")
    with av.open(str(both)) as source, av.open(str(tmp_path / "sound.mka"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(InputError, match="no video stream"):
        frames_of(tmp_path / "sound.mka")


@pytest.mark.fault
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_a_cut_file_gives_every_whole_picture_with_any_threads(
    share: float, threads: int, tmp_path: Path
) -> None:
    """The error of the cut one came when the decoder was emptied, and cost two whole ones."""
    path = make_clip(tmp_path / "s.mp4", 60, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with FileSource(path, threads=threads) as source:
        frames = list(source)
        missing = re.findall(r"(\d+) pictures missing", source.damage[0])
    assert len(frames) + int(missing[0]) == 60


@pytest.mark.fault
def test_one_bad_packet_costs_its_pictures_and_no_more(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mkv", 50, (96, 64), codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    middle, size = packets[25]
    assert middle is not None
    start = data.index(b"\xff\xd8", middle)
    data[start : start + size - 40] = bytes(size - 40)
    path.write_bytes(data)
    with FileSource(path) as source:
        frames = list(source)
        damage = source.damage
    assert len(frames) == 49
    assert damage == ["1 picture could not be decoded, first at 1.00 s"]


def test_start_and_end_cut_exactly(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 100, gop=30, options={"bf": "2"})
    whole = [digest(p) for p in decode(path)]
    frames = frames_of(path, start_s=1.5, end_s=2.5)
    assert [digest(f.picture) for f in frames] == whole[38:63]
    assert frames[0].index == 0
    assert 0 <= frames[0].time_s < 1 / 25


def test_a_start_after_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends before 60 s"):
        frames_of(make_clip(tmp_path / "s.mp4", 5), start_s=60)


@pytest.mark.fault
def test_the_limit_on_pixels_holds_before_decoding(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mp4", 2, (64, 48))
    assert len(frames_of(path, max_pixels=64 * 48)) == 2
    with pytest.raises(InputError, match="over the limit"):
        frames_of(path, max_pixels=64 * 48 - 1)


def test_companions_give_each_packet_once_up_to_a_time(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "s.mkv", 50, audio="aac")
    with Companions(str(path)) as companions:
        early = [p.pts * p.time_base for p in companions.packets_until(0.5)]
        late = [p.pts * p.time_base for p in companions.packets_until(None)]
    assert max(early) <= 0.5 < min(late)
    assert sorted(early + late) == early + late
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
    assert len(early) + len(late) == len(packets)


@pytest.mark.fault
def test_the_side_channel_never_blocks_and_counts_what_it_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "s.mkv", 10, audio="aac")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
    monkeypatch.setattr("vidmatte.sources.companions.SIDE_BYTES", sum(p.size for p in packets[2:]))
    side = SideChannel()
    for packet in packets:
        side.put(packet)
    assert side.dropped == 2
    assert [bytes(p) for p in side.packets_until(None)] == [bytes(p) for p in packets[2:]]


class FakePacket:
    """As much of a packet as a time line looks at."""

    def __init__(self, time_s: float, stream_index: int = 0) -> None:
        self.time_base = Fraction(1, 1000)
        self.pts = self.dts = round(time_s * 1000)
        self.duration = 40
        self.stream_index = stream_index


@pytest.mark.parametrize(
    ("times", "expected", "jumps"),
    [
        ([1.0, 1.04, 1.08], [0, 0.04, 0.08], 0),
        ([1.0, 1.04, 9.0], [0, 0.04, 8.0], 0),  # a pause
        ([1.0, 1.04, 500.0, 500.04], [0, 0.04, 0.08, 0.12], 1),  # a cut
        ([1.0, 1.04, 0.0, 0.04], [0, 0.04, 0.08, 0.12], 1),  # a restart
        ([1.0, 1.04, 1.0, 1.08], [0, 0.04, 0.0, 0.08], 0),  # a small step back
    ],
)
def test_jumps_of_the_clock_are_joined(
    times: list[float], expected: list[float], jumps: int
) -> None:
    timeline = Timeline(origin=Fraction(1), mend=True)
    got = []
    for time_s in times:
        packet = FakePacket(time_s)
        timeline.correct(packet)  # type: ignore[arg-type]
        got.append(packet.pts / 1000)
    assert got == pytest.approx(expected)
    assert timeline.jumps == jumps


@pytest.mark.parametrize(("start_s", "end_s", "expected"), [(None, 0.2, 6), (0.2, 0.5, 9),
                                                            (4.3, 4.7, 12)])  # fmt: skip
def test_the_picture_at_the_end_time_is_not_used(
    start_s: float | None, end_s: float, expected: int, tmp_path: Path
) -> None:
    path = make_clip(tmp_path / "s.mp4", 150, rate=Fraction(30))
    frames = frames_of(path, start_s=start_s or 0.0, end_s=end_s)
    assert len(frames) == expected


def test_a_cut_between_two_pictures_is_an_error(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 10)
    with pytest.raises(InputError, match="no picture is left between --start and --end"):
        run_file(source, tmp_path / "o.mp4", cut=Cut(start_s=0.11, end_s=0.115))
    assert leftovers(tmp_path, "s.mp4") == []


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "codec"), [("s.mkv", "libx264"), ("s.webm", "libvpx-vp9"), ("s.avi", "mpeg4")]
)
@pytest.mark.parametrize("share", [0.8, 0.995])  # of the bytes: pictures lost; the index only
def test_a_file_shorter_than_its_own_header_says_ends_early(
    name: str, codec: str, share: float, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / name, 50, codec=codec)
    whole = source.stat().st_size
    assert run_file(source, tmp_path / "whole.mkv").warnings == []
    left = int(whole * share)
    os.truncate(source, left)
    result = run_file(source, tmp_path / "o.mkv")
    assert (0 < result.frames < 50) or share > 0.9
    last_s = times_of(tmp_path / "o.mkv")[-1]
    (warning,) = (w for w in result.warnings if "ends early" in w)
    assert f"{whole - left} of {whole} bytes are missing, after" in warning
    assert float(warning.split("after ")[1].split()[0]) == pytest.approx(last_s, abs=0.15)
    with pytest.raises(InputError, match="ends early"):
        run_file(source, tmp_path / "strict.mkv", strict=True)


def test_a_recording_without_a_length_is_not_taken_for_a_cut_one(tmp_path: Path) -> None:
    """What an unfinished or streamed Matroska or AVI states is "unknown"."""
    source = make_clip(tmp_path / "s.mkv", 10)
    data = bytearray(source.read_bytes())
    size_at = data.index(bytes.fromhex("18538067")) + 4
    assert data[size_at] == 1  # eight bytes of size
    data[size_at : size_at + 8] = bytes.fromhex("01ffffffffffffff")
    source.write_bytes(data)
    assert run_file(source, tmp_path / "o.mkv").warnings == []
    avi = make_clip(tmp_path / "s.avi", 10, codec="mpeg4")
    data = bytearray(avi.read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    avi.write_bytes(data)
    assert run_file(avi, tmp_path / "p.mkv").warnings == []


@pytest.mark.fault
@pytest.mark.parametrize("wrecked", [0, 0.3, 0.5, 0.7, 0.9, 1])
def test_a_wrecked_cluster_is_counted(tmp_path: Path, wrecked: float) -> None:
    """FFmpeg finds the next cluster by searching and tells nobody that pictures are gone."""
    clip = make_clip(tmp_path / "a.mkv", 60, muxer={"cluster_time_limit": "400"})
    data = bytearray(clip.read_bytes())
    starts = [m.start() for m in re.finditer(b"\x1f\x43\xb6\x75", bytes(data))]
    start, end = starts[2], starts[3]
    start += round((1 - wrecked) * (end - start))
    data[start:end] = b"\xff" * (end - start)
    clip.write_bytes(data)
    with FileSource(clip) as source:
        frames = list(source)
    lost = r"about (\d+) pictures? missing|(\d+) pictures? could not be decoded"
    counted = sum(int(a or b) for line in source.damage for a, b in re.findall(lost, line))
    assert counted == 60 - len(frames)
    assert (len(frames) < 60) == bool(wrecked)
    assert bool(source.damage) == bool(wrecked)


def test_a_pause_is_no_damage(tmp_path: Path) -> None:
    times = [*range(20), *range(60, 80)]
    clip = make_clip(tmp_path / "a.mkv", 40, pts=times)
    with FileSource(clip) as source:
        assert len(list(source)) == 40
    assert source.damage == []
