"""Where frames come from: files, standard input, numbered pictures; and generated clips.

A source is a context manager and an iterable of `vidmatte.frames.Frame` with an `info`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from vidmatte.frames import Frame, VideoInfo


class Source(Protocol):
    """A sequence of frames with their times.

    `info` is complete once the context is entered. Iterating decodes; a damaged packet is
    skipped and counted in `damage`, one entry per cause. Used by one thread.
    """

    @property
    def info(self) -> VideoInfo:
        """What is known before the first frame."""
        ...

    @property
    def damage(self) -> list[str]:
        """One line per cause of what was lost or repaired, with count and first time."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...
