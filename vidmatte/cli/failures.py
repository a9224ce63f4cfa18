"""What the user reads of a failure: what happened, what to do, what is kept; a line each."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Sequence

from vidmatte.errors import VidmatteError, is_out_of_memory, printable


def tell(message: str, hint: str | None = None, notes: Sequence[str] = ()) -> None:
    """Print a failure to stderr, whatever of it came from a stranger."""
    lines = [f"error: {printable(message)}"]
    if hint:
        lines.append(f"hint: {printable(hint)}")
    lines += [f"stopped: {printable(note)}" for note in notes]
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody listens
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def notes_of(error: BaseException) -> list[str]:
    """What was added to an error on its way: which parts of an output were kept."""
    return list(getattr(error, "__notes__", ()))


def hint_of(error: VidmatteError) -> str | None:
    """What to do about an error: what it says itself, or what helps where a resource ran out."""
    if error.hint is not None:
        return error.hint
    shortage = shortage_of(error.__cause__)
    return None if shortage is None else shortage[1]


def shortage_of(error: BaseException | None) -> tuple[str, str] | None:
    """Say which resource ran out and what helps, if that is the cause; any line may meet it."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if is_out_of_memory(error):
            return "out of memory", "free some memory, or use smaller pictures or fewer outputs"
        if number in (errno.EMFILE, errno.ENFILE):
            return "too many files are open", "raise the limit: ulimit -n 1024"
        if number == errno.EAGAIN or "can't start new thread" in str(error):
            return "no more threads can be started", "end other programs, or raise ulimit -u or -v"
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # of files: OutputError says so
            return "standard output: the disk is full", "free some space there"
        error = error.__cause__
    return None
