"""What a run leaves behind when something fails: the real command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import Cli, decode, leftovers, make_clip, packets_of, run_file, times_of, wait_until
from faulty import killed_at_exit

from vidmatte.backends import null
from vidmatte.errors import BackendError, InputError, VidmatteError
from vidmatte.sources.file import FileSource

pytestmark = pytest.mark.fault

STOP_S = 2.0  # from the signal to the end of the process
SLACK_S = 1.5  # other tests on the same two cores
RATE, GOP_S = 25, 1.0


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of pictures and sound."""
    return make_clip(
        tmp_path_factory.mktemp("long") / "s.mkv", 1500, (160, 96), gop=250, audio="aac",
        options={"preset": "ultrafast"},
    )  # fmt: skip


def one_line(stderr: str) -> str:
    """The error line; fails on tracebacks and on more than one error."""
    assert "Traceback" not in stderr
    assert "internal error" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return errors[0]


FAILURES = [0, 1, 2, 7]


def break_source(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    original = FileSource.__iter__

    def broken(self: FileSource) -> Iterator[Any]:
        for frame in original(self):
            if frame.index == at:
                raise InputError("the source broke")
            yield frame

    monkeypatch.setattr(FileSource, "__iter__", broken)


def break_backend(monkeypatch: pytest.MonkeyPatch, at: int, *, nan: bool = False) -> None:
    def broken(matte_HW: Any, index: int) -> None:
        if index == at and not nan:
            raise BackendError("the network broke")
        matte_HW[:] = np.nan if index == at else 1

    monkeypatch.setitem(null.FORMULAS, "ones", broken)


@pytest.mark.parametrize("temporal", [True, False], ids=["look-ahead", "no look-ahead"])
@pytest.mark.parametrize("part", ["source", "backend"])
@pytest.mark.parametrize("count", FAILURES)
def test_an_error_at_frame_n_leaves_a_part_of_n_frames(
    count: int, part: str, temporal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "s.mp4", 20, audio="aac", audio_s=5.0)
    (break_source if part == "source" else break_backend)(monkeypatch, count)
    with pytest.raises(VidmatteError, match="broke") as caught:
        run_file(source, tmp_path / "o.mp4", temporal=temporal)
    if count == 0:
        assert leftovers(tmp_path, "s.mp4") == []
        return
    assert leftovers(tmp_path, "s.mp4") == ["o.part.mp4"]
    assert times_of(tmp_path / "o.part.mp4") == times_of(source)[:count]
    assert any(str(tmp_path / "o.part.mp4") in note for note in caught.value.__notes__)


def test_the_sound_of_a_part_ends_with_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "s.mp4", 50, audio="aac", audio_s=10.0)
    break_source(monkeypatch, 40)
    with pytest.raises(InputError):
        run_file(source, tmp_path / "o.mp4")
    sound = packets_of(tmp_path / "o.part.mp4", "audio")
    assert 1.4 < sound[-1][0] < 1.7


def test_nan_from_the_network_names_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "s.mp4", 10)
    break_backend(monkeypatch, 4, nan=True)
    with pytest.raises(BackendError, match="frame 4"):
        run_file(source, tmp_path / "o.mp4")
    assert len(decode(tmp_path / "o.part.mp4")) == 4


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("part", ["source", "backend"])
@pytest.mark.parametrize("count", FAILURES)
def test_an_error_at_frame_n_gives_n_mattes_with_any_batch(
    count: int, part: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_null = null.open_backend

    def open_batched(request: Any) -> Any:
        backend = open_null(request)
        backend.batch = batch
        backend._matte_NHW = np.repeat(backend._matte_NHW, batch, axis=0)
        return backend

    monkeypatch.setattr(null, "open_backend", open_batched)
    (break_source if part == "source" else break_nan)(monkeypatch, count)
    source = make_clip(tmp_path / "s.mp4", 20)
    with pytest.raises(VidmatteError):
        run_file(source, tmp_path / "o.mkv")
    kept = tmp_path / "o.part.mkv"
    assert (len(decode(kept)) if kept.exists() else 0) == count


def break_nan(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    break_backend(monkeypatch, at, nan=True)


def test_an_error_in_the_command_names_the_part_and_exits_1(tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mp4", 20)
    script = (
        "import sys; from vidmatte.backends import null; from vidmatte.errors import BackendError\n"
        "def broken(matte, index):\n"
        "    matte[:] = 1\n"
        "    if index == 7: raise BackendError('the network broke')\n"
        "null.FORMULAS['ones'] = broken\n"
        "from vidmatte.cli import main\nmain()"
    )
    command = [sys.executable, "-c", script, "run", str(source), str(tmp_path / "o.mp4"),
               "--backend", "null"]  # fmt: skip
    done = subprocess.run(command, env=run_cli.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert one_line(done.stderr) == "error: the network broke"
    assert "o.part.mp4" in done.stderr
    assert len(decode(tmp_path / "o.part.mp4")) == 7


def slow_run(
    cli: Cli, source: Path | str, output: Path | str, *more: object, **streams: Any
) -> Any:
    """Start a run that takes long enough to be stopped: blur on a slow encoder preset."""
    return cli.start(
        "run", source, output, "--backend", "null:disc", "--background", "green",
        "--preset", "veryslow", *more, **streams,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_leaves_a_part_that_plays(
    number: signal.Signals, code: int, long_clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    part = tmp_path / "o.part.mp4"
    with killed_at_exit(slow_run(run_cli, long_clip, tmp_path / "o.mp4")) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 20_000)
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
        took = time.monotonic() - began
    assert process.returncode == code
    assert took < STOP_S + SLACK_S
    assert "Traceback" not in err
    assert str(part) in err
    assert leftovers(tmp_path) == ["o.part.mp4"]
    times = times_of(part)
    assert times == times_of(long_clip)[: len(times)]
    assert len(times) > RATE
    sound = packets_of(part, "audio")
    assert abs(float(sound[-1][0] - times[-1])) < 0.3


def test_a_signal_while_the_model_loads_ends_the_run(
    long_clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    with killed_at_exit(run_cli.start("run", long_clip, tmp_path / "o.mp4")) as process:
        wait_until(lambda: (tmp_path / "o.part.mp4").exists())
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < STOP_S + SLACK_S
    assert "Traceback" not in err
    assert not (tmp_path / "o.mp4").exists()


def test_a_signal_while_nobody_reads_a_fifo_ends_the_run(
    long_clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    fifo = tmp_path / "o.mkv"
    os.mkfifo(fifo)
    with killed_at_exit(run_cli.start("run", long_clip, fifo, "--backend", "null")) as process:
        time.sleep(1.0)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < STOP_S + SLACK_S


def test_a_signal_while_the_input_stalls_keeps_what_came(tmp_path: Path, run_cli: Cli) -> None:
    clip = make_clip(tmp_path / "s.ts", 100, (160, 96)).read_bytes()
    process = run_cli.start(
        "run", "-", tmp_path / "o.mp4", "--backend", "null", stdin=subprocess.PIPE, text=False
    )
    with killed_at_exit(process):
        process.stdin.write(clip[: len(clip) * 3 // 4])
        process.stdin.flush()
        wait_until(lambda: (tmp_path / "o.part.mp4").exists())
        time.sleep(0.7)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        took = time.monotonic() - began
    assert process.returncode == 143
    assert took < 5 + SLACK_S  # the decoder hangs in C code
    assert len(decode(tmp_path / "o.part.mp4")) > 10


def test_a_second_signal_ends_at_once(tmp_path: Path, run_cli: Cli) -> None:
    clip = make_clip(tmp_path / "s.ts", 50, (160, 96)).read_bytes()
    process = run_cli.start(
        "run", "-", tmp_path / "o.mp4", "--backend", "null", stdin=subprocess.PIPE, text=False
    )
    with killed_at_exit(process):
        process.stdin.write(clip[: len(clip) // 2])
        process.stdin.flush()
        wait_until(lambda: (tmp_path / "o.part.mp4").exists())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None  # the input still stalls
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
        assert time.monotonic() - began < 1.0
    assert process.returncode == 130


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts"])
def test_kill_9_leaves_a_part_that_plays_nearly_to_the_end(
    suffix: str, long_clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Pictures are fed slowly, so that what was written is known."""
    part = tmp_path / f"o.part{suffix}"
    options = ["-b", "green"] if suffix in (".mov", ".webm") else []
    script = (
        "import sys, time\nfrom vidmatte.sources.file import FileSource\n"
        "original = FileSource.__iter__\n"
        "def slowly(self):\n"
        "    for frame in original(self):\n"
        "        if frame.index == 150:\n"
        "            time.sleep(1.0); sys.stdout.write('150\\n'); sys.stdout.flush()\n"
        "            time.sleep(60)\n"
        "        yield frame\n"
        "FileSource.__iter__ = slowly\n"
        "from vidmatte.cli import main\nmain()"
    )
    command = [sys.executable, "-c", script, "run", str(long_clip), str(tmp_path / f"o{suffix}"),
               "--backend", "null", *options]  # fmt: skip
    process = subprocess.Popen(
        command, env=run_cli.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with killed_at_exit(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "150\n"
        process.kill()
        process.wait()
    times = times_of(part)
    assert times[-1] - times[0] >= 150 / RATE - 2.0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".gif"])
def test_a_full_disk_is_one_line_and_leaves_no_final_name(
    suffix: str, long_clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    done = run_cli(
        "run", long_clip, tmp_path / f"o{suffix}", "--backend", "null:disc", "--end", "8",
        shell_prefix="trap '' XFSZ; ulimit -f 60;",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the file would be larger than allowed" in one_line(done.stderr)
    assert not (tmp_path / f"o{suffix}").exists()
    for name in leftovers(tmp_path):
        assert first_picture(tmp_path / name)  # its last one may be cut
        assert name in done.stderr


def first_picture(path: Path) -> av.VideoFrame | None:
    with av.open(str(path)) as container:
        return next(container.decode(video=0), None)


def piped(cli: Cli, source: Path, *more: object, timeout: float = 30.0) -> Any:
    with source.open("rb") as stream:
        cat = subprocess.Popen(["cat"], stdin=stream, stdout=subprocess.PIPE)
        process = cli.start("run", "-", *more, stdin=cat.stdout, text=False)
        assert cat.stdout is not None
        cat.stdout.close()
        with killed_at_exit(process):
            out, err = process.communicate(timeout=timeout)
        cat.wait()
    return subprocess.CompletedProcess([], process.returncode, out, err.decode())


@pytest.mark.parametrize("audio", ["aac", "mp2", None])
def test_a_pipe_in_and_a_pipe_out(audio: str | None, tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.ts", 50, audio=audio)
    done = piped(run_cli, source, "-", "--backend", "null")
    assert done.returncode == 0, done.stderr
    (tmp_path / "o.mkv").write_bytes(done.stdout)
    assert len(decode(tmp_path / "o.mkv")) == 50
    if audio is not None:
        before, after = packets_of(source, "audio"), packets_of(tmp_path / "o.mkv", "audio")
        assert len(before) == len(after)


def test_a_pipe_in_and_a_file_out_keeps_the_sound(tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mkv", 50, audio="aac", metadata={"title": "T"})
    done = piped(run_cli, source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    before, after = packets_of(source, "audio"), packets_of(tmp_path / "o.mp4", "audio")
    assert [data for _, data in before] == [data for _, data in after]
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.metadata["title"] == "T"


def test_an_mp4_with_its_index_at_the_end_cannot_be_piped(tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mp4", 60, (320, 240), audio="aac", options={"crf": "5"})
    assert source.stat().st_size > 500_000
    done = piped(run_cli, source, tmp_path / "o.mp4", "--backend", "null")
    assert done.returncode == 1
    assert "its index is at the end" in one_line(done.stderr)
    assert "hint: " in done.stderr
    assert leftovers(tmp_path, "s.mp4") == []


def test_a_reader_that_leaves_ends_the_run(long_clip: Path, run_cli: Cli) -> None:
    process = run_cli.start("run", long_clip, "-", "--backend", "null", text=False)
    with killed_at_exit(process):
        assert process.stdout.read(1000)
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "the reader has gone" in one_line(err.decode())


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.ts", "o.mov"])
def test_a_fifo_gets_a_file_that_plays(name: str, tmp_path: Path, run_cli: Cli) -> None:
    source = make_clip(tmp_path / "s.mp4", 30, audio="aac")
    fifo = tmp_path / name
    os.mkfifo(fifo)
    copy = tmp_path / f"copy-{name}"
    with copy.open("wb") as target:
        reader = subprocess.Popen(["cat", str(fifo)], stdout=target)
        done = run_cli("run", source, fifo, "--backend", "null", "-b", "green")
        reader.wait(timeout=10)
    assert done.returncode == 0, done.stderr
    assert len(decode(copy)) == 30
    assert len(packets_of(copy, "audio")) == len(packets_of(source, "audio"))


def test_matting_closes_its_backend_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(null.NullBackend, "close", lambda self: closed.append(True))
    break_source(monkeypatch, 3)
    source = make_clip(tmp_path / "s.mp4", 10)
    with pytest.raises(InputError):
        run_file(source, tmp_path / "o.mkv")
    assert closed
