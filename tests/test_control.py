"""The control socket: what it can do, what it never does, and who is turned away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import REPOSITORY, wait_until

from vidmatte.errors import InputError, UsageError
from vidmatte.live import control
from vidmatte.live.contracts import LiveStatus
from vidmatte.live.control import (
    MAX_CLIENTS,
    MAX_LINE,
    Commands,
    ControlError,
    ControlServer,
    send_command,
    socket_path,
)
from vidmatte.pipeline import Crew

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets with names")
NOBODY = 65534


class Session:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def show(self, mode: str) -> None:
        self.asked.append(mode)

    def mirror(self, on: bool) -> None:
        self.asked.append(("mirror", on))

    def status(self) -> LiveStatus:
        return LiveStatus(state="matte", in_fps=29.97)

    def end(self) -> None:
        self.asked.append("end")

    def next(self, *, with_none: bool = True) -> None:
        self.asked.append(("next", with_none))

    def choose(self, text: str) -> None:
        if "absent" in text:
            raise InputError(f"{text}: no such file", hint="check the path")
        if "bug" in text:
            raise RuntimeError("a bug")
        self.asked.append(("choose", text))


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vm"))  # a socket's name is short
    yield path / "vidmatte"
    shutil.rmtree(path)


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def path(folder: Path, session: Session) -> Iterator[Path]:
    """Where a server listens for the session's sake."""
    crew, name = Crew(), folder / "a.sock"
    server = ControlServer(name)
    server.start(Commands(session, session), crew)
    yield name
    server.close()
    server.close()
    assert crew.join() == []
    crew.check()
    assert not name.exists()


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(path))
    return connection


def raw(path: Path, data: bytes) -> bytes:
    with connected(path) as connection:
        connection.sendall(data)
        return connection.recv(MAX_LINE)


@pytest.mark.parametrize(
    ("command", "value", "asked"),
    [
        ("background", "/a/beach.jpg", ("choose", "/a/beach.jpg")),
        ("background", "blur", ("choose", "blur")),
        ("background", "next", ("next", False)),
        ("freeze", None, "frozen"),
        ("resume", None, "matte"),
        ("mirror", "on", ("mirror", True)),
        ("mirror", "off", ("mirror", False)),
    ],
)
def test_commands_reach_the_session(
    path: Path, session: Session, command: str, value: str | None, asked: object
) -> None:
    answer = send_command(path, command, value)
    assert session.asked == [asked]
    assert "\n" not in answer["text"]


def test_status_and_quit(path: Path, session: Session) -> None:
    status = send_command(path, "status")["status"]
    assert (status["state"], status["in_fps"]) == ("matte", 29.97)
    assert session.asked == []
    send_command(path, "quit")
    assert session.asked == ["end"]


def test_a_refusal_keeps_its_hint(path: Path, session: Session) -> None:
    with pytest.raises(ControlError, match="no such file") as caught:
        send_command(path, "background", "/absent.png")
    assert caught.value.hint == "check the path"
    assert session.asked == []


@pytest.mark.fault
@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("background", "none"),
        ("background", None),
        ("pass-through", None),
        ("show", "pass-through"),
        ("mirror", "up"),
        ("mirror", None),
        ("__class__", None),
        ("_show", "pass-through"),
        ("", None),
    ],
)
def test_the_room_is_never_shown_by_remote(
    path: Path, session: Session, command: str, value: str | None
) -> None:
    with pytest.raises(ControlError):
        send_command(path, command, value)
    assert session.asked == []


@pytest.mark.fault
@pytest.mark.parametrize(
    "data",
    [b"\n", b"{}\n", b"[]\n", b"null\n", b"nonsense\n", b'"freeze"\n', b"\xff\xfe\n",
     b'{"command": 1}\n', b'{"command": ["freeze"]}\n', b'{"command": "mirror", "value": {}}\n',
     b"[" * 50_000 + b"\n", b'{"command": ' + b"9" * 10_000 + b"}\n"],
    ids=range(12),
)  # fmt: skip
def test_nonsense_is_answered_and_survived(path: Path, session: Session, data: bytes) -> None:
    assert json.loads(raw(path, data)) == {
        "ok": False, "error": "the request is not understood", "hint": None,
    }  # fmt: skip
    assert session.asked == []
    assert send_command(path, "freeze")["ok"]


@pytest.mark.fault
def test_a_huge_line_is_cut_off(path: Path) -> None:
    with connected(path) as connection:
        answer = b""
        with suppress(OSError):  # it may hang up first
            connection.sendall(b"x" * (20 * MAX_LINE))
        with suppress(OSError):
            answer = connection.recv(MAX_LINE)
    assert b"too long" in answer or answer == b""
    assert send_command(path, "freeze")["ok"]


@pytest.mark.fault
def test_a_bug_in_a_command_is_survived(path: Path) -> None:
    with pytest.raises(ControlError, match="internal error"):
        send_command(path, "background", "/bug")
    assert send_command(path, "freeze")["ok"]


@pytest.mark.fault
def test_a_line_in_pieces_is_put_together(path: Path, session: Session) -> None:
    with connected(path) as connection:
        for byte in b'{"command": "freeze"}\n':
            connection.sendall(bytes([byte]))
        assert json.loads(connection.recv(1000))["ok"]
    assert session.asked == ["frozen"]


@pytest.mark.fault
def test_clients_who_say_nothing_are_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.05)
    silent = [connected(path) for _ in range(MAX_CLIENTS)]
    for connection in silent:
        assert connection.recv(1) == b""
        connection.close()
    monkeypatch.setattr(control, "PATIENCE_S", 10.0)
    assert send_command(path, "freeze")["ok"]


@pytest.mark.fault
def test_one_client_too_many_is_turned_away(path: Path) -> None:
    silent = [connected(path) for _ in range(MAX_CLIENTS)]
    with pytest.raises(ControlError):
        send_command(path, "freeze")
    for connection in silent:
        connection.close()

    def works() -> bool:
        try:
            return bool(send_command(path, "freeze")["ok"])
        except ControlError:
            return False

    wait_until(works)


@pytest.mark.fault
def test_clients_who_leave_are_survived(path: Path) -> None:
    for data in (b"", b'{"command"', b'{"command": "status"}\n'):
        with connected(path) as connection:
            connection.sendall(data)
    assert send_command(path, "freeze")["ok"]


def test_only_this_user_may_enter(path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.fault
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="becoming another user needs root"
)
def test_another_user_is_refused(path: Path, session: Session) -> None:
    code = (
        "import os, socket, sys\n"
        f"os.setgid({NOBODY}); os.setgroups([]); os.setuid({NOBODY})\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "try:\n"
        '    s.connect(sys.argv[1]); s.sendall(b\'{"command": "freeze"}\\n\')\n'
        "    print(repr(s.recv(1000)))\n"
        "except OSError as e: print(type(e).__name__)"
    )

    def tries() -> str:
        # By a relative name: the folders above need not be open to that user.
        done = subprocess.run(
            [sys.executable, "-c", code, path.name], cwd=path.parent,
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert tries() == "PermissionError"  # by the folder
    path.parent.chmod(0o711)
    path.chmod(0o666)
    assert tries() in ("b''", "ConnectionResetError", "BrokenPipeError")  # by the credentials
    assert session.asked == []
    assert send_command(path, "freeze")["ok"]


def test_a_second_session_is_told(path: Path) -> None:
    with pytest.raises(ControlError, match="already running"):
        ControlServer(path)
    assert send_command(path, "freeze")["ok"]
    other = ControlServer(path.with_name("b.sock"))
    other.close()


@pytest.mark.fault
def test_the_socket_of_a_dead_process_is_replaced(folder: Path, session: Session) -> None:
    name = folder / "a.sock"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from vidmatte.live.control import ControlServer\n"
        "server = ControlServer(Path(sys.argv[1])); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(name)], cwd=REPOSITORY, timeout=30)
    assert done.returncode == 9
    assert name.is_socket()
    with pytest.raises(ControlError, match="no session is running"):
        send_command(name, "status")
    crew, server = Crew(), ControlServer(name)
    server.start(Commands(session, session), crew)
    assert send_command(name, "freeze")["ok"]
    server.close()
    assert crew.join() == []


def test_no_session_has_a_hint(folder: Path) -> None:
    with pytest.raises(ControlError, match="no session is running") as caught:
        send_command(folder / "a.sock", "status")
    assert "vidmatte webcam" in (caught.value.hint or "")


def test_a_session_that_hangs_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.05)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "a.sock"))
        listener.listen()
        began = time.monotonic()
        with pytest.raises(ControlError, match="does not answer"):
            send_command(folder / "a.sock", "status")
        assert time.monotonic() - began < 5


@pytest.mark.fault
def test_a_folder_that_is_a_link_or_anothers_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    with pytest.raises(ControlError, match="not a folder of yours"):
        ControlServer(folder / "a.sock")
    folder.unlink()
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY - 1)
    with pytest.raises(ControlError, match="not a folder of yours"):
        ControlServer(folder / "a.sock")


def test_a_folder_open_to_others_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    ControlServer(folder / "a.sock").close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (folder / "a.sock").exists()


@pytest.mark.fault
def test_names_and_paths_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("", "a/b", "..", "a.b", "x" * 33, "a\n"):
        with pytest.raises(UsageError):
            socket_path(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/" + "x" * 100)
    if sys.platform == "linux":
        with pytest.raises(ControlError, match="too long"):
            socket_path()
