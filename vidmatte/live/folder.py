"""A folder of backgrounds that is watched: what is usable in it now."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from vidmatte.backdrop import Backdrop
from vidmatte.errors import InputError, printable
from vidmatte.live.ahead import reason

# What a folder of backgrounds is searched for; other files in it are somebody else's.
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "jxl", "gif", "apng")
_VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "ogv")
SUFFIXES = frozenset(f".{name}" for name in (*_PICTURES, *_VIDEOS))
MAX_ENTRIES = 10_000  # looked at in one folder; what is beyond is left alone
CHECKS_PER_SCAN = 10  # files opened in one scan, so that a full folder does not hold up a switch
PATIENCE = 4  # scans that a file may fail in, unchanged, before it is given up: a slow copy

Signature = tuple[int, int, int]


@dataclass(slots=True)
class _Entry:
    """What is known of one file: its size, time and inode when last seen, and whether it opens."""

    signature: Signature
    state: Literal["new", "good", "bad"] = "new"
    failures: int = 0
    was_good: bool = False


class WatchedFolder:
    """The pictures and videos in a folder that can be opened, by name.

    Hidden files, other kinds of files and subfolders are passed over in silence. A file that
    cannot be opened is tried again while it changes and a few times more (it is being copied),
    then named once. A link is named and never followed: whoever may write into the folder must
    not choose from the rest of the disk. Belongs to one thread, but `files` may be read by any.
    """

    def __init__(self, path: str, fit: str) -> None:
        self.path = os.path.realpath(path)
        self._shown_path = path
        self._fit = fit
        self._entries: dict[str, _Entry] = {}
        self._is_missing = False
        self.files: tuple[str, ...] = ()
        self.is_busy = False  # whether files wait to be opened that could be
        try:
            os.scandir(self.path).close()
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise InputError(f"{path}: {reason}", hint="check the folder's permissions") from exc

    def scan(self, *, first: bool = False) -> tuple[list[str], list[str]]:
        """Look at the folder; return event lines, and the good files that have changed.

        A file that is new or has changed since the last scan is opened in the next one, when it
        has stopped growing; at the `first` scan at once.
        """
        found = self._found()
        if found is None:
            return ([] if first else self._missing()), []
        self._is_missing = False
        for name in self._entries.keys() - found.keys():
            del self._entries[name]
        waiting = [name for name, signature in sorted(found.items())
                   if self._is_settled(name, signature, first=first)]  # fmt: skip
        events: list[str] = []
        changed: list[str] = []
        for name in waiting[:CHECKS_PER_SCAN]:
            entry = self._entries[name]
            events += self._check(name, entry, announce=not first)
            if entry.state == "good" and entry.was_good:
                changed.append(name)
        self.is_busy = len(waiting) > CHECKS_PER_SCAN
        self.files = tuple(sorted(n for n, e in self._entries.items() if e.state == "good"))
        return events, changed

    def _is_settled(self, name: str, signature: Signature, *, first: bool) -> bool:
        """Whether a file waits to be opened and is as it was in the last scan."""
        entry = self._entries.get(name)
        if entry is not None and entry.signature == signature:
            return entry.state == "new"
        was_good = entry is not None and (entry.was_good or entry.state == "good")
        self._entries[name] = _Entry(signature, was_good=was_good)
        return first

    def _missing(self) -> list[str]:
        """Say once that the folder cannot be read; keep what was known of it."""
        if self._is_missing:
            return []
        self._is_missing = True
        return [f"{self._shown_path}: the folder of backgrounds cannot be read now"]

    def _found(self) -> dict[str, Signature] | None:
        try:
            with os.scandir(self.path) as entries:
                return dict(self._candidates(islice(entries, MAX_ENTRIES)))
        except OSError:
            return None

    def _candidates(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[tuple[str, Signature]]:
        for entry in entries:
            if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in SUFFIXES:
                continue
            try:
                status = entry.stat()
            except OSError:  # a dangling link, or gone by now
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.path, (status.st_size, status.st_mtime_ns, status.st_ino)

    def _check(self, name: str, entry: _Entry, *, announce: bool) -> list[str]:
        shown = printable(os.path.basename(name))
        if os.path.islink(name):
            entry.state = "bad"
            return [f"{shown}: is a link; those of a watched folder are not followed"]
        try:
            Backdrop(name, self._fit).check()
        except Exception as exc:  # noqa: BLE001 - a call goes on, whatever a file holds
            entry.failures += 1
            if entry.failures < PATIENCE:
                return []
            entry.state = "bad"
            return [f"{reason(shown, exc)}; it is not used"]
        entry.state = "good"
        return [f"{shown} joins the backgrounds"] if announce and not entry.was_good else []
