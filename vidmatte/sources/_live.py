"""What every camera does alike: waits for a picture's due time, and stamps it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from vidmatte.errors import CameraLostError
from vidmatte.frames import Frame, VideoInfo

if TYPE_CHECKING:
    import av

TIME_BASE = Fraction(1, 1_000_000)


def live_info(info: VideoInfo, name: str) -> VideoInfo:
    """Turn what a container says of itself into what a camera does: no end, our clock."""
    return replace(
        info,
        name=name,
        time_base=TIME_BASE,
        frame_count=None,
        duration_s=None,
        is_still=False,
        is_live=True,
    )


class Stamper:
    """Numbers pictures and gives them capture times that never stand still or go back."""

    def __init__(self) -> None:
        self._index = 0
        self._last = -1

    def frame(self, picture: av.VideoFrame, captured_s: float, duration_s: float = 0.0) -> Frame:
        """Make the next frame of a picture captured at `captured_s` of `time.monotonic()`."""
        self._last = max(round(captured_s / TIME_BASE), self._last + 1)
        frame = Frame(picture, self._index, self._last, TIME_BASE, round(duration_s / TIME_BASE))
        self._index += 1
        return frame


class Waiter:
    """Sleeps until a time of `time.monotonic()`, or until another thread closes the camera."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = threading.Event()

    def until(self, due_s: float) -> None:
        """Sleep; raises CameraLostError once closed."""
        if self._closed.wait(max(0.0, due_s - time.monotonic())):
            raise CameraLostError(f"camera {self._name}: is closed")

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """End every wait, now and later."""
        self._closed.set()
