"""Resolve what the user named as an output, and keep the promise about whole files."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Protocol, TextIO

from vidmatte.errors import CancelledError, InputError, UsageError
from vidmatte.frames import VideoInfo
from vidmatte.sequences import is_sequence, numbered_files
from vidmatte.sinks import Sink
from vidmatte.sinks._shared import refused
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.gif import GifSink
from vidmatte.sinks.images import PictureSink, SequenceSink, part_folder
from vidmatte.sinks.part import PartFile, check_target, part_name
from vidmatte.sinks.plan import Content, Encodes, OutputPlan, plan_output
from vidmatte.sources._shared import open_container, open_descriptor

STDOUT = "-"
TRANSPARENT_BY_NAME = frozenset(
    {".mov", ".webm", ".apng", ".gif", ".png", ".webp", ".tif", ".tiff"}
)
READER_POLL_S = 0.05
CREATE_S = 1.0  # what making a file may take before a stop no longer waits for it


class Destination(Protocol):
    """A named output from check to final name."""

    name: str
    kept_aside: Path | None

    def open(self, plan: OutputPlan, info: VideoInfo, muxing: Muxing) -> Sink:
        """Create the part and a sink that writes it."""

    def flush(self) -> None:
        """Bring the closed part to the disk; a full one may show only here."""

    def commit(self) -> None:
        """Give the part its final name."""

    def abandon(self) -> Path | None:
        """Keep the part if it plays and return it, else remove it and return None."""

    def withdraw(self) -> None:
        """Leave no part, though another thread may be in `open`, which then raises CancelledError.

        That thread still has to `abandon` what it has opened.
        """


class _Gate:
    """Lets one thread make a file unless another has given the run up."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.closed = Event()

    @contextmanager
    def making(self) -> Iterator[None]:
        """Hold off `close`; raise CancelledError after it."""
        with self._lock:
            if self.closed.is_set():
                raise CancelledError("stopped")
            yield

    def close(self) -> None:
        """Return when nothing is being made and nothing will be."""
        self.closed.set()
        if self._lock.acquire(timeout=CREATE_S):  # a dead network disk may hold it for ever
            self._lock.release()


class FileDestination:
    """A regular file, written as a part beside it."""

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        check_target(target, overwrite=overwrite)
        self._gate = _Gate()
        self.name = str(target)
        self._target = target
        self._overwrite = overwrite
        self._part: PartFile | None = None
        self._is_video = True
        self.kept_aside: Path | None = None

    def open(self, plan: OutputPlan, info: VideoInfo, muxing: Muxing) -> Sink:
        """Create the part file and its sink."""
        with self._gate.making():
            self._part = PartFile(self._target, replace=self._overwrite)
        self.kept_aside = self._part.kept_aside
        descriptor = self._part.descriptor
        self._is_video = plan.kind != "picture"
        if plan.kind == "picture":
            return PictureSink(descriptor, self.name, plan, info)
        if plan.kind == "gif":
            return GifSink(descriptor, self.name, plan, info)
        return FileSink(descriptor, self.name, plan, info, muxing)

    def flush(self) -> None:
        """Bring the part to the disk."""
        assert self._part is not None
        self._part.flush()

    def commit(self) -> None:
        """Rename the part to the name the user gave."""
        assert self._part is not None
        self._part.commit()
        self._part = None

    def abandon(self) -> Path | None:
        """Keep a part that plays."""
        part, self._part = self._part, None
        if part is None:
            return None
        if self._is_video and _plays(part.path):
            part.close()
            return part.path
        part.discard()
        return None

    def withdraw(self) -> None:
        """Remove the part's name; its descriptor stays open, for a sink may be using it."""
        self._gate.close()
        if (part := self._part) is not None:
            with suppress(OSError):
                os.unlink(part.path)


class StreamDestination:
    """Standard output, a FIFO or a device: written directly, in a streamable container."""

    def __init__(self, name: str) -> None:
        self.name = "standard output" if name == STDOUT else name
        self._path = None if name == STDOUT else name
        self._descriptor = -1
        self._withdrawn = Event()
        self.kept_aside: Path | None = None

    def open(self, plan: OutputPlan, info: VideoInfo, muxing: Muxing) -> Sink:
        """Open the stream and a sink that never seeks."""
        self._descriptor = self._open_descriptor()
        return FileSink(self._descriptor, self.name, plan, info, muxing, streamed=True)

    def _open_descriptor(self) -> int:
        if self._path is None:
            return os.dup(sys.stdout.fileno())
        try:
            descriptor = _open_with_reader(self._path, self._withdrawn)
            os.set_blocking(descriptor, True)
        except OSError as exc:
            raise refused(self.name, exc) from exc
        return descriptor

    def flush(self) -> None:
        """Nothing to bring to a disk."""

    def commit(self) -> None:
        """Nothing to rename: let the reader see the end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def abandon(self) -> Path | None:
        """Nothing to keep or remove: let the reader see the end."""
        self.commit()
        return None

    def withdraw(self) -> None:
        """Wait no longer for a reader."""
        self._withdrawn.set()


def _open_with_reader(path: str, withdrawn: Event) -> int:
    """Open a FIFO once somebody reads it; a plain open would block where no signal reaches."""
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if not (exc.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode)):  # no reader
                raise
        if withdrawn.wait(READER_POLL_S):
            raise CancelledError("stopped")


class SequenceDestination:
    """Numbered pictures in a folder, written as a part folder beside them."""

    def __init__(self, pattern: Path, *, overwrite: bool) -> None:
        there = numbered_files(pattern)
        check_target(
            there[0][1] if there else pattern.with_name(pattern.name % 1), overwrite=overwrite
        )
        self.name = str(pattern)
        self._pattern = pattern
        self._overwrite = overwrite
        self._gate = _Gate()
        self._sink: SequenceSink | None = None
        self.kept_aside: Path | None = None

    def open(self, plan: OutputPlan, info: VideoInfo, muxing: Muxing) -> Sink:
        """Create the part folder and its sink."""
        with self._gate.making():
            self._sink = SequenceSink(self._pattern, plan, info, replace=self._overwrite)
        self.kept_aside = self._sink.kept_aside
        return self._sink

    def flush(self) -> None:
        """Every picture is a file of its own, closed when written."""

    def commit(self) -> None:
        """Move the pictures to their names."""
        assert self._sink is not None
        self._sink.commit()
        self._sink = None

    def abandon(self) -> Path | None:
        """Keep the pictures there are."""
        sink, self._sink = self._sink, None
        return None if sink is None else sink.abandon()

    def withdraw(self) -> None:
        """Remove the part folder, which is still empty."""
        self._gate.close()
        self.abandon()


def contents_of(
    output: str, alpha: str | None, foreground: str | None, background: str | None
) -> dict[str, Content]:
    """Map every output's name to what it holds, the main output first.

    That one is transparent where `background` says so, or by its name where it is None. Raises
    UsageError for equal names.
    """
    if background is None:
        is_transparent = Path(output).suffix.lower() in TRANSPARENT_BY_NAME
    else:
        is_transparent = background == "transparent"
    named: list[tuple[str | None, Content]] = [
        (output, "transparent" if is_transparent else "opaque"),
        (alpha, "matte"),
        (foreground, "transparent"),
    ]
    contents = {name: content for name, content in named if name is not None}
    names = [name for name, _ in named if name is not None]
    if len(contents) < len(names):
        same = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"{same}: two outputs have the same name", hint="choose another for one of them"
        )
    return contents


def destination_of(name: str, *, overwrite: bool) -> Destination:
    """Choose the kind of destination by its name; raise what can be known to fail."""
    if name == STDOUT:
        if sys.stdout is None or sys.stdout.isatty():
            raise UsageError("video is not written to a terminal", hint="pipe or redirect it")
        return StreamDestination(name)
    path = Path(name)
    if is_sequence(path):
        return SequenceDestination(path, overwrite=overwrite)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return StreamDestination(name)
    return FileDestination(path, overwrite=overwrite)


def plan_for(
    name: str,
    info: VideoInfo,
    content: Content,
    *,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    nvenc: Encodes | None = None,
) -> OutputPlan:
    """Plan the output `name`; streams without an extension become Matroska.

    `nvenc`: see plan_output.
    """
    path = Path(name)
    suffix = path.suffix
    if name == STDOUT or (not suffix and os.path.exists(path) and not os.path.isfile(path)):
        suffix = ".mkv"
    sequence = is_sequence(path)
    try:
        plan = plan_output(
            info, suffix, content, is_sequence=sequence, codec=codec, crf=crf, preset=preset,
            nvenc=nvenc,
        )  # fmt: skip
    except UsageError as exc:  # there may be several outputs
        raise UsageError(f"{name}: {exc}", hint=exc.hint) from exc
    if plan.kind == "picture" and not info.is_still:
        raise UsageError(
            f"{name}: one picture cannot hold a video",
            hint=f"use {path.stem}_%04d{suffix} for a sequence, or --frame TIME for one picture",
        )
    return plan


def _plays(path: Path) -> bool:
    """Whether at least one picture can be decoded from a part."""
    import av

    try:
        descriptor = open_descriptor(path)
    except InputError:
        return False
    try:
        with open_container(descriptor, str(path)) as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, InputError, OSError, IndexError):
        return False
    finally:
        os.close(descriptor)


def refuse_same_file(outputs: list[str], inputs: list[str]) -> None:
    """Raise UsageError where an output is an input, a background, or another output.

    Its part must not be one either, nor hold an input: an earlier run's part would be moved
    aside. Nor may a sequence of pictures hold one.
    """
    seen: dict[object, str] = {}
    for name in inputs:
        if (key := _identity(name, sys.stdin)) is not None:
            seen[key] = "standard input" if name == STDOUT else name
    folders = {_identity(f, None) for f in {str(Path(n).parent) for n in inputs if n != STDOUT}}
    for name in outputs:
        claimed = _claimed_by(name)
        for key, what in claimed.items():
            if key in seen:
                shown = seen[key]
                if shown == name and name in inputs:
                    shown = "the input" if name == inputs[0] else "read by this run"
                raise UsageError(f"{what}: is also {shown}", hint="choose another output name")
            if key in folders:
                raise UsageError(f"{what}: holds an input", hint="choose another output name")
        seen |= claimed


def _claimed_by(name: str) -> dict[object, str]:
    """Identify the files that an output may replace: itself, its part, its pictures."""
    path = Path(name)
    claimed = {_identity(name, sys.stdout): name}
    if name != STDOUT:
        part = part_folder(path) if is_sequence(path) else part_name(path)
        claimed |= {_identity(str(picture), None): name for picture in _held_by(path)}
        claimed[_identity(str(part), None)] = f"the part of {name}"
    claimed.pop(None, None)
    return claimed


def _held_by(path: Path) -> list[Path]:
    return [picture for _, picture in numbered_files(path)] if is_sequence(path) else []


def _identity(name: str, stream: TextIO | None) -> object:
    """What makes two names the same file: device and inode, or the resolved path.

    For "-" it is the regular file that `stream` is redirected to, or None.
    """
    try:
        if name == STDOUT:
            status = os.fstat(stream.fileno()) if stream is not None else None
            if status is None or not stat.S_ISREG(status.st_mode):
                return None
        else:
            status = os.stat(name)
        return status.st_dev, status.st_ino
    except OSError:
        return None if name == STDOUT else os.path.realpath(name)
    except ValueError as exc:  # a closed stream, or a null in a name
        if name == STDOUT:
            return None
        raise UsageError(f"{name}: is not a usable file name", hint="choose another") from exc
