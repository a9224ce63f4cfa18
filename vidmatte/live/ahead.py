"""A background video for live pictures: decoded on a thread of its own, ahead of its time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.errors import VidmatteError
from vidmatte.frames import Frame

if TYPE_CHECKING:
    import av

    from vidmatte.compute.cpu.background import Background
    from vidmatte.frames import Samples
    from vidmatte.pipeline import Crew

AHEAD_S = 0.1  # decoded before it is shown: more than opening the file again for a loop takes
AHEAD_PICTURES = 4
STEP_S = 1 / 120  # between looks for the next picture, and so what one may be late
MAX_STEP_S = 0.5  # what the video may catch up per frame; a longer pause is left out
_MICROSECONDS = Fraction(1, 1_000_000)
_NO_ALPHA = np.zeros((0, 0), np.uint8)  # a video looks at the frame's time alone


class AheadBackground:
    """Gives a video's picture for a frame's time without ever decoding, waiting or failing.

    Decoding and fitting a 1080p picture takes as long as the network: here it happens beside it.
    When that is late, the last picture stays. The time between frames counts, but a pause of the
    session is left out, or all of it would be decoded at once. When the video cannot be read any
    more (its file has gone at the end of a loop), `say` is told and the last picture stays.

    Building it decodes the first picture. `planes` is for one thread, `close` for any.
    """

    constant = None

    def __init__(
        self, name: str, video: Background, picture: av.VideoFrame, say: Callable[[str], None]
    ) -> None:
        self._name, self._video, self._say = name, video, say
        self._picture = picture  # stands in frames of which only the time matters
        self._changed = threading.Condition()
        self._ready: deque[tuple[float, list[Samples]]] = deque()
        self._last_s: float | None = None
        self._time_s = self._decoded_s = 0.0
        self._is_closed = False
        self._decoded = self._shown = video.planes(self._at(0.0), _NO_ALPHA)
        self.first = self._shown

    def start(self, crew: Crew) -> None:
        """Begin to decode ahead, until `close`."""
        crew.start("background", self._work, behind=True)

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        """Return the planes for a frame; see `Background`."""
        with self._changed:
            if self._last_s is not None:
                self._time_s += min(max(frame.time_s - self._last_s, 0.0), MAX_STEP_S)
            self._last_s = frame.time_s
            while self._ready and self._ready[0][0] <= self._time_s + STEP_S / 2:
                self._shown = self._ready.popleft()[1]
            self._changed.notify_all()
            return self._shown

    def close(self) -> None:
        """Ask the thread to end and close the file. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while (time_s := self._next_time()) is not None:
                planes = self._video.planes(self._at(time_s), _NO_ALPHA)
                if planes is not self._decoded:
                    self._decoded = planes
                    with self._changed:
                        self._ready.append((time_s, planes))
        except Exception as exc:  # noqa: BLE001 - a call goes on, whatever a file holds
            self._say(f"{reason(self._name, exc)}; the background stands still")
        finally:
            self._video.close()

    def _next_time(self) -> float | None:
        """Wait until there is something to decode; return for which time, None at the end."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._is_closed:
                return None
            self._decoded_s = max(self._decoded_s + STEP_S, self._time_s)
            return self._decoded_s

    def _has_work(self) -> bool:
        is_behind = self._decoded_s < self._time_s + AHEAD_S
        return self._is_closed or (is_behind and len(self._ready) < AHEAD_PICTURES)

    def _at(self, time_s: float) -> Frame:
        return Frame(self._picture, 0, round(time_s * 1e6), _MICROSECONDS)


def reason(name: str, exc: Exception) -> str:
    """Say why a background cannot be shown."""
    return str(exc) if isinstance(exc, VidmatteError) else f"{name}: cannot be shown: {exc}"
