"""What the threads of a session share: wishes, slots, counts, and when to end."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from vidmatte.live.ledger import Ledger
from vidmatte.live.pacing import Pacer
from vidmatte.pipeline import Latest

if TYPE_CHECKING:
    from vidmatte.errors import VidmatteError
    from vidmatte.frames import Frame, VideoInfo
    from vidmatte.live.contracts import LiveChoice, Mode
    from vidmatte.live.shutter import Ready

MAX_EVENTS = 200  # kept for a reader who does not come
NO_TROUBLE = "one moment"
NOMINAL_S = 1 / 30  # between pictures, before the camera says


class Shared:
    """The state of a session that more than one thread sees. Simple values are set whole."""

    def __init__(self, choice: LiveChoice) -> None:
        self.choice = choice
        self.mode: Mode = "matte"
        self.mirror = choice.mirror
        self.bare = False  # whether `none` is the background: set by the computing thread
        self.wanted_s = None if choice.rate is None else float(1 / choice.rate)
        self.rate_share = 1.0  # of the pictures that the governor lets through
        self.used = 0  # pictures that were to be worked on, so far: set by the camera's thread
        self.level = ""  # what the governor gave up, in words
        self.resets = 0  # asked for so far: what came before does not belong to what follows
        self.trouble = NO_TROUBLE  # why the background is shown alone, for the notice
        self.has_ended = threading.Event()
        self.is_idle = threading.Event()
        self.waiting: Latest[Frame] = Latest()
        self.ready: Latest[Ready] = Latest()
        self.ledger = Ledger()
        self.pacer = Pacer(self.wanted_s or NOMINAL_S)
        self.info: VideoInfo | None = None  # of the camera that was opened last
        self.is_described = threading.Event()  # whether `info` is there
        self._events: deque[str] = deque(maxlen=MAX_EVENTS)

    def now(self) -> float:
        """Return the time, in seconds of the session's one clock."""
        return time.monotonic()

    def wall(self) -> float:
        """Return the time of day, which goes on while the machine sleeps."""
        return time.time()

    @property
    def camera_s(self) -> float:
        """Seconds between the camera's pictures, as it says itself."""
        rate = 0 if self.info is None else self.info.frame_rate
        return float(1 / rate) if rate else NOMINAL_S

    def reset(self) -> None:
        """Ask that the matting forgets what it saw."""
        self.resets += 1

    def say(self, line: str) -> None:
        """Keep a line for whoever watches."""
        self._events.append(line)

    def say_lost(self, error: VidmatteError) -> None:
        """Tell that something is missing and waited for, and what can be done about it."""
        self.say(f"{error}; waiting up to {self.choice.reconnect_timeout_s:g} s for it")
        if error.hint is not None:
            self.say(error.hint)

    def events(self) -> list[str]:
        """Return the lines since the last call."""
        lines = []
        while self._events:
            lines.append(self._events.popleft())
        return lines

    def end(self) -> None:
        """Tell every thread to end; pictures on their way are counted as dropped."""
        self.has_ended.set()
        self.ledger.empty(self.waiting)
        self.ledger.empty(self.ready)
