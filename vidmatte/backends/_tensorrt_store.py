"""Engines on disk: this user's alone, whole or not there, and believed only after a check.

A file NAME.engine is one line that says what it is, one line of JSON (the key, the SHA-256 of all
bytes after it, their lengths, facts for people), the compiler's bytes, and a probe: pictures with
torch's float32 answers. NAME.rejected has the JSON alone. NAME.lock is held while one is built.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from vidmatte.errors import BackendError, ModelError
from vidmatte.models.registry import private_folder, refuse_foreign

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.backends._tensorrt_key import EngineKey

log = logging.getLogger(__name__)

T = TypeVar("T")

VARIABLE = "VIDMATTE_ENGINE_DIR"
_MAGIC = b"vidmatte engine 1\n"
_SUFFIXES = (".engine", ".rejected", ".lock", ".log", ".part")
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def engine_folder() -> Path:
    """Return where engines are kept; never the current folder.

    That is VIDMATTE_ENGINE_DIR, else `engines` of the checkout where vidmatte runs from one that
    this user may write to, else the user's cache. Raises BackendError.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_absolute():
            raise BackendError(
                f"{VARIABLE} is {named}, which depends on the current folder",
                hint=f"give {VARIABLE} a path that begins with /",
            )
        return Path(named)
    checkout = Path(__file__).parents[2]
    inside = checkout / "engines"
    is_checkout = (checkout / "pyproject.toml").is_file() and (inside / "README.md").is_file()
    if is_checkout and os.access(inside, os.W_OK):
        return inside
    from platformdirs import user_cache_path

    return user_cache_path("vidmatte", appauthor=False) / "engines"


class Probe(NamedTuple):
    """What the engine of one batch must answer: (N, H, W, 3) uint8, (N, h, w) float32."""

    images: NDArray[np.uint8]
    expected: NDArray[np.float32]


class StoredEngine(NamedTuple):
    """An engine as the compiler gave it, with its probe."""

    data: bytes
    probe: Probe


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the store. `reason` says why it is not ready; `key` and `facts` are as read."""

    path: Path
    state: Literal["ready", "rejected", "damaged"]
    size: int
    key: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


class EngineStore:
    """The engines in `folder`. Nobody else may write there: BackendError from what touches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine of `key`; None, and a log line, where its file is not to be trusted.

        The file is opened once: what is hashed is what is returned.
        """

        def unpack(header: dict[str, Any], payload: bytes) -> StoredEngine:
            engine, images, _ = header["lengths"]
            images_NHW3 = np.frombuffer(payload[engine : engine + images], np.uint8)
            expected = np.frombuffer(payload[engine + images :], np.float32)
            shape = (-1, key.height, key.width, 3)
            probe = Probe(images_NHW3.reshape(shape).copy(), expected.reshape(header["expected"]))
            return StoredEngine(payload[:engine], probe)

        return self._trusted(self.folder / f"{key.name}.engine", key, unpack)

    def rejection(self, key: EngineKey) -> str | None:
        """Return why the engine of `key` was rejected when it was built, if it was."""
        path = self.folder / f"{key.name}.rejected"
        return self._trusted(path, key, lambda header, _: str(header["facts"]["reason"]))

    def write(self, key: EngineKey, stored: StoredEngine, facts: dict[str, Any]) -> Path:
        """Put an engine into the store, whole or not at all."""
        images = stored.probe.images.tobytes()
        expected = stored.probe.expected.astype(np.float32).tobytes()
        parts = (stored.data, images, expected)
        shape = stored.probe.expected.shape
        header = {"lengths": [len(part) for part in parts], "expected": shape, "facts": facts}
        path = self.folder / f"{key.name}.engine"
        self._write(path, key, header, b"".join(parts))
        return path

    def discard(self, key: EngineKey) -> None:
        """Remove the engine of `key`."""
        path = self.folder / f"{key.name}.engine"
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise _unwritable(path, exc) from exc

    def reject(self, key: EngineKey, reason: str) -> None:
        """Remember that the engine of `key` is of no use, until `clean` or another key.

        If it is there it is removed.
        """
        self.discard(key)
        header = {"lengths": [], "facts": {"reason": reason}}
        self._write(self.folder / f"{key.name}.rejected", key, header, b"")

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a name, which is an engine's; waits for the process that holds it."""
        import fcntl

        self._make()
        path = self.folder / f"{name}.lock"
        try:
            descriptor = os.open(path, _LOCK, 0o600)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def open_log(self, key: EngineKey) -> int:
        """Return a descriptor of an empty file beside the engine, for what its build says."""
        self._make()
        path = self.log_path(key)
        try:
            path.unlink(missing_ok=True)
            return os.open(path, _WRITE, 0o600)
        except OSError as exc:
            raise _unwritable(path, exc) from exc

    def log_path(self, key: EngineKey) -> Path:
        """Name the file of `open_log`."""
        return self.folder / f"{key.name}.log"

    def entries(self) -> list[Entry]:
        """Describe every engine and rejection, each read and checked whole."""
        if not self._is_there():
            return []
        paths = (p for p in self.folder.iterdir() if p.suffix in (".engine", ".rejected"))
        return [_entry(path) for path in sorted(paths)]

    def clean(self, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        """Remove unwanted engines and what is beside no engine; return which engines.

        What is being built is left alone.
        """
        entries = self.entries()
        if not self._is_there():
            return []
        wanted = {_name_of(entry.path) for entry in entries if not unwanted(entry)}
        ours = [path for path in self.folder.iterdir() if path.suffix in _SUFFIXES]
        gone = {name for name in map(_name_of, ours) if name not in wanted and self._remove(name)}
        return [entry for entry in entries if _name_of(entry.path) in gone]

    def _remove(self, name: str) -> bool:
        """Remove all that belongs to an engine; False, and nothing, while it is built."""
        import fcntl

        lock = self.folder / f"{name}.lock"
        try:
            descriptor = os.open(lock, _LOCK, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in self.folder.glob(f"{name}.*"):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise _unwritable(lock, exc) from exc
        return True

    def _trusted(
        self, path: Path, key: EngineKey, unpack: Callable[[dict[str, Any], bytes], T]
    ) -> T | None:
        """Unpack a file that is what it says and of `key`; else None, said in the log."""
        if not self._is_there():
            return None
        try:
            header, payload = _parsed(path)
            if header["key"] != key.document:
                raise ValueError("it is of another key")
            return unpack(header, payload)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as exc:
            log.warning("%s is not used: %s", path, exc)
            return None

    def _write(self, path: Path, key: EngineKey, header: dict[str, Any], payload: bytes) -> None:
        self._make()
        facts = {"key": key.document, "sha256": hashlib.sha256(payload).hexdigest()} | header
        part = path.with_name(f"{path.stem}.{os.getpid()}.part")
        try:
            part.unlink(missing_ok=True)
            with open(os.open(part, _WRITE, 0o600), "wb") as file:
                file.write(_MAGIC + json.dumps(facts).encode() + b"\n" + payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise _unwritable(path, exc) from exc

    def _make(self) -> None:
        try:
            with _for_engines():
                private_folder(self.folder, holds="engines", variable=VARIABLE)
        except OSError as exc:
            raise _unwritable(self.folder, exc) from exc

    def _is_there(self) -> bool:
        """Whether the folder is there. Raises BackendError where strangers may write into it."""
        if not os.path.isdir(self.folder):
            return False
        with _for_engines():
            refuse_foreign(self.folder, holds="engines", variable=VARIABLE)
        return True


@contextmanager
def _for_engines() -> Iterator[None]:
    """Make a refusal one of this backend, which `auto` passes over."""
    try:
        yield
    except ModelError as exc:
        raise BackendError(str(exc), hint=exc.hint) from exc


def _unwritable(path: Path, exc: OSError) -> BackendError:
    return BackendError(
        f"cannot write {path}: {exc.strerror}",
        hint=f"free some space there, or name another folder in {VARIABLE}",
    )


def _name_of(path: Path) -> str:
    """Name the engine that a file belongs to: the part before the first dot."""
    return path.name.partition(".")[0]


def _parsed(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return what a file says it is and the bytes that it says it of; ValueError if it is not."""
    with open(os.open(path, _READ), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_uid != os.geteuid():
            raise ValueError("it belongs to another user")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others may write into it")
        if file.readline(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is not an engine")
        header = json.loads(file.readline(1 << 20))
        payload = file.read()
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ValueError("it is damaged: its SHA-256 is another")
    if sum(header["lengths"]) != len(payload):
        raise ValueError("it is damaged: its lengths are others")
    return header, payload


def _entry(path: Path) -> Entry:
    size = path.lstat().st_size
    try:
        header, _ = _parsed(path)
        key, facts = dict(header["key"]), dict(header["facts"])
    except (OSError, ValueError, LookupError, TypeError) as exc:
        return Entry(path, "damaged", size, reason=str(exc))
    if path.suffix == ".rejected":
        return Entry(path, "rejected", size, key, facts, str(facts.get("reason")))
    return Entry(path, "ready", size, key, facts)
