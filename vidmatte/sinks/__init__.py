"""Where pictures go: video files, GIFs, picture files and sequences.

A sink takes pictures with their time stamps; closing is part of success.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import av


@dataclass(slots=True)
class SinkReport:
    """What a sink has to tell: choices (`notes`), what was lost, streams copied as they are."""

    notes: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    copied: int = 0


class Sink(Protocol):
    """Takes pictures in order on one thread.

    `report` is complete once the sink is closed. `write` may keep a reference to the picture until
    `close`; the caller never writes into a picture again. `close` may raise (a full disk shows
    there); closing twice does nothing.
    """

    report: SinkReport

    def write(self, picture: av.VideoFrame) -> None:
        """Take the next picture; its pts and time_base are set."""
        ...

    def close(self) -> None:
        """Write out what is held back and finish the file."""
        ...
