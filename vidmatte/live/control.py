"""The control socket of a live session: who may connect, what they may ask, and asking it."""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import socket
import stat
import struct
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from platformdirs import user_runtime_path

from vidmatte.errors import UsageError, VidmatteError, printable

try:
    import fcntl
except ImportError:  # Windows has neither flock nor, in Python, sockets with names
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from vidmatte.live.contracts import LiveStatus, Mode
    from vidmatte.pipeline import Crew

DEFAULT_NAME = "webcam"
MAX_LINE = 1 << 16  # bytes of a request or an answer: any path fits, escaped
MAX_CLIENTS = 8
PATIENCE_S = 5.0  # what a client may take to send its line, or a session to answer it
MAX_PATH = 103  # bytes of a socket's name: macOS's limit, Linux's is 107
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_LOCAL_PEERCRED = 1  # of level 0 on macOS: struct xucred begins with version and user

Answer = dict[str, Any]

log = logging.getLogger(__name__)


_RESTART = "end `vidmatte webcam` and start it again"
_REMOVE = "remove it and start `vidmatte webcam` again"


class ControlError(VidmatteError):
    """The control socket cannot be made, or no session answers at it."""


class Session(Protocol):
    """The part of a live session that may be controlled."""

    def show(self, mode: Mode) -> None:
        """Matte, or freeze the last matted picture."""

    def mirror(self, on: bool) -> None:
        """Flip the camera's picture left to right."""

    def status(self) -> LiveStatus:
        """Say how it is doing."""

    def end(self) -> None:
        """Let it end."""


class Backgrounds(Protocol):
    """The part of a rack that may be controlled."""

    def next(self, *, with_none: bool = True) -> None:
        """Ask for the next background."""

    def choose(self, text: str) -> None:
        """Ask for a background by name; raises VidmatteError."""


@dataclass(frozen=True, slots=True)
class Commands:
    """What a request can do: never show the camera picture as it is."""

    session: Session
    rack: Backgrounds

    def answer(self, line: bytes) -> Answer:
        """Carry out one request, a JSON object with `command` and `value`; never raises."""
        try:
            request = json.loads(line.decode())
            command, value = request.get("command"), request.get("value")
            action = self._actions().get(command) if isinstance(command, str) else None
            if action is None or not isinstance(value, str | None):
                raise ValueError("neither a command nor its value")
        except (ValueError, AttributeError, RecursionError):
            return _refusal("the request is not understood", None)
        try:
            return {"ok": True} | action(value)
        except VidmatteError as exc:
            return _refusal(str(exc), exc.hint)
        except Exception as exc:
            log.exception("control command %s failed", command)
            return _refusal(f"internal error: {type(exc).__name__}", None)

    def _actions(self) -> dict[str, Callable[[str | None], Answer]]:
        return {
            "background": self._background,
            "freeze": lambda _: self._show("frozen", "frozen"),
            "resume": lambda _: self._show("matte", "resumed"),
            "mirror": self._mirror,
            "status": lambda _: {"status": asdict(self.session.status())},
            "quit": self._quit,
        }

    def _background(self, text: str | None) -> Answer:
        if text == "next":
            self.rack.next(with_none=False)
            return {"text": "the next background comes"}
        if text is None or text == "none":
            raise UsageError(
                "the room is not shown by remote control", hint="press space in the session"
            )
        self.rack.choose(text)
        return {"text": f"the background becomes {printable(os.path.basename(text) or text)}"}

    def _show(self, mode: Mode, said: str) -> Answer:
        self.session.show(mode)
        return {"text": said}

    def _mirror(self, value: str | None) -> Answer:
        if value not in ("on", "off"):
            raise UsageError("mirror is on or off", hint="vidmatte control mirror on")
        self.session.mirror(value == "on")
        return {"text": f"mirror {value}"}

    def _quit(self, _: str | None) -> Answer:
        self.session.end()
        return {"text": "the session ends"}


def _refusal(error: str, hint: str | None) -> Answer:
    return {"ok": False, "error": error, "hint": hint}


def is_supported() -> bool:
    """Whether this system has sockets with names, and locks."""
    return fcntl is not None and hasattr(socket, "AF_UNIX")


def socket_path(name: str = DEFAULT_NAME) -> Path:
    """Return where the session called `name` of this user listens; raises ControlError."""
    if not is_supported():
        raise ControlError("this system has no sockets with names", hint="use the keys")
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a session", hint="use letters and digits")
    with warnings.catch_warnings(action="ignore"):  # it says where it falls back to, and does
        path = user_runtime_path("vidmatte") / f"{name}.sock"
    if len(os.fsencode(path)) > MAX_PATH:
        raise ControlError(
            f"{path}: is too long for a socket",
            hint="set XDG_RUNTIME_DIR to a short folder of your own, or use --no-control",
        )
    return path


class ControlServer:
    """Listens at a socket in a folder of this user alone; one request per connection.

    Building it takes the name: raises ControlError where another session has it. A socket left by
    a process that died is replaced. Other users are refused by the folder's mode and again by the
    peer's credentials, where the system tells them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            _make_private(path.parent)
            self._lock = _take(path)
            self._listener = self._listen()
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise ControlError(f"{path}: {reason}", hint="use --no-control") from exc
        self._waker, self._wake = socket.socketpair()
        self._clients: dict[socket.socket, _Client] = {}
        self._is_started = False

    def _listen(self) -> socket.socket:
        with suppress(FileNotFoundError):
            os.unlink(self._path)  # the lock is ours: whoever made it is dead
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self._path))
            os.chmod(self._path, 0o600)
            listener.listen(MAX_CLIENTS)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            os.close(self._lock)
            raise
        return listener

    def start(self, commands: Commands, crew: Crew) -> None:
        """Serve on a thread of its own until `close`."""
        self._is_started = True
        crew.start("control", lambda: self._serve(commands), behind=True)

    def close(self) -> None:
        """Ask the thread to end and give the name back. May be called twice."""
        if self._is_started:
            with suppress(OSError):
                self._wake.send(b"x")
        else:
            self._tidy()

    def _serve(self, commands: Commands) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._waker, selectors.EVENT_READ)
                while self._turn(selector, commands):
                    pass
        finally:
            self._tidy()

    def _turn(self, selector: selectors.BaseSelector, commands: Commands) -> bool:
        """Serve what is ready; return False when asked to end."""
        ready = [key.fileobj for key, _ in selector.select(1.0 if self._clients else None)]
        if self._waker in ready:
            return False
        if self._listener in ready:
            self._accept(selector)
        for connection, client in list(self._clients.items()):
            done = client.is_late()
            if connection in ready and not done:
                done = client.read(commands)
            if done:
                selector.unregister(connection)
                del self._clients[connection]
                connection.close()
        return True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again, or no descriptor is free
            time.sleep(0.01)
            return
        connection.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS or peer_user(connection) not in (None, os.geteuid()):
            connection.close()
            return
        self._clients[connection] = _Client(connection)
        selector.register(connection, selectors.EVENT_READ)

    def _tidy(self) -> None:
        for connection in (*self._clients, self._listener, self._waker, self._wake):
            connection.close()
        self._clients.clear()
        if self._lock >= 0:
            with suppress(OSError):
                os.unlink(self._path)
            os.close(self._lock)
            self._lock = -1


class _Client:
    """One connection: gathers a line, answers it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._line = b""
        self._until_s = time.monotonic() + PATIENCE_S

    def is_late(self) -> bool:
        """Whether it has taken too long."""
        return time.monotonic() > self._until_s

    def read(self, commands: Commands) -> bool:
        """Take what has come; answer a whole line; return whether the connection is done."""
        try:
            part = self._connection.recv(MAX_LINE)
            if not part:
                return True
            self._line += part
            line, end, _ = self._line.partition(b"\n")
            if end:
                self._send(commands.answer(line))
            elif len(self._line) > MAX_LINE:
                self._send(_refusal("the request is too long", None))
            else:
                return False
        except BlockingIOError:
            return False
        except OSError:  # it has gone
            pass
        return True

    def _send(self, answer: Answer) -> None:
        self._connection.send(json.dumps(answer).encode() + b"\n")  # always fits the buffer


def send_command(path: Path, command: str, value: str | None = None) -> Answer:
    """Send one request to the session that listens at `path` and return what it answers.

    Raises ControlError when there is none or it does not answer, and what it refuses.
    """
    request = json.dumps({"command": command, "value": value}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(os.fspath(path))
            if peer_user(connection) not in (None, os.geteuid()):
                raise ControlError(f"{path}: belongs to another user", hint=_REMOVE)
            connection.sendall(request)
            line = _read_line(connection)
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise ControlError(
            "no session is running", hint="start one: vidmatte webcam --virtual-cam"
        ) from exc
    except TimeoutError as exc:
        raise ControlError("the session does not answer", hint=_RESTART) from exc
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise ControlError(f"{path}: {reason}", hint=_REMOVE) from exc
    return _checked(line)


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) <= MAX_LINE:
        part = connection.recv(MAX_LINE)
        if not part:
            break
        line += part
    return line


def _checked(line: bytes) -> Answer:
    try:
        answer = json.loads(line)
        if answer["ok"] is True:
            return dict(answer)
        error, hint = str(answer["error"]), answer.get("hint")
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ControlError("the session has hung up", hint=_RESTART) from exc
    raise ControlError(error, hint=None if hint is None else str(hint))


def peer_user(connection: socket.socket) -> int | None:
    """Return the user number at the other end, or None where the system does not tell."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    if sys.platform == "darwin":
        credentials = connection.getsockopt(0, _LOCAL_PEERCRED, 8)
        return int(struct.unpack("2I", credentials)[1])
    return None


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can enter, or raise ControlError if it is not."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ControlError(f"{folder}: is not a folder of yours", hint="use --no-control")
    if status.st_mode & 0o077:
        os.chmod(folder, 0o700)


def _take(path: Path) -> int:
    """Lock the session's name until the descriptor is closed, at the latest by a crash."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path.with_suffix(".lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(lock)
        raise ControlError(
            f"a session is already running ({path.stem})",
            hint="end it with `vidmatte control quit`, or give this one a --control NAME",
        ) from exc
    return lock
