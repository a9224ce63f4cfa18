"""Workers that raise, hang or lag: how the real command ends and what it keeps."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import Cli, decode, leftovers, make_clip, run_file, times_of, wait_until
from faulty import (
    BREAKERS,
    at,
    hang,
    killed_at_exit,
    no_traceback,
    pictures_in,
    refusal,
    run_broken,
    start_broken,
)

from vidmatte import runner
from vidmatte.backends import null
from vidmatte.errors import OutputError, VidmatteError
from vidmatte.matting import MattingChoice, NetworkKeeper
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun
from vidmatte.sinks.file import FileSink
from vidmatte.sinks.images import PictureEncoder

pytestmark = pytest.mark.fault

NULL = ("--backend", "null")
HUNG_S = 5.0  # promised from the signal to the end of a process that hangs in C code
SLACK_S = 2.0  # other tests on the same two cores
RATE = 25
INT, TERM = signal.SIGINT, signal.SIGTERM
HANG_AT = 100


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "s.mkv", 200, options={"crf": "1"})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("short") / "s.mp4", 20)


@dataclass(frozen=True)
class Ended:
    """A process that hung in C code and was then sent a signal."""

    code: int
    took_s: float
    stderr: str
    folder: Path
    number: signal.Signals


def start_hung(cli: Cli, part: str, folder: Path, clip: Path) -> Any:
    """Start a run that hangs in `part`, in `folder`/out."""
    (folder / "out").mkdir(parents=True)
    output = folder / "out" / "o.mkv"
    arguments = ("run", clip, output, *NULL)
    if part == "reader":
        os.mkfifo(output)
        return cli.start(*arguments, "--crf", "1")
    patch = at(part, hang(folder / "reached"), HANG_AT)
    return start_broken(cli, patch, *arguments)


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Ended]:
    """One run per part that hangs there; all at the same time, for each waits seconds."""
    cli = Cli(tmp_path_factory.mktemp("home"))
    base = tmp_path_factory.mktemp("hung")
    parts = [*BREAKERS, "reader"]
    with contextlib.ExitStack() as stack:
        processes = {
            part: stack.enter_context(killed_at_exit(start_hung(cli, part, base / part, clip)))
            for part in parts
        }
        fifo = os.open(base / "reader" / "out" / "o.mkv", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, fifo)
        wait_until(lambda: all((base / p / "reached").exists() for p in BREAKERS), 30)
        wait_until(lambda: waiting_in(fifo) > 60_000, 30)  # of the 65,536 that a pipe holds
        time.sleep(1.0)  # what was decoded before is written by then
        began, results = time.monotonic(), {}
        for number, process in enumerate(processes.values()):
            process.send_signal((INT, TERM)[number % 2])
        for number, (part, process) in enumerate(processes.items()):
            _, errors = process.communicate(timeout=20)
            took_s = time.monotonic() - began
            which = (INT, TERM)[number % 2]
            results[part] = Ended(process.returncode, took_s, errors, base / part / "out", which)
    return results


def waiting_in(descriptor: int) -> int:
    """Count the bytes that a pipe holds."""
    buffer = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, buffer)
    return buffer[0]


@pytest.mark.parametrize("part", [*BREAKERS, "reader"])
def test_what_hangs_in_c_code_is_ended_by_a_signal(part: str, hung: dict[str, Ended]) -> None:
    end = hung[part]
    assert end.code == 128 + end.number, end.stderr
    assert end.took_s < HUNG_S + SLACK_S
    assert no_traceback(end.stderr)
    assert "error: " not in end.stderr


@pytest.mark.parametrize("part", ["opening", "model"])
def test_what_hangs_before_the_first_picture_leaves_nothing(
    part: str, hung: dict[str, Ended]
) -> None:
    assert leftovers(hung[part].folder) == []


@pytest.mark.parametrize("part", ["decoder", "backend"])
def test_nothing_that_was_matted_is_lost_when_a_worker_hangs(
    part: str, hung: dict[str, Ended], clip: Path
) -> None:
    """One frame is held back by the look ahead."""
    kept = hung[part].folder / "o.part.mkv"
    assert f"stopped: what was finished is in {kept}" in hung[part].stderr
    times = times_of(kept)
    assert times == times_of(clip)[: len(times)]
    assert len(times) >= HANG_AT - 1


def test_what_the_encoder_gave_before_it_hung_plays(hung: dict[str, Ended]) -> None:
    kept = hung["encoder"].folder / "o.part.mkv"
    assert f"stopped: what was finished is in {kept}" in hung["encoder"].stderr
    assert pictures_in(kept) >= HANG_AT - 2 * RATE


FAILURES = [0, 1, 7, 19]


class Encoder:
    """An encoder's stream that raises at picture `at`."""

    def __init__(self, stream: Any, at: int) -> None:
        self._stream, self._left = stream, at

    def encode(self, picture: av.VideoFrame | None) -> Any:
        if picture is not None:
            if self._left == 0:
                raise av.error.ExternalError(-542398533, "Generic error in an external library")
            self._left -= 1
        return self._stream.encode(picture)


def break_encoder(monkeypatch: pytest.MonkeyPatch, at: int, name: str) -> None:
    """Make the encoder of the file sink called like `name` raise at picture `at`."""
    add = FileSink._add_video

    def add_video(self: FileSink, muxing: Any) -> Any:
        stream = add(self, muxing)
        return Encoder(stream, at) if self._name.endswith(name) else stream

    monkeypatch.setattr(FileSink, "_add_video", add_video)


@pytest.mark.parametrize("temporal", [True, False], ids=["look-ahead", "no look-ahead"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts"])
@pytest.mark.parametrize("count", FAILURES)
def test_an_encoder_that_fails_at_frame_n_leaves_a_part_of_n_frames(
    count: int, suffix: str, temporal: bool, short: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    break_encoder(monkeypatch, count, suffix)
    with pytest.raises(OutputError, match="cannot be encoded") as caught:
        run_file(short, tmp_path / f"o{suffix}", temporal=temporal)
    kept = tmp_path / f"o.part{suffix}"
    assert leftovers(tmp_path) == ([kept.name] if count else [])
    if count:
        assert len(decode(kept)) == count
        assert any(str(kept) in note for note in caught.value.__notes__)


@pytest.mark.parametrize("count", FAILURES)
def test_a_picture_encoder_that_fails_at_frame_n_leaves_n_pictures(
    count: int, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = PictureEncoder.encode
    seen: list[None] = []

    def broken(self: PictureEncoder, picture: av.VideoFrame) -> bytes:
        if len(seen) == count:
            raise av.error.ExternalError(-542398533, "Generic error in an external library")
        seen.append(None)
        return encode(self, picture)

    monkeypatch.setattr(PictureEncoder, "encode", broken)
    with pytest.raises(OutputError, match="cannot be encoded"):
        run_file(short, tmp_path / "o_%d.png")
    assert leftovers(tmp_path) == (["o.part"] if count else [])
    if count:
        assert len(leftovers(tmp_path / "o.part")) == count


@pytest.mark.parametrize(("broken", "counts"), [("o.mp4", (7, 7)), ("a.mkv", (8, 7))])
def test_an_encoder_that_fails_beside_another_leaves_both_parts(
    broken: str, counts: tuple[int, int], short: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Outputs get a picture one after the other: those before the broken one have its picture."""
    break_encoder(monkeypatch, 7, broken)
    with pytest.raises(OutputError, match=broken) as caught:
        run_file(short, tmp_path / "o.mp4", tmp_path / "a.mkv", contents=("opaque", "matte"))
    parts = tmp_path / "o.part.mp4", tmp_path / "a.part.mkv"
    assert tuple(len(decode(part)) for part in parts) == counts
    assert len(caught.value.__notes__) == 2


@pytest.mark.parametrize(
    ("part", "action", "message"),
    [
        ("encoder", "import av; raise av.error.ExternalError(-1, 'it broke')",
         "{output}: cannot be encoded: [Errno -1] it broke"),
        ("backend", "matte[:] = float('nan')", "{source}: frame 7: the network returned NaN"),
        ("decoder", "from vidmatte.errors import InputError; raise InputError('it broke')",
         "it broke"),
    ],
)  # fmt: skip
def test_a_worker_that_fails_is_one_line_and_n_frames(
    part: str, action: str, message: str, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    output = tmp_path / "o.mp4"
    done = run_broken(run_cli, at(part, action, 7), "run", short, output, *NULL)
    assert refusal(done) == f"error: {message.format(source=short, output=output)}"
    kept = tmp_path / "o.part.mp4"
    assert f"stopped: what was finished is in {kept}" in done.stderr.splitlines()
    assert leftovers(tmp_path) == ["o.part.mp4"]
    assert times_of(kept) == times_of(short)[:7]


MEMORY = """
import resource, time
from vidmatte.sinks.file import FileSink
from vidmatte.sources.file import FileSource
sizes, write_to, frames_of = [], FileSink.write, FileSource.__iter__
def write(self, picture):
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    sizes.append(pages * resource.getpagesize() / 2**20)
    time.sleep({consumer_s})
    write_to(self, picture)
def frames(self):
    for frame in frames_of(self):
        time.sleep({producer_s})
        yield frame
close_it = FileSink.close
def close(self):
    with open({report!r}, "w") as report:
        report.write(f"{{sizes[0]}} {{max(sizes)}}")
    close_it(self)
FileSink.write, FileSource.__iter__, FileSink.close = write, frames, close
"""
LAG_S = 0.025  # ten times what a picture of this size takes
LARGE = (960, 540)
LARGE_FRAMES = 90  # of .74 MB, decoded and composited: 118 MB more if nothing held them back
GROWTH_MB = 50  # the pictures in the channels and an encoder's own buffers


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_however_the_speeds_differ(tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mkv", LARGE_FRAMES, LARGE, options={"preset": "ultrafast"})
    with contextlib.ExitStack() as stack:
        processes = []
        for name, lags in (("consumer", (LAG_S, 0)), ("producer", (0, LAG_S))):
            patch = MEMORY.format(
                consumer_s=lags[0], producer_s=lags[1], report=str(tmp_path / f"{name}.txt")
            )
            process = start_broken(
                run_cli, patch, "run", source, tmp_path / f"{name}.mkv", *NULL,
                "--preset", "ultrafast",
            )  # fmt: skip
            processes.append(stack.enter_context(killed_at_exit(process)))
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        assert no_traceback(errors)
    for name in ("consumer", "producer"):
        assert len(decode(tmp_path / f"{name}.mkv")) == LARGE_FRAMES
        first, most = map(float, (tmp_path / f"{name}.txt").read_text().split())
        assert most - first < GROWTH_MB, name


def test_a_matting_that_cannot_be_built_gives_its_network_back(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, opened = NetworkKeeper(), []
    open_null = null.open_backend

    def count(request: Any) -> Any:
        opened.append(request)
        return open_null(request)

    def refuse(*arguments: object, **options: object) -> None:
        raise VidmatteError("cannot be built")

    def run(name: str) -> None:
        choice = MattingChoice(backend="null")
        FileRun(
            str(short), {str(tmp_path / name): "opaque"}, matting=choice, networks=keeper
        ).run(Stop())  # fmt: skip

    monkeypatch.setattr(null, "open_backend", count)
    with monkeypatch.context() as broken:
        broken.setattr(runner, "build_matting", refuse)
        with pytest.raises(VidmatteError, match="cannot be built"):
            run("a.mp4")
    run("b.mp4")
    assert len(opened) == 1
