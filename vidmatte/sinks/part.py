"""Write under a temporary name, so that the output name only ever holds a whole file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from vidmatte.errors import OutputError
from vidmatte.sinks._shared import os_reason

try:
    import fcntl
except ImportError:  # Windows has no flock; O_EXCL alone guards there
    fcntl = None  # type: ignore[assignment]


def part_name(target: Path) -> Path:
    """Return `NAME.part.EXT` beside the target."""
    return target.with_name(f"{target.stem}.part{target.suffix}")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError for what can be known to fail before any work is done."""
    folder = target.parent
    if not os.path.isdir(folder):
        raise OutputError(f"{target}: the folder does not exist", hint=f"mkdir -p '{folder}'")
    if os.path.isdir(target):
        raise OutputError(f"{target}: is a folder", hint="name a file in it")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target}: exists already", hint="use --overwrite to replace it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: the folder is not writable")
    if shutil.disk_usage(folder).free == 0:
        raise OutputError(f"{target}: the disk is full")


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
            raise OutputError(f"{target}: cannot be written: {os_reason(exc)}") from exc

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except FileExistsError:
            self._move_stale_aside()
            descriptor = os.open(self.path, flags, 0o666)
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def _move_stale_aside(self) -> None:
        status = os.lstat(self.path)
        if stat.S_ISREG(status.st_mode) and fcntl is not None:
            probe = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise OutputError(
                    f"{self.target}: another run is writing it ({self.path.name} is locked)",
                    hint="wait for it, or choose another name",
                ) from exc
            finally:
                os.close(probe)
        for number in range(1, 1000):
            aside = self.path.with_name(f"{self.target.stem}.stale{number}{self.target.suffix}")
            if not os.path.lexists(aside):
                os.rename(self.path, aside)
                self.kept_aside = aside
                return
        raise OutputError(f"{self.path}: too many stale parts", hint="remove them")

    def flush(self) -> None:
        """Bring what was written to the disk; raise OutputError if it refuses."""
        try:
            os.fsync(self.descriptor)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise OutputError(f"{self.target}: {os_reason(exc)}") from exc

    def close(self) -> None:
        """Close the descriptor, and so unlock the part; raise nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def commit(self) -> None:
        """Give the flushed part its final name, then unlock it."""
        try:
            rename(self.path, self.target, replace=self._replace)
        except OSError as exc:
            raise OutputError(f"{self.target}: {os_reason(exc)}") from exc
        self.close()

    def discard(self) -> None:
        """Remove the part."""
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


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
