"""Where pictures go: video files, GIFs, picture files and sequences.

A sink takes pictures with their time stamps; closing is part of success.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import av


class Sink(Protocol):
    """Takes pictures in order on one thread.

    `write` may keep a reference to the picture until `close`; the caller never writes into a
    picture again. `close` may raise (a full disk shows there); closing twice does nothing.
    """

    def write(self, picture: av.VideoFrame) -> None:
        """Take the next picture; its pts and time_base are set."""
        ...

    def close(self) -> None:
        """Write out what is held back and finish the file."""
        ...
