"""The whole command: `vidmatte webcam` and `vidmatte control` in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cli_here import CliHere
from conftest import (
    REPOSITORY,
    Cli,
    decode,
    leftovers,
    make_clip,
    plane_arrays,
    times_of,
    wait_until,
)

from vidmatte.live.control import send_command

SMALL = ("--camera", "synthetic", "--size", "192x108", "--backend", "null")
HERE = Path(__file__).parent
ENDS_S = 20.0
CONTROL = pytest.mark.skipif(sys.platform == "win32", reason="no sockets with names")


def errors_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == ""
    return done.stderr


def test_a_recording_plays_and_the_json_tells(run_cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "call.mp4"
    done = run_cli("webcam", *SMALL, "--record", target, "--for", 0.6, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    counts = told["status"]["counts"]
    assert counts["captured"] == counts["shown"] + counts["dropped"] + counts["in_flight"]
    assert counts["shown"] > 0
    assert told["recorded"] == str(target)
    pictures = decode(target)
    assert (pictures[0].width, pictures[0].height) == (192, 108)
    times = times_of(target)
    assert times == sorted(set(times))
    assert leftovers(tmp_path, target.name) == []


def test_a_network_that_cannot_be_leaves_no_recording(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("webcam", "--camera", "synthetic", "--size", "192x108", "--model", "nosuch",
                   "--record", tmp_path / "call.mp4")  # fmt: skip
    assert done.returncode == 1
    assert "there is no model 'nosuch'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_as_camera_over_a_picture(run_cli: Cli, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.mp4", 10, (128, 72), rate=30)
    target = tmp_path / "out.mkv"
    done = run_cli("webcam", "--camera", clip, "--backend", "null:disc", "--record", target,
                   "--for", 0.5, "--background", "white")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pictures in" in done.stderr
    assert f"recorded in {target}" in done.stderr
    corner = [int(np.median(plane_arrays(p)[0][:8, :8])) for p in decode(target)]
    assert min(corner) >= 233  # every picture, the first too: the room was never there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to show the result on", "--virtual-cam, --preview or --record"]),
        (["--record", "{tmp}/x.txt"], ["cannot tell the output's format"]),
        (["--record", "-"], ["a recording is a video file"]),
        (["--record", "{tmp}/a.mp4", "-b", "absent.png"], ["absent.png: no such file"]),
        (["--record", "{tmp}/a.mp4", "-b", "nocolour"], ["neither a file that exists"]),
        (["--record", "{tmp}/there.mp4"], ["exists already", "--overwrite"]),
        (["--record", "{tmp}/new.mp4", "-b", "{tmp}"], ["would join the backgrounds"]),
        (["--record", "{tmp}/there.mp4", "--overwrite", "-b", "{tmp}/there.mp4"], ["is also"]),
        (["--record", "{tmp}/a.mp4", "--size", "10x10"], ["between 64 and 8192"]),
        (["--record", "{tmp}/a.mp4", "--camera", "http://x/y"], ["--allow-network"]),
        (["--record", "{tmp}/a.mp4", "--camera", "{tmp}/absent.mp4"], ["absent.mp4"]),
        (["--record", "{tmp}/a.mp4", "--control", "a/b"], ["no name for a session"]),
    ],
    ids=range(12),
)
def test_wrong_arguments_are_told(
    arguments: list[str], words: list[str], run_cli: Cli, tmp_path: Path
) -> None:
    make_clip(tmp_path / "there.mp4", 2)
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    done = run_cli("webcam", "--backend", "null", *filled)
    assert done.returncode in (1, 2)
    errors = errors_of(done)
    assert errors.startswith("error: ")
    for word in words:
        assert word in errors
    assert leftovers(tmp_path, "there.mp4") == []


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_whole_recording(
    number: signal.Signals, run_cli: Cli, tmp_path: Path
) -> None:
    target = tmp_path / "a.mp4"
    process = run_cli.start("webcam", *SMALL, "--record", target)
    part = tmp_path / "a.part.mp4"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, ENDS_S)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=ENDS_S)
    assert process.returncode == 128 + number
    assert time.monotonic() - began < 5
    assert f"recorded in {target}" in errors
    assert len(decode(target)) > 0
    assert leftovers(tmp_path, target.name) == []


@pytest.mark.fault
def test_a_full_disk_ends_the_recording_and_is_told(run_cli: Cli, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "noise.mp4", 20, (320, 180), rate=30)
    done = run_cli("webcam", "--camera", clip, "--backend", "null", "--record",
                   tmp_path / "a.mkv", "--for", 1.5, shell_prefix="ulimit -f 100;")  # fmt: skip
    assert done.returncode == 1
    part = tmp_path / "a.part.mkv"
    assert "the recording ends: " in done.stderr
    assert "error: " in done.stderr
    assert f"stopped: what was finished is in {part}" in done.stderr
    assert len(decode(part)) > 0


@pytest.mark.fault
def test_kill_9_leaves_a_part_that_plays(run_cli: Cli, tmp_path: Path) -> None:
    process = run_cli.start("webcam", *SMALL, "--record", tmp_path / "a.mp4")
    part = tmp_path / "a.part.mp4"

    def plays() -> bool:
        with contextlib.suppress(av.FFmpegError, OSError, IndexError):
            return len(decode(part)) > 0
        return False

    try:
        wait_until(plays, ENDS_S)
    finally:
        process.kill()
        process.communicate()
    assert len(decode(part)) > 0
    again = run_cli("webcam", *SMALL, "--record", tmp_path / "a.mp4", "--for", 0.2)
    assert again.returncode == 0  # the socket of the dead one is no hindrance
    assert "an earlier unfinished part is kept as a.stale1.mp4" in again.stderr


@pytest.fixture
def session(run_cli: Cli, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A session that records to a.mkv over red, and its process."""
    process = run_cli.start(
        "webcam", *SMALL, "--record", tmp_path / "a.mkv", "-b", "red", "-b", "none"
    )
    socket = Path(run_cli.env["XDG_RUNTIME_DIR"]) / "vidmatte" / "webcam.sock"
    wait_until(socket.is_socket, ENDS_S)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@CONTROL
def test_control_from_another_terminal(
    session: subprocess.Popen[str], run_cli: Cli, tmp_path: Path
) -> None:
    make_clip(tmp_path / "beach.mp4", 2, (64, 48))

    def ask(*words: str, code: int = 0) -> str:
        done = run_cli("control", *words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        output = done.stdout if code == 0 else done.stderr
        assert len(output.splitlines()) <= 2
        return output

    def state() -> dict[str, Any]:
        path = Path(run_cli.env["XDG_RUNTIME_DIR"]) / "vidmatte" / "webcam.sock"
        told: dict[str, Any] = send_command(path, "status")["status"]
        return told

    wait_until(lambda: state()["state"] == "matte", ENDS_S)
    assert "beach.mp4" in ask("background", "beach.mp4")  # by its name here, not there
    wait_until(lambda: state()["background"] == "beach.mp4", ENDS_S)
    assert "shown by remote" in ask("background", "none", code=1)
    assert "no such file" in ask("background", "./absent.png", code=1)
    ask("background", "next")
    wait_until(lambda: state()["background"] == "red", ENDS_S)
    ask("background", "next")  # passes over `none`
    assert ask("mirror", "on") == "mirror on\n"
    assert ask("freeze") == "frozen\n"
    wait_until(lambda: state()["state"] == "frozen", ENDS_S)
    assert "frozen" in ask("status")
    assert json.loads(ask("status", "--json"))["state"] == "frozen"
    ask("resume")
    wait_until(lambda: state()["state"] == "matte", ENDS_S)
    assert state()["background"] == "red"
    assert state()["mirror"] is True
    second = run_cli("webcam", *SMALL, "--record", tmp_path / "b.mkv")
    assert second.returncode == 1
    assert "already running" in second.stderr
    assert ask("quit") == "the session ends\n"
    session.wait(ENDS_S)
    assert session.returncode == 0
    assert "no session is running" in ask("status", code=1)
    assert len(decode(tmp_path / "a.mkv")) > 0


class Terminal:
    """A terminal with a command in it, and what the command has printed."""

    def __init__(self, cli: Cli, *args: object) -> None:
        import fcntl
        import termios

        self._master, self._slave = os.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
        self._termios = termios
        self._before = termios.tcgetattr(self._slave)
        self.text = ""
        self.process = cli.start(
            *args,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self) -> str:
        while select.select([self._master], [], [], 0)[0]:
            self.text += os.read(self._master, 1 << 16).decode(errors="replace")
        return self.text

    def wait_for(self, words: str) -> None:
        try:
            wait_until(lambda: words in self.read(), ENDS_S)
        except AssertionError:
            raise AssertionError(f"no '{words}' in: {self.text}") from None

    def takes_single_keys(self) -> bool:
        return self._termios.tcgetattr(self._slave) != self._before

    def ended(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        wait_until(lambda: self.read() is not None and self.process.poll() is not None, ENDS_S)
        assert not self.takes_single_keys(), "the terminal is not restored"
        return int(self.process.returncode)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(run_cli: Cli, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(
        run_cli, "webcam", *SMALL, "--record", tmp_path / "a.mkv", "-b", "red", "-b", "blue"
    )
    yield opened
    opened.close()


def test_keys_and_status_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("  matte  red")
    assert terminal.takes_single_keys()
    terminal.press("b")
    terminal.wait_for("matte  blue")
    terminal.press("m")
    terminal.wait_for("mirror on")
    terminal.press("\x1b[A")  # an arrow is no key
    terminal.press("?")
    terminal.wait_for("keys: b next")
    terminal.press(" ")
    terminal.wait_for("show the room?")
    assert "ROOM SHOWN" not in terminal.text
    time.sleep(0.3)  # closer presses are a key held down
    terminal.press(" ")
    terminal.wait_for("ROOM SHOWN  blue")
    terminal.press(" ")
    terminal.wait_for("removed again")
    terminal.press("f")
    terminal.wait_for("frozen  blue")
    terminal.press("q")
    assert terminal.ended() == 0
    assert "recorded in" in terminal.text
    assert len(decode(tmp_path / "a.mkv")) > 0


@pytest.mark.fault
def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    wait_until(terminal.takes_single_keys, ENDS_S)
    terminal.press("\x03")
    assert terminal.ended() == 130


@pytest.mark.fault
def test_a_camera_that_never_comes_ends_it_and_gives_the_terminal_back(
    run_cli: Cli, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "camera")
    terminal = Terminal(run_cli, "webcam", "--camera", tmp_path / "camera", "--backend", "null",
                        "--record", tmp_path / "a.mkv", "--reconnect-timeout", 1)  # fmt: skip
    try:
        wait_until(terminal.takes_single_keys, ENDS_S)
        assert terminal.ended() == 1
        assert "error: " in terminal.read()
        assert leftovers(tmp_path, "camera") == []
    finally:
        terminal.close()


@pytest.mark.fault
def test_a_second_signal_gives_the_terminal_back(tmp_path: Path, run_cli: Cli) -> None:
    """The handler ends the process at once where something hangs after the first signal."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import time\n"
        "from vidmatte.cli.console import watch_signals\n"
        "from vidmatte.cli.keys import TerminalKeys\n"
        "from vidmatte.pipeline import Stop\n"
        "stop, keys = Stop(), TerminalKeys()\n"
        "watch_signals(stop, before_exit=keys.restore)\n"
        "with keys:\n"
        "    while True: time.sleep(0.05); print(stop.reason, flush=True)\n"
    )

    class Script(Cli):
        def start(self, *args: object, **streams: Any) -> subprocess.Popen[str]:  # type: ignore[override]
            return subprocess.Popen([sys.executable, *map(str, args)], env=self.env, **streams)

    own = Script(tmp_path)
    terminal = Terminal(own, script)
    try:
        wait_until(terminal.takes_single_keys, ENDS_S)
        terminal.process.send_signal(signal.SIGTERM)
        terminal.wait_for("15")
        assert terminal.takes_single_keys()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 143
    finally:
        terminal.close()


IN_MEMORY = """
import json, sys
import memory_backend
from vidmatte.cli import program
backend = memory_backend.register()
backend.keep, backend.reader_count = 10_000, 1
code = program(sys.argv[1:], standalone_mode=False)
camera, = backend.opened
width, height = camera.width, camera.height
corners = [int(p[: width * height].reshape(height, width)[:8, :8].max()) for p in camera.pictures]
told = {"code": code, "closed": camera.closed, "size": [width, height], "corners": corners}
print(json.dumps(told))
"""


def test_the_virtual_camera_gets_every_picture_and_never_the_room(
    run_cli: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("pyvirtualcam")
    clip = make_clip(tmp_path / "c.mp4", 10, (128, 72), rate=30)
    arguments = ["webcam", "--camera", clip, "--backend", "null:disc", "--virtual-cam", "-b",
                 "black", "--for", 1, "--record", tmp_path / "a.mkv", "--quiet"]  # fmt: skip
    env = run_cli.env | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_MEMORY, *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (told["code"], told["closed"], told["size"]) == (0, True, [128, 72])
    assert len(told["corners"]) >= 10
    assert max(told["corners"]) <= 17  # black; the clip is brighter in every corner
    assert min(plane_arrays(p)[0][:8, :8].max() for p in decode(clip)) > 30
    assert len(decode(tmp_path / "a.mkv")) > 5


def test_no_virtual_camera_tells_what_to_do(run_cli: Cli) -> None:
    if sys.platform == "linux" and list(Path("/dev").glob("video*")):
        pytest.skip("there are video devices here")
    done = run_cli("webcam", *SMALL, "--virtual-cam", "--reconnect-timeout", 1)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.fault
def test_a_preview_that_cannot_be_is_told(run_cli: Cli, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("of X11 and Wayland")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        run_cli.env.pop(name, None)
    done = run_cli("webcam", *SMALL, "--preview", "--record", tmp_path / "a.mkv", "--for", 0.2)
    assert done.returncode == 0
    assert "no preview: no window can be opened: there is no display" in done.stderr
    alone = run_cli("webcam", *SMALL, "--preview")
    assert alone.returncode == 1
    assert "there is no display" in alone.stderr
    assert "hint: " in alone.stderr


def test_a_wrong_model_is_told_before_a_camera_is_waited_for(
    tmp_path: Path, cli_here: CliHere
) -> None:
    target = tmp_path / "x.mp4"
    done = cli_here("webcam", "--camera", "/dev/video77", "--model", "nope", "--record", target)
    assert done.code == 1
    assert "nope" in done.refusal
    assert leftovers(tmp_path) == []
