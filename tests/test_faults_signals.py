"""Signals at every stage of every command: exit code, time, and what is left."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, leftovers, make_clip, wait_until
from faulty import at, hang, killed_at_exit, no_traceback, pictures_in, run_broken, start_broken

pytestmark = pytest.mark.fault

NULL = ("--backend", "null")
STOP_S, AT_ONCE_S = 2.0, 1.0  # promised from the signal to the end of the process
SLACK_S = 2.0  # other tests on the same two cores
INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "s.mkv", 200, options={"crf": "1"})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("short") / "s.mp4", 20)


SIGNAL_AT_IMPORT = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Watch())
"""
STARTS = [
    ("vidmatte.cli", INT), ("click", TERM), ("vidmatte.cli.run", INT), ("numpy", TERM),
    ("vidmatte.runner", INT), ("av.video.reformatter", TERM), ("openvino", INT),
    ("openvino", TERM),
]  # fmt: skip


@pytest.mark.parametrize(("module", "number"), STARTS)
def test_a_signal_at_the_start_ends_without_a_word(
    module: str, number: signal.Signals, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    patch = SIGNAL_AT_IMPORT.format(module=module, number=int(number))
    began = time.monotonic()
    done = run_broken(run_cli, patch, "run", short, tmp_path / "o.mp4", "--device", "cpu")
    assert done.returncode == 128 + number, done.stderr
    assert time.monotonic() - began < STOP_S + SLACK_S
    assert done.stderr.strip() == ""
    assert leftovers(tmp_path) == []


SLOW = """
import time
from vidmatte.sinks.file import FileSink
from vidmatte.sinks.images import SequenceSink
def slowed(write):
    def slow(self, picture):
        time.sleep(0.03)
        write(self, picture)
    return slow
FileSink.write, SequenceSink.write = slowed(FileSink.write), slowed(SequenceSink.write)
"""


def send(process: Any, number: signal.Signals, limit_s: float) -> str:
    """Send a signal and return what was printed; fail when the process takes longer to end."""
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < limit_s + SLACK_S
    assert process.returncode == 128 + number, errors
    assert no_traceback(errors)
    return str(errors)


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_keeps_the_pictures_of_a_sequence(
    number: signal.Signals, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    folder = tmp_path / "o.part"
    with killed_at_exit(
        start_broken(run_cli, SLOW, "run", clip, tmp_path / "o_%03d.png", *NULL)
    ) as process:
        wait_until(lambda: folder.exists() and len(list(folder.iterdir())) > 10)
        errors = send(process, number, STOP_S)
    assert f"stopped: what was finished is in {folder}" in errors
    assert leftovers(tmp_path) == ["o.part"]
    names = leftovers(folder)
    assert names == [f"o_{n:03d}.png" for n in range(1, len(names) + 1)]
    assert all(pictures_in(folder / name) == 1 for name in names)


@pytest.fixture
def folder(clip: Path, tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mkv", "b.mkv"):
        (videos / name).write_bytes(clip.read_bytes())
    return videos


def test_sigterm_in_a_folder_ends_it_with_the_file(
    folder: Path, tmp_path: Path, run_cli: Cli
) -> None:
    part = tmp_path / "out" / "a.part.mkv"
    with killed_at_exit(
        start_broken(run_cli, SLOW, "run", folder, tmp_path / "out", *NULL)
    ) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 20_000)
        errors = send(process, TERM, STOP_S)
    assert f"stopped: what was finished is in {part}" in errors
    assert "0 of 2 files done" in errors
    assert leftovers(tmp_path / "out") == ["a.part.mkv"]
    assert pictures_in(part) > 0


@pytest.mark.parametrize("target", ["o.mkv", "folder"])
def test_a_second_signal_ends_what_hangs_at_once(
    target: str, folder: Path, tmp_path: Path, run_cli: Cli
) -> None:
    reached = tmp_path / "reached"
    patch = at("encoder", hang(reached), 5)
    source = folder if target == "folder" else folder / "a.mkv"
    with killed_at_exit(
        start_broken(run_cli, patch, "run", source, tmp_path / target, *NULL)
    ) as process:
        wait_until(reached.exists)
        process.send_signal(INT)
        time.sleep(0.3)
        assert process.poll() is None
        assert send(process, INT, AT_ONCE_S) == ""


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_while_the_demo_makes_its_clip_leaves_no_part(
    number: signal.Signals, tmp_path: Path, run_cli: Cli
) -> None:
    pytest.importorskip("skimage")
    part = tmp_path / "source.part.mp4"
    with killed_at_exit(
        run_cli.start("demo", "-o", tmp_path, "--height", 90, "--frames", 9000, *NULL)
    ) as process:
        wait_until(part.exists)
        errors = send(process, number, STOP_S)
    assert errors.splitlines() == [f"making {tmp_path / 'source.mp4'}: 9000 frames"]
    assert leftovers(tmp_path) == ["background.png"]


def test_a_signal_while_the_demo_mattes_names_its_parts(tmp_path: Path, run_cli: Cli) -> None:
    pytest.importorskip("skimage")
    part = tmp_path / "result.part.mp4"
    arguments = ("demo", "-o", tmp_path, "--height", 90, "--frames", 90, *NULL)
    with killed_at_exit(start_broken(run_cli, SLOW, *arguments)) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 5_000, 20)
        errors = send(process, INT, STOP_S)
    for name in ("result.part.mp4", "matte.part.mkv"):
        assert f"stopped: what was finished is in {tmp_path / name}" in errors
        assert pictures_in(tmp_path / name) > 0
    assert leftovers(tmp_path) == [
        "background.png", "matte.part.mkv", "result.part.mp4", "source.mp4"
    ]  # fmt: skip


@pytest.fixture
def slow_server() -> Iterator[int]:
    """A port whose server sends a head, a kilobyte, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                taken.append(connection)
                connection.recv(4096)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n"
                connection.sendall(head + bytes(1 << 19))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in taken:
            connection.close()


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_during_a_download_installs_nothing_and_names_what_came(
    number: signal.Signals, slow_server: int, tmp_path: Path, run_cli: Cli
) -> None:
    address = f"http://127.0.0.1:{slow_server}/u2netp.pth"
    patch = f"""
from dataclasses import replace
from vidmatte.models.table import Download, models
row = models()["u2netp"]
source = Download({address!r}, {hashlib.sha256(b"").hexdigest()!r}, "a test")
models()["u2netp"] = replace(row, download=source)
"""
    run_cli.env["VIDMATTE_MODEL_DIR"] = str(tmp_path)
    part = tmp_path / "u2netp.pth.part"
    with killed_at_exit(start_broken(run_cli, patch, "models", "download", "u2netp")) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 0, 20)
        errors = send(process, number, STOP_S)
    assert errors.splitlines() == [
        f"stopped: what came is in {part}; the same command continues it"
    ]
    assert leftovers(tmp_path) == ["u2netp.pth.part"]


def test_kill_9_leaves_every_picture_of_a_sequence(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    reached = tmp_path / "reached"
    patch = at("decoder", hang(reached), 60)
    folder = tmp_path / "out" / "o.part"
    folder.parent.mkdir()
    with killed_at_exit(
        start_broken(run_cli, patch, "run", clip, folder.parent / "o_%d.png", *NULL)
    ) as process:
        wait_until(lambda: reached.exists() and len(list(folder.iterdir())) >= 59, 20)
        process.kill()
    pictures = list(folder.iterdir())
    assert all(pictures_in(path) == 1 for path in pictures)
    assert leftovers(folder.parent) == ["o.part"]
