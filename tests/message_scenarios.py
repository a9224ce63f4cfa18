"""Ways to make `vidmatte` say something: one scenario for every message that can be provoked."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import make_clip
from message_engines import ENGINES
from message_evaluate import EVALUATE
from message_live import LIVE
from message_models import MODELS
from message_report import REPORT
from message_tools import Patch, Prepare, Scenario, failing, without, write
from message_train import TRAINING

from vidmatte.backends import null

# x264 writes other bytes with every number of threads, and damage would hit other pictures.
SAME = {"threads": "1"}


def tree(*names: str) -> Prepare:
    """Copies of the clip under these names."""

    def prepare(folder: Path, patch: Patch) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "s.mp4", folder / name)

    return prepare


def make_base(folder: Path) -> None:
    """Put into `folder` what most scenarios use."""
    make_clip(folder / "s.mp4", 3)
    (folder / "t.mp4").write_text("not a video at all, whatever its name says\n")
    (folder / "empty.mp4").touch()
    make_clip(folder / "sound.mkv", 5, audio="libopus")
    damaged = bytearray(make_clip(folder / "damaged.mkv", 60, options=SAME).read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = bytes(400)
    (folder / "damaged.mkv").write_bytes(damaged)
    whole = make_clip(folder / "cut.ts", 60, options=SAME).read_bytes()
    (folder / "cut.ts").write_bytes(whole[: len(whole) // 2])
    make_clip(folder / "deep.mkv", 3, pix_fmt="yuv444p10le", codec="ffv1")


# Inputs -----------------------------------------------------------------------------------------


def sound_only(folder: Path, patch: Patch) -> None:
    with av.open(str(folder / "sound.mkv")) as source, av.open(str(folder / "x.mka"), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)


def numbered(folder: Path, patch: Patch) -> None:
    """f_1.png and f_4.png are pictures, f_5.png is a text; g_1.png is a video."""
    for number in (1, 4):
        with av.open(str(folder / f"f_{number}.png"), "w", format="image2",
                     options={"update": "1"}) as out:  # fmt: skip
            stream: Any = out.add_stream("png", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            out.mux(stream.encode(picture))
    (folder / "f_5.png").write_text("no picture")
    shutil.copy(folder / "s.mp4", folder / "g_1.png")
    (folder / "h_1.png").write_bytes((folder / "f_1.png").read_bytes()[:60])


def undecodable(folder: Path, patch: Patch) -> None:
    """A clip whose every sample is noise."""
    data = (folder / "s.mp4").read_bytes()
    at = data.index(b"mdat") + 4
    size = struct.unpack_from(">I", data, at - 8)[0] - 8
    (folder / "x.mp4").write_bytes(data[:at] + b"\xff" * size + data[at + size :])


def cut_mp4(folder: Path, patch: Patch) -> None:
    data = (folder / "s.mp4").read_bytes()
    (folder / "x.mp4").write_bytes(data[: data.index(b"mdat") + 200])


def pipe_of(name: str) -> Prepare:
    """Make a file standard input, through a pipe that holds it whole."""

    def prepare(folder: Path, patch: Patch) -> None:
        reading, writing = os.pipe()
        os.write(writing, (folder / name).read_bytes())
        os.close(writing)
        patch.setattr("vidmatte.sources._shared.open_stdin", lambda: reading)

    return prepare


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def two_videos(folder: Path, patch: Patch) -> None:
    with av.open(str(folder / "s.mp4")) as source, av.open(str(folder / "x.mkv"), "w") as out:
        streams = [out.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = streams[0]
                out.mux(packet)


def grown(folder: Path, patch: Patch) -> None:
    """A stream whose pictures change in size."""
    small = make_clip(folder / "a.ts", 5).read_bytes()
    large = make_clip(folder / "b.ts", 5, (128, 96)).read_bytes()
    (folder / "x.ts").write_bytes(small + large)


def attached(folder: Path, patch: Patch) -> None:
    with av.open(str(folder / "s.mp4")) as source, av.open(str(folder / "x.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        out.add_attachment("font.ttf", "application/x-truetype-font", b"font")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)


def cut_in_the_samples(folder: Path, patch: Patch) -> None:
    whole = make_clip(
        folder / "x.mp4", 60, options=SAME, muxer={"movflags": "faststart"}
    ).read_bytes()
    (folder / "x.mp4").write_bytes(whole[: len(whole) * 6 // 10])


def one_noisy_sample(folder: Path, patch: Patch) -> None:
    """Noise in the place of a few whole pictures."""
    path = make_clip(folder / "x.mov", 20, codec="png", pix_fmt="rgb24")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for packet in packets[8:10]:
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)


INPUTS = {
    "missing": Scenario("run none.mp4 o.mp4"),
    "address": Scenario("run http://127.0.0.1/x.mp4 o.mp4"),
    "text": Scenario("run t.mp4 o.mp4"),
    "empty": Scenario("run empty.mp4 o.mp4"),
    "cut before its index": Scenario("run x.mp4 o.mp4", cut_mp4),
    "no video stream": Scenario("run x.mka o.mp4", sound_only),
    "nothing decodes": Scenario("run x.mp4 o.mp4", undecodable),
    "fifo": Scenario("run fifo o.mp4", lambda folder, patch: os.mkfifo(folder / "fifo")),
    "no permission": Scenario("run s.mp4 o.mp4",
                              failing("os", "open", PermissionError(13, "Permission denied"))),
    "stdin closed": Scenario("run - o.mp4", lambda f, patch: patch.setattr(sys, "stdin", None)),
    "stdin terminal": Scenario(
        "run - o.mp4", lambda f, patch: patch.setattr(sys, "stdin", Terminal())
    ),
    "stdin text": Scenario("run - o.mp4", pipe_of("t.mp4")),
    "too large": Scenario("run s.mp4 o.mp4 --max-size 32x32"),
    "ends before": Scenario("run s.mp4 o.mp4 --start 60"),
    "between two pictures": Scenario("run s.mp4 o.mp4 --start 0.041 --end 0.042"),
    "rate of a video": Scenario("run s.mp4 o.mp4 --rate 30"),
    "strict": Scenario("run damaged.mkv o.mkv --strict"),
    "pattern of nothing": Scenario("run no_%03d.png o.mp4"),
    "pattern of videos": Scenario("run g_%d.png o.mp4", numbered),
    "pattern of a cut picture": Scenario("run h_%d.png o.mp4", numbered),
    "pattern of large pictures": Scenario("run f_%d.png o.mp4 --max-size 9x9", numbered),
    "pattern with holes": Scenario("run f_%d.png o.mp4", numbered),
    "damaged": Scenario("run damaged.mkv o.mkv"),
    "cut": Scenario("run cut.ts o.mp4"),
    "two video streams": Scenario("run x.mkv o.mp4", two_videos),
    "cut in the samples": Scenario("run x.mp4 o.mp4", cut_in_the_samples),
    "noisy samples": Scenario("run x.mov o.mp4", one_noisy_sample),
    "attachment": Scenario("run x.mkv o.mp4", attached),
    "changes its size": Scenario("run x.ts o.mp4", grown),
}  # fmt: skip


# Outputs ----------------------------------------------------------------------------------------


def locked(folder: Path, patch: Patch) -> Callable[[], None]:
    import fcntl

    file = (folder / "o.part.mp4").open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file.close


def many_stale(folder: Path, patch: Patch) -> None:
    (folder / "o.part.mp4").touch()
    for number in range(1, 1000):
        (folder / f"o.stale{number}.mp4").touch()


def no_space(folder: Path, patch: Patch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=0)
    patch.setattr(shutil, "disk_usage", lambda path: usage)


def gone_bad(at: int) -> Prepare:
    def broken(matte_HW: Any, index: int) -> None:
        matte_HW[:] = np.nan if index == at else 1

    return lambda folder, patch: patch.setitem(null.FORMULAS, "ones", broken)


def rotated(folder: Path, patch: Patch) -> None:
    make_clip(folder / "x.mp4", 3, display_matrix=[0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30])


OUTPUTS = {
    "exists": Scenario("run s.mp4 t.mp4"),
    "no folder": Scenario("run s.mp4 no/o.mp4"),
    "address as output": Scenario("run s.mp4 rtmp://127.0.0.1/live"),
    "is a folder": Scenario("run s.mp4 o.mp4", lambda folder, patch: (folder / "o.mp4").mkdir()),
    "unknown extension": Scenario("run s.mp4 o.xyz"),
    "no extension": Scenario("run s.mp4 o"),
    "unknown codec": Scenario("run s.mp4 o.mp4 --codec nosuch"),
    "codec of another container": Scenario("run s.mp4 o.mp4 --codec prores"),
    "codec of no card": Scenario("run s.mp4 o.mp4 --codec h264_nvenc", lambda folder, patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")),
    "codec without alpha": Scenario("run s.mp4 o.mkv --codec h264 -b transparent"),
    "container without alpha": Scenario("run s.mp4 o.mp4 -b transparent"),
    "unknown preset": Scenario("run s.mp4 o.mp4 --preset nosuch"),
    "pictures of no kind": Scenario("run s.mp4 f_%03d.mp4"),
    "pictures without alpha": Scenario("run s.mp4 f_%03d.jpg -b transparent"),
    "one picture": Scenario("run s.mp4 o.png"),
    "same name": Scenario("run s.mp4 o.mp4 --alpha o.mp4"),
    "is the input": Scenario("run s.mp4 s.mp4 --overwrite"),
    "null in the name": Scenario("run s.mp4 a\0.mp4"),
    "name too long": Scenario(f"run s.mp4 {'x' * 300}.mp4"),
    "terminal": Scenario("run s.mp4 -", lambda f, patch: patch.setattr(sys.stdout, "isatty",
                                                                       lambda: True)),
    "being written": Scenario("run s.mp4 o.mp4", locked),
    "many stale parts": Scenario("run s.mp4 o.mp4", many_stale),
    "no permission to write": Scenario(
        "run s.mp4 o.mp4", lambda f, patch: patch.setattr(os, "access", lambda *_: False)
    ),
    "disk full": Scenario("run s.mp4 o.mp4", no_space),
    "disk full at the end": Scenario("run s.mp4 o.mp4",
                                     failing("os", "fsync", OSError(28, "No space left"))),
    "disk broken at the end": Scenario("run s.mp4 o.mp4",
                                       failing("os", "fsync", OSError(5, "Input/output error"))),
    "taken during the run": Scenario("run s.mp4 o.mp4",
                                     failing("os", "link", FileExistsError(17, "File exists"))),
    "numbered pictures taken": Scenario("run s.mp4 n_%d.png",
                                        failing("os", "link", FileExistsError(17, "exists"))),
    "device that refuses": Scenario(
        "run s.mp4 /dev/full", failing("os", "set_blocking", PermissionError(13, "denied"))
    ),
    "nan": Scenario("run damaged.mkv o.mp4", gone_bad(20)),
    "nan at once": Scenario("run s.mp4 o.mp4", gone_bad(0)),
    "plain": Scenario("run s.mp4 o.mp4"),
    "quiet": Scenario("run s.mp4 o.mp4 --quiet"),
    "stale part": Scenario("run s.mp4 o.mp4", write("o.part.mp4", "old")),
    "stale pictures": Scenario("run s.mp4 n_%d.png --overwrite", tree("n_7.png")),
    "sound converted": Scenario("run sound.mkv o.avi"),
    "sound left out": Scenario("run sound.mkv o.gif"),
    "turned upright": Scenario("run x.mp4 o.gif", rotated),
    "chroma and depth": Scenario("run deep.mkv o.webm -b green"),
    "bits lost": Scenario("run deep.mkv o.avi --codec mpeg4"),
    "HDR in 8 bits": Scenario("run x.mkv o.mp4 --codec h264", lambda folder, patch: make_clip(
        folder / "x.mkv", 3, pix_fmt="yuv420p10le", codec="ffv1", colour=(9, 1, 9, 16))),
    "range of ProRes": Scenario("run x.mp4 o.mov -b green --codec prores", lambda folder, patch:
                                make_clip(folder / "x.mp4", 3, colour=(1, 2, 1, 1))),
    "options without use": Scenario("run s.mp4 o.mov --crf 20 --preset fast"),
    "address as background": Scenario("run s.mp4 o.mp4 -b http://127.0.0.1/x.jpg"),
    "folder as background": Scenario("run s.mp4 o.mp4 -b ./d",
                                     lambda folder, patch: (folder / "d").mkdir()),
    "no colour": Scenario("run s.mp4 o.mp4 -b nocolour"),
    "no blur": Scenario("run s.mp4 o.mp4 -b blur:much"),
    "too much blur": Scenario("run s.mp4 o.mp4 -b blur:900"),
}  # fmt: skip


# Options and folders ----------------------------------------------------------------------------

OPTIONS = {
    "no command": Scenario("nosuch"),
    "no such option": Scenario("run s.mp4 o.mp4 --fast"),
    "no output named": Scenario("run s.mp4"),
    "no number": Scenario("run s.mp4 o.mp4 --crf much"),
    "no time": Scenario("run s.mp4 o.mp4 --start soon"),
    "no size": Scenario("run s.mp4 o.mp4 --max-size large"),
    "no rate": Scenario("run s.mp4 o.mp4 --rate fast"),
    "no fit": Scenario("run s.mp4 o.mp4 --fit round"),
    "end before start": Scenario("run s.mp4 o.mp4 --start 3 --end 2"),
    "frame and start": Scenario("run s.mp4 o.png --frame 1 --start 2"),
    "folder and alpha": Scenario("run in out --alpha a.mkv", tree("in/a.mp4")),
    "folder of nothing": Scenario("run in out", lambda folder, patch: (folder / "in").mkdir()),
    "folder into itself": Scenario("run in in", tree("in/a.mp4")),
    "folder into a file": Scenario("run in s.mp4", tree("in/a.mp4")),
    "folder into a name of a file": Scenario("run in new.mp4", tree("in/a.mp4")),
    "folder of one name": Scenario("run in out", tree("in/a.avi", "in/a.mp4", "in/b.txt")),
    "folder under a file": Scenario("run in out", tree("in/d/a.mp4", "out/d")),
    "folder done before": Scenario("run in out", tree("in/a.mp4", "in/b.mp4", "out/a.mp4")),
    "demo in a file": Scenario("demo -o s.mp4/demo"),
    "demo without photographs": Scenario("demo -o d --backend null", without("skimage")),
    "demo on a full disk": Scenario(
        "demo -o d --backend null --frames 2 --height 90 -q",
        failing("pathlib.Path", "write_bytes", OSError(28, "No space left on device")),
    ),
    "out of memory": Scenario("run s.mp4 o.mp4", failing("vidmatte.runner", "source_of",
                                                         MemoryError())),
    "too many files": Scenario("run s.mp4 o.mp4", failing("vidmatte.runner", "source_of",
                                                          OSError(24, "Too many open files"))),
    "our bug": Scenario("run s.mp4 o.mp4", failing("vidmatte.runner", "source_of",
                                                   KeyError("oops"))),
}  # fmt: skip

SCENARIOS = INPUTS | OUTPUTS | OPTIONS | MODELS | ENGINES | LIVE | EVALUATE | TRAINING | REPORT
