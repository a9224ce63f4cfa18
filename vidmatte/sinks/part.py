"""Write under a temporary name, so that the output name only ever holds a whole file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from pathlib import Path

from vidmatte.errors import OutputError
from vidmatte.sinks._shared import refused

try:
    import fcntl
except ImportError:  # Windows has no flock; O_EXCL alone guards there
    fcntl = None  # type: ignore[assignment]


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


def part_name(target: Path) -> Path:
    """Return `NAME.part.EXT` beside the target."""
    return target.with_name(f"{target.stem}.part{target.suffix}")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError for what can be known to fail before any work is done."""
    folder = target.parent
    if not os.path.isdir(folder):
        hint = f"mkdir -p '{folder}'"
        if _ADDRESS.match(str(target)):
            hint = "an output is a file name; addresses are not opened"
        raise OutputError(f"{target}: the folder does not exist", hint=hint)
    if os.path.isdir(target):
        raise OutputError(f"{target}: is a folder", hint="name a file in it")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target}: exists already", hint="use --overwrite to replace it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: the folder is not writable", hint="write into another folder")
    if shutil.disk_usage(folder).free == 0:
        raise OutputError(
            f"{target}: the disk is full", hint="free some space, or write to another disk"
        )


class PartFile:
    """A file that gets its final name only when it is whole.

    Opened with O_EXCL and O_NOFOLLOW and locked; a stale part of an earlier run (nobody holds
    its lock) is moved aside and named in `kept_aside`. Without `replace`, a file that took the
    final name during the run is not overwritten. `descriptor` is open for writing and
    seeking until `commit`, `close` or `discard`.
    """

    def __init__(self, target: Path, *, replace: bool = True) -> None:
        self.target = target
        self._replace = replace
        self.path = part_name(target)
        self.kept_aside: Path | None = None
        try:
            self.descriptor = self._create()
        except OSError as exc:
            raise refused(target, exc, "cannot be written: ") from exc

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except FileExistsError:
            stale = f"{self.target.stem}.stale{{}}{self.target.suffix}"
            self.kept_aside = _move_stale_aside(self.path, stale, self.target)
            descriptor = os.open(self.path, flags, 0o666)
        _lock_new(descriptor, self.path, self.target)
        return descriptor

    def flush(self) -> None:
        """Bring what was written to the disk; raise OutputError if it refuses."""
        try:
            os.fsync(self.descriptor)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise refused(self.target, exc) from exc

    def close(self) -> None:
        """Close the descriptor, and so unlock the part; raise nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def commit(self) -> None:
        """Give the flushed part its final name, then unlock it."""
        if not _is_at(self.descriptor, self.path):
            raise _gone(self.path, self.target)
        try:
            rename(self.path, self.target, replace=self._replace)
        except OSError as exc:
            raise refused(self.target, exc) from exc
        self.close()

    def discard(self) -> None:
        """Remove the part, but nothing that has taken its name."""
        if self.descriptor >= 0 and _is_at(self.descriptor, self.path):
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.close()


class PartFolder:
    """A folder whose files get their final names only when all are whole; locked like a PartFile.

    `target` is what messages name.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.kept_aside: Path | None = None
        self._target = target
        self._descriptor = -1
        try:
            self._create(target)
        except OSError as exc:
            raise refused(target, exc, "cannot be written: ") from exc

    def _create(self, target: Path) -> None:
        try:
            self.path.mkdir()
        except FileExistsError:
            self.kept_aside = _move_stale_aside(self.path, f"{self.path.stem}.stale{{}}", target)
            self.path.mkdir()
        if fcntl is not None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags)
            _lock_new(self._descriptor, self.path, target)

    def close(self) -> None:
        """Unlock the folder; raise nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def _is_there(self) -> bool:
        return self._descriptor < 0 or _is_at(self._descriptor, self.path)

    def check(self) -> None:
        """Raise OutputError if the folder was moved or removed during the run."""
        if not self._is_there:
            raise _gone(self.path, self._target)

    def remove(self) -> None:
        """Remove and unlock the emptied folder; what somebody else has put into it stays."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self.close()

    def discard(self) -> None:
        """Remove the folder with what is in it, but nothing that has taken its name."""
        if self._is_there:
            shutil.rmtree(self.path, ignore_errors=True)
        self.close()


def _lock_new(descriptor: int, path: Path, target: Path) -> None:
    """Lock the part just made, or close it and raise OutputError if another run took its name.

    Between making and locking, another run may have taken it for a stale one: then that run
    holds its lock, or has moved it, so that the name leads elsewhere.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            return
    except BlockingIOError:
        pass
    os.close(descriptor)
    raise _in_use(path, target)


def _move_stale_aside(path: Path, name: str, target: Path) -> Path:
    """Rename a part that no run has locked to `name` with the first free number.

    It stays locked until it has its new name. A link is moved, never followed.
    """
    mode = os.lstat(path).st_mode
    if fcntl is None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return _to_free_name(path, name)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            raise _in_use(path, target)
        return _to_free_name(path, name)
    except BlockingIOError as exc:
        raise _in_use(path, target) from exc
    finally:
        os.close(descriptor)


def _to_free_name(path: Path, name: str) -> Path:
    for number in range(1, 1000):
        aside = path.with_name(name.format(number))
        if not os.path.lexists(aside):
            os.rename(path, aside)
            return aside
    raise OutputError(f"{path}: too many stale parts", hint="remove them")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _gone(path: Path, target: Path) -> OutputError:
    return OutputError(
        f"{target}: its part {path.name} was moved or removed during the run",
        hint="run it again, and leave the part alone while it runs",
    )


def _in_use(path: Path, target: Path) -> OutputError:
    return OutputError(
        f"{target}: another run is writing it ({path.name} is locked)",
        hint="wait for it, or choose another name",
    )


def rename(part: Path, target: Path, *, replace: bool) -> None:
    """Give a part its final name in one step, which without `replace` fails where that is taken.

    Where links are unknown it takes two steps. Raises OSError (FileExistsError).
    """
    if replace:
        os.replace(part, target)
        return
    try:
        os.link(part, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # FAT and some network disks have no hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(part, target)
        return
    os.unlink(part)
