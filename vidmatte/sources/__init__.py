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

    info: VideoInfo
    notes: list[str]

    @property
    def files(self) -> list[str]:
        """The names that it reads; "-" is standard input."""
        ...

    @property
    def damage(self) -> list[str]:
        """One line per cause of what was lost, with count and first time."""
        ...

    @property
    def mended(self) -> list[str]:
        """One line per kind of time stamp that had to be changed; nothing was lost by it."""
        ...

    @property
    def has_companions(self) -> bool:
        """Whether streams other than video, or tags, travel beside the picture."""
        ...

    @property
    def video_metadata(self) -> dict[str, str]:
        """The tags of the picture's stream."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...
