"""A whole run leaves everything but the background as it came."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import (
    LOSSLESS,
    REPOSITORY,
    Cli,
    decode,
    digest,
    leftovers,
    make_clip,
    packets_of,
    plane_arrays,
    run_file,
    times_of,
)
from numpy.typing import NDArray

from vidmatte.errors import InputError, UsageError
from vidmatte.frames import layout_of
from vidmatte.jobs import Cut, EncodingChoice
from vidmatte.sources.file import FileSource

MKV_TICK = Fraction(1, 1000)


def comparable(picture: av.VideoFrame) -> list[NDArray[Any]]:
    """The samples of a picture, semi-planar chroma taken apart and packed RGB in one order."""
    name = picture.format.name
    if name == "nv12":
        luma, chroma = plane_arrays(picture)
        return [luma, chroma[:, 0::2], chroma[:, 1::2]]
    layout = layout_of(name)
    if layout is None or layout.model == "rgb":
        return [picture.to_ndarray(format="rgb24")]
    return plane_arrays(picture)


PIXELS = {
    "yuv420p": ("s.mkv", "yuv420p", "ffv1", (64, 48), (2, 0, 2, 2)),
    "yuv422p": ("s.mkv", "yuv422p", "ffv1", (64, 48), (1, 1, 1, 1)),
    "yuv444p": ("s.mkv", "yuv444p", "ffv1", (64, 48), (2, 0, 2, 2)),
    "yuv411p": ("s.mkv", "yuv411p", "ffv1", (64, 48), (2, 0, 2, 2)),
    "10 bits": ("s.mkv", "yuv420p10le", "ffv1", (64, 48), (9, 1, 9, 16)),
    "10 bits 422": ("s.mkv", "yuv422p10le", "ffv1", (64, 48), (1, 1, 1, 1)),
    "12 bits 444": ("s.mkv", "yuv444p12le", "ffv1", (64, 48), (1, 1, 1, 1)),
    "odd size": ("s.mkv", "yuv420p", "ffv1", (65, 49), (2, 0, 2, 2)),
    "odd size 422": ("s.mkv", "yuv422p", "ffv1", (63, 47), (2, 0, 2, 2)),
    "full range": ("s.mkv", "yuv420p", "ffv1", (64, 48), (1, 2, 1, 1)),
    "mjpeg": ("s.avi", "yuvj420p", "mjpeg", (64, 48), (5, 2, 2, 2)),
    "planar RGB": ("s.avi", "gbrp", "utvideo", (64, 48), (2, 0, 2, 2)),
    "packed RGB": ("s.mov", "rgb24", "png", (64, 48), (2, 0, 2, 2)),
    "semi-planar": ("s.nut", "nv12", "rawvideo", (64, 48), (2, 0, 2, 2)),
    "semi-planar odd": ("s.nut", "nv12", "rawvideo", (65, 49), (2, 0, 2, 2)),
    "predicted": ("s.mp4", "yuv420p", "libx264", (64, 48), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_all_foreground_gives_the_source_samples_back(kind: str, tmp_path: Path) -> None:
    name, pix_fmt, codec, size, colour = PIXELS[kind]
    source = make_clip(tmp_path / name, 5, size, pix_fmt, codec=codec, colour=colour)
    run_file(source, tmp_path / "o.mkv", encoding=LOSSLESS)
    before, after = decode(source), decode(tmp_path / "o.mkv")
    assert len(before) == len(after) == 5
    for a, b in zip(before, after, strict=True):
        for x, y in zip(comparable(a), comparable(b), strict=True):
            np.testing.assert_array_equal(x, y)
        assert (a.color_range or 1) == (b.color_range or 1)
        assert b.colorspace == a.colorspace


def test_gray_keeps_its_luma_and_gets_neutral_chroma(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mkv", 3, pix_fmt="gray", codec="ffv1")
    run_file(source, tmp_path / "o.mkv", encoding=LOSSLESS)
    for a, b in zip(decode(source), decode(tmp_path / "o.mkv"), strict=True):
        luma, *chroma = comparable(b)
        np.testing.assert_array_equal(luma, comparable(a)[0])
        assert all(np.all(c == 128) for c in chroma)


@pytest.mark.parametrize("background", ["green", "blur"])
def test_decoded_pictures_are_never_written_to(
    background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "s.mp4", 60, (96, 64), gop=60, options={"bf": "3"})
    alone = [digest(p) for p in decode(source)]
    kept: list[av.VideoFrame] = []
    original = FileSource.__iter__

    def keep(self: FileSource) -> Any:
        for frame in original(self):
            kept.append(frame.picture)
            yield frame

    monkeypatch.setattr(FileSource, "__iter__", keep)
    outputs = [tmp_path / n for n in ("o.mp4", "a.mkv", "f.mov")]
    run_file(
        source, *outputs,
        contents=("opaque", "matte", "transparent"), backend="null:disc", background=background,
    )  # fmt: skip
    assert [digest(p) for p in kept] == alone


VFR = [0, 40, 80, 90, 500, 533, 2100, 2133, 2166, 9000]
TIMES: dict[str, dict[str, Any]] = {
    "25 fps": {"name": "s.mp4"},
    "29.97 in mp4": {"name": "s.mp4", "rate": Fraction(30000, 1001)},
    "29.97 in avi": {"name": "s.avi", "rate": Fraction(30000, 1001), "codec": "mpeg4"},
    "23.976 in nut": {"name": "s.nut", "rate": Fraction(24000, 1001), "codec": "ffv1"},
    "B-frames": {"name": "s.mp4", "frames": 30, "options": {"bf": "3"}},
    "variable in mkv": {"name": "s.mkv", "pts": VFR, "time_base": MKV_TICK},
    "variable in mp4": {"name": "s.mp4", "pts": VFR, "time_base": MKV_TICK},
    "late start": {"name": "s.mkv", "pts": [5000 + t for t in VFR], "time_base": MKV_TICK},
    "late start in mp4": {"name": "s.mp4", "pts": [3000 + t for t in VFR], "time_base": MKV_TICK},
    "fine clock": {
        "name": "s.mp4",
        "pts": [0, 1, 3601, 7201, 9000, 90000, 90001, 93604, 99999, 180000],
        "time_base": Fraction(1, 90000),
        "options": {"bf": "0"},
    },
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", TIMES)
def test_every_picture_keeps_its_time(kind: str, suffix: str, tmp_path: Path) -> None:
    arguments = dict(TIMES[kind])
    source = make_clip(tmp_path / arguments.pop("name"), **arguments)
    run_file(source, tmp_path / f"o{suffix}")
    before, after = times_of(source), times_of(tmp_path / f"o{suffix}")
    assert len(after) == len(before)
    for a, b in zip(before, after, strict=True):
        assert abs(a - b) <= MKV_TICK / 2 if suffix == ".mkv" else a == b


def test_transport_streams_keep_their_distances_and_start_at_zero(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.ts", 30, audio="aac")
    run_file(source, tmp_path / "o.mp4")
    before, after = times_of(source), times_of(tmp_path / "o.mp4")
    assert [t - before[0] for t in before] == [t - after[0] for t in after]
    lag = packets_of(source, "audio")[0][0] - before[0]
    assert packets_of(tmp_path / "o.mp4", "audio")[0][0] - after[0] == pytest.approx(lag, abs=1e-3)


def turned(a: int, b: int, c: int, d: int) -> list[int]:
    return [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]


MATRICES = {
    "90": turned(0, 1, -1, 0),
    "180": turned(-1, 0, 0, -1),
    "270": turned(0, -1, 1, 0),
    "mirror": turned(-1, 0, 0, 1),
    "flip": turned(1, 0, 0, -1),
}


def matrix_of(path: Path) -> tuple[int, ...] | None:
    picture = decode(path)[0]
    data = next((bytes(b) for b in picture.side_data if b.type.name == "DISPLAYMATRIX"), None)
    return None if data is None else struct.unpack("=9i", data)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_display_matrix_is_kept(kind: str, suffix: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3, display_matrix=MATRICES[kind])
    run_file(source, tmp_path / f"o{suffix}")
    kept = matrix_of(tmp_path / f"o{suffix}")
    assert kept is not None
    assert kept[:2] + kept[3:5] == matrix_of(source)[:2] + matrix_of(source)[3:5]  # type: ignore[index]


def test_sample_aspect_ratio_and_colour_tags_are_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3, (72, 48), colour=(5, 1, 5, 6), sar=Fraction(16, 15))
    run_file(source, tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(16, 15)
        picture = next(container.decode(video=0))
    tags = (picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc)
    assert tuple(map(int, tags)) == (5, 1, 5, 6)
    assert (picture.width, picture.height) == (72, 48)


def test_untagged_stays_untagged(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3)
    run_file(source, tmp_path / "o.mp4")
    picture = decode(tmp_path / "o.mp4")[0]
    assert int(picture.colorspace) == int(picture.color_primaries) == int(picture.color_trc) == 2


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), [(".gif", "gif", "bgr8"),
                                                          (".mov", "qtrle", "rgb24")])  # fmt: skip
def test_rgb_without_a_tag_becomes_tagged_yuv(
    suffix: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    source = tmp_path / f"s{suffix}"
    with av.open(source, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 720, pix_fmt
        for index in range(3):
            red = av.VideoFrame.from_ndarray(np.full((720, 64, 3), (230, 30, 20), np.uint8))
            red.pts, red.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(red.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    run_file(source, tmp_path / "o.mp4")
    before, after = decode(source)[1], decode(tmp_path / "o.mp4")[1]
    assert (after.colorspace, after.color_range) == (1, 1)
    means = [
        f.reformat(format="rgb24", src_colorspace=space).to_ndarray().astype(float).mean((0, 1))
        for f, space in ((before, None), (after, "ITU709"))
    ]
    assert np.abs(means[0] - means[1]).max() < 3  # of 255: two roundings


def test_hdr10_keeps_depth_tags_and_mastering_data(tmp_path: Path) -> None:
    hdr = (
        "log-level=error:hdr10=1:repeat-headers=1:max-cll=1000,400:master-display="
        "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    )
    source = make_clip(
        tmp_path / "s.mp4", 5, (128, 96), "yuv420p10le", codec="libx265",
        options={"x265-params": hdr, "preset": "ultrafast"}, colour=(9, 1, 9, 16),
    )  # fmt: skip
    run_file(source, tmp_path / "o.mp4")
    before, after = decode(source)[0], decode(tmp_path / "o.mp4")[0]
    assert after.format.name == "yuv420p10le"
    assert (int(after.colorspace), int(after.color_primaries), int(after.color_trc)) == (9, 9, 16)
    for kind in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"):
        blocks = [
            next(bytes(b) for b in p.side_data if b.type.name == kind) for p in (before, after)
        ]
        assert blocks[0] == blocks[1]


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_stays_interlaced(order: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 10, (96, 64), field_order=order)
    assert decode(source)[0].interlaced_frame
    run_file(source, tmp_path / "o.mp4", backend="null:disc")
    assert all(p.interlaced_frame for p in decode(tmp_path / "o.mp4"))
    orders = []
    for path in (source, tmp_path / "o.mp4"):
        with av.open(str(path)) as container:
            orders.append(container.streams.video[0].codec_context.field_order)
    assert orders[0] == orders[1]


def test_several_outputs_come_from_one_pass_and_close_before_the_first_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidmatte.outputs import FileDestination
    from vidmatte.sinks.file import FileSink

    events: list[str] = []
    close, commit = FileSink.close, FileDestination.commit

    def note_close(self: FileSink) -> None:
        close(self)
        events.append("close")

    def note_commit(self: FileDestination) -> None:
        events.append("commit")
        commit(self)

    monkeypatch.setattr(FileSink, "close", note_close)
    monkeypatch.setattr(FileDestination, "commit", note_commit)
    source = make_clip(tmp_path / "s.mp4", 10, audio="aac")
    outputs = [tmp_path / n for n in ("o.mp4", "a.mkv", "f.mov")]
    result = run_file(
        source, *outputs, contents=("opaque", "matte", "transparent"), backend="null:disc"
    )
    assert events == ["close"] * 3 + ["commit"] * 3
    assert [len(decode(path)) for path in outputs] == [10, 10, 10]
    assert decode(outputs[1])[0].format.name == "gray"
    assert "a" in decode(outputs[2])[0].format.name.removeprefix("yuv")
    assert leftovers(tmp_path, "s.mp4", "o.mp4", "a.mkv", "f.mov") == []
    assert result.frames == 10


def test_the_codec_is_the_main_outputs_alone(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5)
    outputs = [tmp_path / "o.mp4", tmp_path / "a.mkv", tmp_path / "f.mov"]
    run_file(
        source, *outputs, contents=("opaque", "matte", "transparent"), backend="null:disc",
        encoding=EncodingChoice(codec="hevc", crf=30, preset="fast"),
    )  # fmt: skip
    names = []
    for path in outputs:
        with av.open(path) as container:
            names.append(container.streams.video[0].codec_context.name)
    assert names == ["hevc", "ffv1", "prores"]


def test_start_and_end_cut_pictures_and_sound_alike(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 75, audio="aac")
    run_file(source, tmp_path / "o.mkv", cut=Cut(start_s=1.0, end_s=2.0), encoding=LOSSLESS)
    times = times_of(tmp_path / "o.mkv")
    assert times == [Fraction(n, 25) for n in range(25)]
    expected = decode(source)[25:50]
    assert [digest(p) for p in decode(tmp_path / "o.mkv")] == [digest(p) for p in expected]
    sound = [t for t, _ in packets_of(tmp_path / "o.mkv", "audio")]
    assert 0 <= sound[0] < 0.05
    assert 0.95 < sound[-1] <= 1.0


def test_damage_is_counted_and_strict_makes_it_an_error(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 50, (96, 64), muxer={"movflags": "faststart"})
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    result = run_file(source, tmp_path / "o.mp4")
    assert 0 < result.frames < 50
    assert any("missing" in warning for warning in result.warnings)
    with pytest.raises(InputError, match="--strict"):
        run_file(source, tmp_path / "strict.mp4", strict=True)
    assert not (tmp_path / "strict.mp4").exists()


def test_a_picture_over_the_size_limit_is_refused_before_decoding(
    tmp_path: Path, run_cli: Cli
) -> None:
    source = make_clip(tmp_path / "s.mp4", 2, (128, 96))
    done = run_cli("run", source, tmp_path / "o.mp4", "--max-size", "127x96")
    assert done.returncode == 1
    assert "128x96 are over the limit" in done.stderr
    assert leftovers(tmp_path, "s.mp4") == []


def test_equal_names_and_folders_are_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 2)
    link = tmp_path / "link.mp4"
    link.hardlink_to(source)
    for output in (source, link, tmp_path / "." / "s.mp4"):
        with pytest.raises(UsageError, match="is also"):
            run_file(source, output, overwrite=True)
    with pytest.raises(UsageError, match="is also"):
        run_file(source, tmp_path / "o.mp4", tmp_path / "." / ".." / tmp_path.name / "o.mp4")


NO_SOCKETS = """
import sys
def watch(event, args):
    if event.startswith("socket.") and event != "socket.__new__":
        sys.stderr.write(f"SOCKET {event} {args}\\n")
    if event == "socket.__new__" and len(args) > 1:
        sys.stderr.write(f"SOCKET {event} {args[1:]}\\n")
sys.addaudithook(watch)
sys.argv = ["vidmatte", *sys.argv[1:]]
from vidmatte.cli import main
main()
"""


@pytest.mark.parametrize("backend", ["null", "openvino"])
def test_no_socket_is_opened(backend: str, tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mp4", 5, audio="aac")
    command = [sys.executable, "-c", NO_SOCKETS, "run", str(source), str(tmp_path / "o.mp4"),
               "--backend", backend]  # fmt: skip
    done = subprocess.run(command, env=run_cli.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "SOCKET" not in done.stderr


MEMORY = """
import resource, sys
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun, MattingChoice
peaks = []
def tick(progress):
    pages = int(open("/proc/self/statm").read().split()[1])
    peaks.append((progress.frames, pages * resource.getpagesize()))
run = FileRun(sys.argv[1], {sys.argv[2]: "opaque"}, matting=MattingChoice(backend="null:disc"))
result = run.run(Stop(), tick)
early = max(size for frames, size in peaks if frames < result.frames // 3)
late = max(size for frames, size in peaks)
print(result.frames, (late - early) / 2**20)
"""
GROWTH_MB = 12  # allocator noise; 2000 frames kept would be 13 MB of luma alone, and far more


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(
        tmp_path / "s.mp4", 3000, (96, 64), audio="aac", options={"preset": "ultrafast"}
    )
    command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "o.mp4")]
    done = subprocess.run(
        command, env=run_cli.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    frames, growth = done.stdout.split()
    assert int(frames) == 3000
    assert float(growth) < GROWTH_MB
