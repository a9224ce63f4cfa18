"""Inputs that lie, change while they are read, or ask for absurdly much: the real command."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli_here import CliHere
from conftest import Cli, decode, leftovers, make_clip, packets_of, times_of
from faulty import ended, refusal, start_broken

pytestmark = pytest.mark.fault

EDGE = 65535
BOMB_CPU_S = 1.0  # above what refusing a text file costs, so that starting Python is not counted
BOMB_MB = 500
# A child's peak memory begins at the size of the process that starts it: that must be small.
MEASURE = """
import json, os, sys
report, *command = sys.argv[1:]
child = os.posix_spawn(command[0], command, os.environ)
_, status, used = os.wait4(child, 0)
with open(report, "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], file)
os._exit(os.waitstatus_to_exitcode(status) % 256)
"""


def measured(cli: Cli, *arguments: object) -> tuple[subprocess.CompletedProcess[str], float, float]:
    """Run `vidmatte ARGUMENTS`; return what it did, its seconds of CPU and its peak in MB."""
    report = Path(cli.env["HOME"]) / "report.json"
    command = [sys.executable, "-I", "-S", "-c", MEASURE, report, sys.executable, "-W", "error",
               "-m", "vidmatte", *arguments]  # fmt: skip
    process = subprocess.Popen(
        [str(word) for word in command], env=cli.env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    done = ended(process)
    cpu_s, peak_mb = json.loads(report.read_text())
    return done, cpu_s, peak_mb


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1 << 24), 9))  # 16 MB of rows in 16 kB
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


def gif(edge: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", edge, edge, 0xF0, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, edge, edge, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(edge: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + sizes + bytes(100)


def tiff(edge: int) -> bytes:
    short, long = 3, 4
    tags = [(256, long, edge), (257, long, edge), (258, short, 8), (259, short, 1), (262, short, 1),
            (273, long, 8), (277, short, 1), (278, long, edge), (279, long, 2**32 - 1)]  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)


def jpegs_of(folder: Path, suffix: str, edge: int) -> bytes:
    """A clip of JPEGs, each of which says that it is `edge` by `edge`; one picture for .jpg."""
    clip = make_clip(folder / f"m{suffix if suffix != '.jpg' else '.avi'}", 3, codec="mjpeg",
                     pix_fmt="yuvj420p")  # fmt: skip
    data = clip.read_bytes()
    clip.unlink()
    small, large = struct.pack(">HH", 48, 64), struct.pack(">HH", edge, edge)
    data = data.replace(b"\xff\xc0\0\x11\x08" + small, b"\xff\xc0\0\x11\x08" + large)
    assert large in data
    if suffix == ".jpg":
        start = data.index(b"\xff\xd8\xff")
        return data[start : data.index(b"\xff\xd9", start) + 2]
    return data


def webp(edge: int) -> bytes:
    """A canvas of `edge` by `edge` (24 bits each) that holds a VP8 picture of 16383 by 16383."""
    canvas = struct.pack("<I", edge - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas
    key = b"\x10\x02\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(40)
    body = b"WEBP" + extended + b"VP8 " + struct.pack("<I", len(key)) + key
    return b"RIFF" + struct.pack("<I", len(body)) + body


def y4m(edge: int, rate: str = "25:1") -> bytes:
    head = f"YUV4MPEG2 W{edge} H{edge} F{rate} Ip A1:1 C420mpeg2\n".encode()
    return head + b"".join(b"FRAME\n" + bytes([60 + n]) * 384 for n in range(5))


def bomb(kind: str, folder: Path) -> bytes:
    if kind in ("jpg", "mp4", "mkv"):
        return jpegs_of(folder, f".{kind}", EDGE)
    made = {
        "png": lambda: png(EDGE, EDGE),
        "line.png": lambda: png(2**31 - 1, 1),
        "gif": lambda: gif(EDGE),
        "bmp": lambda: bmp(EDGE),
        "tif": lambda: tiff(EDGE),
        "webp": lambda: webp(1 << 24),
        "y4m": lambda: y4m(30000),
        "pgm": lambda: b"P5 65535 65535 255\n" + bytes(100),
        "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="65535" height="65535"/>',
    }
    return made[kind]()


@pytest.fixture(scope="module")
def refusal_cpu_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What refusing a file without any picture costs."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "x.png").write_text("not a picture")
    done, cpu_s, _ = measured(Cli(folder), "run", folder / "x.png", folder / "o.mp4")
    assert done.returncode == 1
    return cpu_s


@pytest.mark.parametrize(
    "kind",
    ["png", "line.png", "jpg", "gif", "webp", "bmp", "tif", "pgm", "svg", "y4m", "mp4", "mkv"],
)
def test_a_picture_bomb_is_refused_at_once(
    kind: str, tmp_path: Path, run_cli: Cli, refusal_cpu_s: float
) -> None:
    source = tmp_path / f"bomb.{kind}"
    source.write_bytes(bomb(kind, tmp_path))
    done, cpu_s, peak_mb = measured(run_cli, "run", source, tmp_path / "o.mp4", "--backend", "null")
    assert source.name in refusal(done)
    assert cpu_s - refusal_cpu_s < BOMB_CPU_S
    assert peak_mb < BOMB_MB
    assert leftovers(tmp_path, source.name) == []


def test_a_sparse_file_as_large_as_it_says_is_refused(tmp_path: Path, run_cli: Cli) -> None:
    source = tmp_path / "bomb.y4m"
    with source.open("wb") as file:
        file.write(y4m(30000))
        file.truncate(3 * 30000 * 30000)  # takes no room
    done, _, peak_mb = measured(run_cli, "run", source, tmp_path / "o.mp4", "--backend", "null")
    assert source.name in refusal(done)
    assert peak_mb < BOMB_MB


def test_a_bomb_is_refused_as_a_background_and_passed_over_in_a_folder(
    tmp_path: Path, run_cli: Cli, refusal_cpu_s: float
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    clip = make_clip(folder / "s.mp4", 5)
    (folder / "bomb.png").write_bytes(png(EDGE, EDGE))
    done, cpu_s, peak_mb = measured(run_cli, "run", clip, tmp_path / "o.mp4", "--backend", "null",
                                    "-b", folder / "bomb.png")  # fmt: skip
    assert "bomb.png" in refusal(done)
    assert cpu_s - refusal_cpu_s < BOMB_CPU_S
    assert peak_mb < BOMB_MB
    assert leftovers(tmp_path, "in") == []
    done, _, peak_mb = measured(run_cli, "run", folder, tmp_path / "out", "--backend", "null")
    assert done.returncode == 1
    assert "bomb.png" in next(x for x in done.stderr.splitlines() if x.startswith("error: "))
    assert peak_mb < BOMB_MB
    assert leftovers(tmp_path / "out") == ["s.mp4"]
    assert len(decode(tmp_path / "out" / "s.mp4")) == 5


def overwritten(data: bytes, tag: bytes, at: int, value: bytes) -> bytes:
    """Replace the bytes that begin `at` bytes behind the end of every `tag`."""
    parts = data.split(tag)
    assert len(parts) > 1
    edited = [part[:at] + value + part[at + len(value) :] for part in parts[1:]]
    return tag.join([parts[0], *edited])


def lying(folder: Path) -> dict[str, int]:
    """Write clips whose headers lie, into `folder`; return how many pictures each holds."""
    mp4 = make_clip(folder / "m.mp4", 10, audio="aac").read_bytes()
    (folder / "m.mp4").unlink()
    zero, huge, negative = bytes(4), b"\xff" * 4, b"\x80\0\0\0"
    boxes = {"mvhd": (b"mvhd", 16), "mdhd": (b"mdhd", 16), "tkhd": (b"tkhd", 20),
             "scale": (b"mvhd", 12), "size": (b"tkhd", 76)}  # fmt: skip
    for name, (box, at) in boxes.items():
        for lie, value in (("zero", zero), ("huge", huge), ("negative", negative)):
            (folder / f"{name}_{lie}.mp4").write_bytes(overwritten(mp4, box, at, value))
    mkv = make_clip(folder / "m.mkv", 10, audio="aac").read_bytes()
    (folder / "m.mkv").unlink()
    for lie, seconds in (("long", 1e12), ("negative", -5.0), ("nan", float("nan"))):
        data = overwritten(mkv, b"\x44\x89\x88", 0, struct.pack(">d", seconds))
        (folder / f"length_{lie}.mkv").write_bytes(data)
    for lie, number in (("zero", 0), ("short", 1), ("long", 2**32 - 1)):
        data = overwritten(mkv, b"\x23\xe3\x83\x84", 0, struct.pack(">I", number))
        (folder / f"duration_{lie}.mkv").write_bytes(data)
    rates = ("1000000:1", "1:1000", "0:0", "1:0", "4294967295:1", "1:4294967295", "-25:1")
    for number, rate in enumerate(rates):
        (folder / f"rate_{number}.y4m").write_bytes(y4m(16, rate))
    return {p.name: 5 if p.suffix == ".y4m" else 10 for p in folder.iterdir()}


def test_headers_that_lie_about_time_and_size_cost_no_picture(tmp_path: Path, run_cli: Cli) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    counts = lying(folder)
    assert len(counts) == 28
    done = run_cli("run", folder, tmp_path / "out", "--backend", "null", timeout=60)
    assert done.returncode == 0, done.stderr
    for name, count in counts.items():
        output = next((tmp_path / "out").glob(f"{Path(name).stem}.*"))
        times = times_of(output)
        assert len(times) == count, name
        assert all(a < b for a, b in pairwise(times)), name


def test_a_clock_of_nanoseconds_costs_sound_and_no_picture(tmp_path: Path, run_cli: Cli) -> None:
    """Regression: sound that falls together on the coarser clock of an mp4 ended the run."""
    source = make_clip(tmp_path / "s.mkv", 20, audio="aac")
    scale = overwritten(source.read_bytes(), b"\x2a\xd7\xb1\x83", 0, b"\0\0\1")
    source.write_bytes(scale)
    done = run_cli("run", source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert "packets are left out" in done.stderr
    assert len(decode(tmp_path / "o.mp4")) == 20


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_clock_of_geological_age_keeps_every_picture(
    suffix: str, tmp_path: Path, run_cli: Cli
) -> None:
    source = make_clip(tmp_path / "s.mkv", 20)
    head, cluster, tail = source.read_bytes().partition(b"\x1f\x43\xb6\x75")
    size = struct.unpack(">H", tail[:2])[0]
    assert size >> 14 == 1  # a size of two bytes
    before, zero, after = tail[2:].partition(b"\xe7\x81\0")
    assert zero  # the cluster's time, in one byte
    moved = before + b"\xe7\x88" + struct.pack(">Q", 2**62) + after
    source.write_bytes(head + cluster + struct.pack(">H", size + 7) + moved)
    done = run_cli("run", source, tmp_path / f"o{suffix}", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert len(decode(tmp_path / f"o{suffix}")) == 20


def test_an_index_of_absurd_length_is_damage_and_not_want_of_memory(
    tmp_path: Path, cli_here: CliHere
) -> None:
    source = make_clip(tmp_path / "s.mp4", 5)
    source.write_bytes(overwritten(source.read_bytes(), b"stts", 4, b"\x7f\xff\xff\xff"))
    done = cli_here("run", source, tmp_path / "o.mp4", "--backend", "null")
    assert "index is missing or damaged" in done.refusal
    assert "memory" not in done.err


def silent_clip(path: Path) -> Path:
    """Sound and no picture."""
    whole = make_clip(path.with_name("whole.mkv"), 5, audio="aac")
    import av

    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole.unlink()
    return path


def test_what_holds_no_video_is_one_line(tmp_path: Path, cli_here: CliHere) -> None:
    (tmp_path / "one.mp4").write_bytes(b"x")
    (tmp_path / "none.mp4").write_bytes(b"")
    silent_clip(tmp_path / "sound.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "a.mp4").symlink_to("b.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    names = [p.name for p in tmp_path.iterdir()]
    output = tmp_path / "o.mp4"
    for path in [*(tmp_path / name for name in names), *map(Path, ("/dev/zero", "/dev/random",
                                                                   "/dev/null"))]:  # fmt: skip
        began = time.monotonic()
        done = cli_here("run", path, output, "--backend", "null")
        assert path.name in done.refusal
        assert time.monotonic() - began < 5.0
        assert not output.exists()
    assert leftovers(tmp_path, *names) == []


def test_a_folder_called_like_a_video(tmp_path: Path, cli_here: CliHere) -> None:
    (tmp_path / "d.mp4").mkdir()
    assert "d.mp4" in cli_here("run", tmp_path / "d.mp4", tmp_path / "o.mp4").refusal
    clip = make_clip(tmp_path / "s.mp4", 3)
    done = cli_here("run", clip, tmp_path / "o.mp4", "-b", tmp_path / "d.mp4")
    assert "is a folder" in done.refusal
    assert leftovers(tmp_path, "s.mp4", "d.mp4") == []


# Stops reading in the middle until the file "go" appears; what is read after that is changed.
PAUSE = """
import os, sys, time
from vidmatte.sources.file import FileSource
original = FileSource.__iter__
def paused(self):
    for frame in original(self):
        if frame.index == 20:
            open(os.environ["TEST_FOLDER"] + "/waits", "w").close()
            while not os.path.exists(os.environ["TEST_FOLDER"] + "/go"):
                time.sleep(.02)
        yield frame
FileSource.__iter__ = paused
"""
FRAMES = 120


@pytest.fixture(scope="module")
def large_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream so large that most of it is unread while its first pictures are worked on."""
    clip = make_clip(tmp_path_factory.mktemp("large") / "s.ts", FRAMES, (320, 240),
                     options={"crf": "3", "preset": "ultrafast"})  # fmt: skip
    assert clip.stat().st_size > 4_000_000
    return clip


def while_it_is_read(cli: Cli, source: Path, change: Any) -> subprocess.CompletedProcess[str]:
    """Run `source` to o.mp4 beside it and `change()` it when about 20 pictures are read."""
    folder = source.parent
    cli.env["TEST_FOLDER"] = str(folder)
    process = start_broken(cli, PAUSE, "run", source, folder / "o.mp4", "--backend", "null")
    try:
        end = time.monotonic() + 20
        while not (folder / "waits").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        change()
    finally:
        (folder / "go").touch()
        done = ended(process)
    return done


@pytest.fixture
def own_copy(large_clip: Path, tmp_path: Path) -> Path:
    (tmp_path / large_clip.name).write_bytes(large_clip.read_bytes())
    return tmp_path / large_clip.name


def test_a_file_deleted_or_replaced_while_it_is_read_comes_out_whole(
    own_copy: Path, large_clip: Path, run_cli: Cli
) -> None:
    other = make_clip(own_copy.with_name("other.ts"), 5)
    done = while_it_is_read(run_cli, own_copy, lambda: other.replace(own_copy))
    assert done.returncode == 0, done.stderr
    assert len(decode(own_copy.with_name("o.mp4"))) == FRAMES
    own_copy.write_bytes(large_clip.read_bytes())
    for name in ("o.mp4", "waits", "go"):
        own_copy.with_name(name).unlink()
    done = while_it_is_read(run_cli, own_copy, own_copy.unlink)
    assert done.returncode == 0, done.stderr
    assert len(decode(own_copy.with_name("o.mp4"))) == FRAMES


def test_a_file_that_grows_while_it_is_read(own_copy: Path, run_cli: Cli) -> None:
    more = own_copy.read_bytes()

    def grow() -> None:
        with own_copy.open("ab") as file:
            file.write(more)

    done = while_it_is_read(run_cli, own_copy, grow)
    assert done.returncode == 0, done.stderr
    assert len(decode(own_copy.with_name("o.mp4"))) >= FRAMES


def test_a_file_cut_while_it_is_read_ends_there(own_copy: Path, run_cli: Cli) -> None:
    half = own_copy.stat().st_size // 2
    done = while_it_is_read(run_cli, own_copy, lambda: os.truncate(own_copy, half))
    assert done.returncode == 0, done.stderr
    output = own_copy.with_name("o.mp4")
    assert FRAMES // 3 < len(decode(output)) < FRAMES * 2 // 3
    assert "warning: " in done.stderr
    assert leftovers(own_copy.parent, own_copy.name, "o.mp4", "go", "waits") == []


def test_a_file_overwritten_with_noise_while_it_is_read(own_copy: Path, run_cli: Cli) -> None:
    def spoil() -> None:
        with own_copy.open("r+b") as file:
            file.seek(file.seek(0, os.SEEK_END) // 2)
            file.write(bytes(range(256)) * 8000)

    done = while_it_is_read(run_cli, own_copy, spoil)
    assert done.returncode == 0, done.stderr
    assert len(decode(own_copy.with_name("o.mp4"))) > FRAMES // 3
    assert "warning: " in done.stderr


def test_sound_that_changes_its_rate_in_the_middle_is_not_played_at_the_wrong_speed(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: its packets were copied behind the header of the first format."""
    first = make_clip(tmp_path / "a.ts", 20, audio="aac")
    monkeypatch.setattr("conftest.AUDIO_RATE", 32000)
    second = make_clip(tmp_path / "b.ts", 20, audio="aac")
    source = tmp_path / "s.ts"
    source.write_bytes(first.read_bytes() + second.read_bytes())
    done = run_cli("run", source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert "its rate or channels change" in done.stderr
    assert len(decode(tmp_path / "o.mp4")) == 40
    assert len(packets_of(tmp_path / "o.mp4", "audio")) == len(packets_of(first, "audio"))


def test_sound_that_changes_its_codec_and_ends_costs_no_picture(
    tmp_path: Path, run_cli: Cli
) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", 20, audio=a) for n, a in enumerate(("aac", "mp2"))]
    parts.append(make_clip(tmp_path / "2.ts", 20))
    source = tmp_path / "s.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    done = run_cli("run", source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert len(decode(tmp_path / "o.mp4")) == 60


@pytest.mark.parametrize(
    ("size", "pix_fmt", "said"),
    [
        ((128, 96), "yuv420p", "warning: {}: the picture size changes in the middle"),
        ((64, 48), "yuv422p", "note: the pixel format changes in the middle"),
    ],
    ids=["size", "format"],
)
def test_pictures_that_change_in_the_middle_leave_as_they_began(
    size: tuple[int, int], pix_fmt: str, said: str, tmp_path: Path, run_cli: Cli
) -> None:
    first = make_clip(tmp_path / "a.ts", 5).read_bytes()
    source = tmp_path / "x.ts"
    source.write_bytes(first + make_clip(tmp_path / "b.ts", 5, size, pix_fmt).read_bytes())
    done = run_cli("run", source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert said.format(source) in done.stderr
    pictures = decode(tmp_path / "o.mp4")
    assert len(pictures) == 10
    assert {(p.width, p.height, p.format.name) for p in pictures} == {(64, 48, "yuv420p")}
