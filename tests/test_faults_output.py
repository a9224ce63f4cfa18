"""Outputs whose names are taken, by others, by other runs, or by parts of earlier ones."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli, decode, leftovers, make_clip, run_file, wait_until
from faulty import killed_at_exit, no_traceback, refusal, run_broken, start_broken

from vidmatte.backdrop import Backdrop
from vidmatte.errors import OutputError, UsageError
from vidmatte.outputs import refuse_same_file
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun, MattingChoice
from vidmatte.sinks import part
from vidmatte.sinks.part import PartFile, PartFolder

pytestmark = pytest.mark.fault

NULL = ("--backend", "null")
NO_MODEL = ("--backend", "nosuch")  # what is found before it is found before any model


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("short") / "s.mp4", 5)


# What is there, the output, the exit code, and the error line's end.
TAKEN: dict[str, tuple[str, str, int, str]] = {
    "a folder in the way": ("mkdir o.mp4", "o.mp4", 1, "o.mp4: is a folder"),
    "a folder, to be overwritten": ("mkdir o.mp4", "o.mp4 --overwrite", 1, "o.mp4: is a folder"),
    "a file as a folder": ("touch f", "f/o.mp4", 1, "f/o.mp4: the folder does not exist"),
    "a hard link to the input": ("ln s.mp4 l.mp4", "l.mp4 --overwrite", 2, "is also {dir}/s.mp4"),
    "a link to the input": ("ln -s s.mp4 l.mp4", "l.mp4 --overwrite", 2, "is also {dir}/s.mp4"),
    "the input, spelt otherwise": ("mkdir f", "f/../s.mp4 --overwrite", 2, "is also {dir}/s.mp4"),
    "the background": ("cp s.mp4 b.mp4", "b.mp4 --overwrite -b {dir}/b.mp4", 2,
                       "b.mp4: is also read by this run"),
    "a link to the background": ("ln -s s.mp4 b.mp4; cp s.mp4 c.mp4; ln c.mp4 d.mp4",
                                 "d.mp4 --overwrite -b {dir}/c.mp4", 2, "is also {dir}/c.mp4"),
    "another output": ("mkdir f", "o.mkv --alpha {dir}/f/../o.mkv", 2, "is also {dir}/o.mkv"),
    "another output's part": ("true", "o.mkv --alpha {dir}/o.part.mkv", 2,
                              "is also the part of {dir}/o.mkv"),
    "another sequence's part": ("true", "f_%d.png --alpha {dir}/f_%d.tif", 2,
                                "is also the part of {dir}/f_%d.png"),
    "the background's part folder": ("mkdir f.part; cp s.mp4 f.part",
                                     "f_%d.png -b {dir}/f.part/s.mp4", 2, "holds an input"),
    }  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_a_name_that_is_taken_is_found_before_the_model(
    case: str, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    made, output, code, message = TAKEN[case]
    shutil.copy(short, tmp_path / "s.mp4")
    subprocess.run(["bash", "-ec", made], cwd=tmp_path, check=True)
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    name, *options = output.format(dir=tmp_path).split()
    done = run_cli("run", tmp_path / "s.mp4", f"{tmp_path}/{name}", *options, *NO_MODEL)
    assert refusal(done, code).endswith(message.format(dir=tmp_path))
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_a_folder_in_the_way_of_the_part_is_kept_aside(
    short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    (tmp_path / "o.part.mp4").mkdir()
    (tmp_path / "o.part.mp4" / "precious").write_bytes(b"precious")
    done = run_cli("run", short, tmp_path / "o.mp4", *NULL)
    assert done.returncode == 0, done.stderr
    assert f"note: {tmp_path}/o.mp4: an earlier unfinished part is kept as o.stale1.mp4" in (
        done.stderr.splitlines()
    )
    assert (tmp_path / "o.stale1.mp4" / "precious").read_bytes() == b"precious"
    assert len(decode(tmp_path / "o.mp4")) == 5


@pytest.mark.parametrize("name", ["o.mp4", "o_%d.png"])
def test_a_part_that_is_a_link_is_moved_and_not_followed(
    name: str, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    precious = tmp_path / "precious"
    if "%" in name:
        precious.mkdir()
    else:
        precious.write_bytes(b"precious")
    link = tmp_path / ("o.part" if "%" in name else "o.part.mp4")
    link.symlink_to(precious)
    done = run_cli("run", short, tmp_path / name, *NULL)
    assert done.returncode == 0, done.stderr
    (aside,) = tmp_path.glob("o.stale1*")
    assert aside.is_symlink()
    assert aside.name in done.stderr
    assert not link.exists()
    assert list(precious.iterdir()) == [] if "%" in name else precious.read_bytes() == b"precious"


def test_a_stale_part_folder_is_kept_aside_and_named(
    short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    (tmp_path / "f.part").mkdir()
    (tmp_path / "f.part" / "f_0001.png").write_bytes(b"old")
    done = run_cli("run", short, tmp_path / "f_%04d.png", *NULL)
    assert done.returncode == 0, done.stderr
    assert "an earlier unfinished part is kept as f.stale1" in done.stderr
    assert (tmp_path / "f.stale1" / "f_0001.png").read_bytes() == b"old"
    pictures = leftovers(tmp_path, "f.stale1")
    assert pictures == [f"f_{number:04d}.png" for number in range(1, 6)]


SLOW_SINKS = """
import time
from vidmatte.sinks.file import FileSink
from vidmatte.sinks.images import SequenceSink
def slowed(write):
    def slow(self, picture):
        while not GO.exists():
            time.sleep(0.02)
        write(self, picture)
    return slow
FileSink.write, SequenceSink.write = slowed(FileSink.write), slowed(SequenceSink.write)
"""


@pytest.mark.parametrize("name", ["o.mp4", "f_%d.png"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_second_run_with_the_same_output_is_refused(
    name: str, overwrite: tuple[str, ...], short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    out, go = tmp_path / "out", tmp_path / "go"
    out.mkdir()
    patch = f"from pathlib import Path\nGO = Path({str(go)!r})\n{SLOW_SINKS}"
    arguments = ("run", short, out / name, *NULL, *overwrite)
    with killed_at_exit(start_broken(run_cli, patch, *arguments)) as first:
        wait_until(lambda: bool(leftovers(out)))
        second = run_cli(*arguments)
        go.touch()
        _, errors = first.communicate(timeout=20)
    locked = "f.part" if "%" in name else "o.part.mp4"
    assert refusal(second) == (
        f"error: {out / name}: another run is writing it ({locked} is locked)"
    )
    assert first.returncode == 0, errors
    assert leftovers(out) == ([f"f_{n}.png" for n in range(1, 6)] if "%" in name else ["o.mp4"])


def test_of_runs_that_start_together_one_wins(short: Path, tmp_path: Path, run_cli: Cli) -> None:
    processes = [run_cli.start("run", short, tmp_path / "o.mp4", *NULL) for _ in range(4)]
    codes, errors = [], ""
    for process in processes:
        with killed_at_exit(process):
            _, error = process.communicate(timeout=30)
        codes.append(process.returncode)
        errors += error
    assert sorted(codes) == [0, 1, 1, 1], errors
    assert no_traceback(errors)
    assert errors.count("error: ") == 3
    assert len(decode(tmp_path / "o.mp4")) == 5
    for name in leftovers(tmp_path, "o.mp4"):  # of one that met a finished output at its end
        assert name in errors


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_part_taken_for_a_stale_one_before_it_is_locked_gives_way(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run comes between making the part and locking it."""
    flock, others = fcntl.flock, []

    def make() -> PartFile | PartFolder:
        if kind == "file":
            return PartFile(tmp_path / "o.mp4")
        return PartFolder(tmp_path / "o.part", tmp_path / "o_%d.png")

    def late(descriptor: int, operation: int) -> None:
        if not others:
            others.append(None)
            others[0] = make()
        flock(descriptor, operation)

    monkeypatch.setattr(part.fcntl, "flock", late)
    with pytest.raises(OutputError, match="another run is writing it"):
        make()
    (winner,) = others
    assert winner.kept_aside is not None
    assert winner.path.exists()
    winner.discard()
    assert leftovers(tmp_path) == [winner.kept_aside.name]


def test_what_a_stranger_puts_into_a_part_folder_stays(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "o.part", tmp_path / "o_%d.png")
    (tmp_path / "o.part" / "note.txt").write_bytes(b"hers")
    folder.remove()
    assert (tmp_path / "o.part" / "note.txt").read_bytes() == b"hers"


def test_a_part_folder_is_the_inputs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.part").mkdir()
    picture = tmp_path / "f.part" / "f_1.png"
    picture.touch()
    with pytest.raises(UsageError, match="holds an input"):
        refuse_same_file([str(tmp_path / "f_%d.png")], [str(picture)])
    monkeypatch.chdir(tmp_path / "f.part")
    with pytest.raises(UsageError, match="holds an input"):
        refuse_same_file(["../f_%d.png"], ["f_1.png"])
    refuse_same_file(["../f_%d.png"], ["-"])


def late_run(source: Path, output: Path, stop: Stop) -> threading.Thread:
    """Run on a thread, as a program with a thread of its own for signals would."""
    job = FileRun(str(source), {str(output): "opaque"}, matting=MattingChoice(backend="null"))
    thread = threading.Thread(target=job.run, args=(stop,))
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["o.mp4", "o_%d.png"])
def test_a_stop_while_files_open_leaves_no_late_part(
    name: str, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()

    def hang(self: Backdrop) -> None:
        reached.set()
        go.wait(20)

    monkeypatch.setattr(Backdrop, "check", hang)
    stop = Stop()
    runner = late_run(short, tmp_path / name, stop)
    assert reached.wait(10)
    stop.request(2)
    runner.join(10)
    assert not runner.is_alive()
    go.set()
    wait_until(lambda: all(t.name != "vidmatte-open" for t in threading.enumerate()))
    assert leftovers(tmp_path) == []


def test_a_stop_ends_the_wait_for_the_reader_of_a_fifo(short: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "o.mkv")
    stop = Stop()
    runner = late_run(short, tmp_path / "o.mkv", stop)
    wait_until(lambda: any(t.name == "vidmatte-open" for t in threading.enumerate()))
    stop.request(2)
    runner.join(10)
    assert not runner.is_alive()
    wait_until(lambda: all(t.name != "vidmatte-open" for t in threading.enumerate()))


def test_a_run_that_is_stopped_before_it_begins_opens_nothing(short: Path, tmp_path: Path) -> None:
    stop = Stop()
    stop.request(15)
    result = run_file(short, tmp_path / "o.mp4", stop=stop)
    assert (result.stopped_by, result.frames) == (15, 0)
    assert leftovers(tmp_path) == []


def test_an_output_that_appears_during_the_run_is_left_alone(
    short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    output = tmp_path / "o.mp4"
    patch = f"""
from pathlib import Path
from vidmatte.sinks.file import FileSink
close = FileSink.close
def interfere(self):
    close(self)
    Path({str(output)!r}).write_bytes(b"somebody's")
FileSink.close = interfere
"""
    done = run_broken(run_cli, patch, "run", short, output, *NULL)
    assert refusal(done) == f"error: {output}: exists already; it appeared during the run"
    assert output.read_bytes() == b"somebody's"
    assert leftovers(tmp_path) == ["o.mp4", "o.part.mp4"]
    assert f"stopped: what was finished is in {tmp_path / 'o.part.mp4'}" in done.stderr
    assert len(decode(tmp_path / "o.part.mp4")) == 5


GONE = {
    "file": ("o.mp4", "FileSink", "o.part.mp4"),
    "sequence": ("o_%d.png", "SequenceSink", "o.part"),
}


@pytest.mark.parametrize("method", ["write", "close"])
@pytest.mark.parametrize("kind", GONE)
def test_a_part_that_is_taken_away_is_named_and_nothing_else_takes_its_place(
    kind: str, method: str, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Somebody moves the part during the run, and a stranger's takes its name."""
    name, sink, part_name = GONE[kind]
    patch = f"""
from pathlib import Path
from vidmatte.sinks.file import FileSink
from vidmatte.sinks.images import SequenceSink
part = Path({str(tmp_path / part_name)!r})
def interfere(method):
    def first(self, *arguments):
        if not part.with_name("moved").exists():
            part.rename(part.with_name("moved"))
            if {kind == "file"}:
                part.write_bytes(b"a stranger's")
        return method(self, *arguments)
    return first
{sink}.{method} = interfere({sink}.{method})
"""
    done = run_broken(run_cli, patch, "run", short, tmp_path / name, "-b", "green", *NULL)
    message = f"its part {part_name} was moved or removed during the run"
    assert refusal(done) == f"error: {tmp_path / name}: {message}"
    assert leftovers(tmp_path) == (["moved", part_name] if kind == "file" else ["moved"])
    if kind == "file":
        assert (tmp_path / part_name).read_bytes() == b"a stranger's"
        assert len(decode(tmp_path / "moved")) == 5
    assert "stopped" not in done.stderr


def test_a_keyboard_interrupt_while_files_open_leaves_no_late_part(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without signal handlers of its own is interrupted where it waits."""
    go = threading.Event()
    monkeypatch.setattr(Backdrop, "check", lambda self: go.wait(20))

    def interrupt(self: Stop, until: Callable[[], bool], timeout_s: float) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stop, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_file(short, tmp_path / "o.mp4")
    go.set()
    wait_until(lambda: all(t.name != "vidmatte-open" for t in threading.enumerate()))
    assert leftovers(tmp_path) == []
