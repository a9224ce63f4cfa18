"""A live session: a camera in, pictures out on time, the background gone, the room never shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from vidmatte.backends import usable_cores
from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.errors import BackendError, CameraLostError
from vidmatte.frames import RANGE_LIMITED, Colour, VideoInfo
from vidmatte.live.contracts import (
    LAYOUT,
    MICROSECONDS,
    LiveChoice,
    LiveResult,
    LiveStatus,
    Mattes,
    Mode,
    OpenCamera,
    OpenMattes,
    OpenOutput,
    Rack,
    Recorder,
)
from vidmatte.live.governor import PRESETS
from vidmatte.live.intake import Intake
from vidmatte.live.mattes import LiveMatting
from vidmatte.live.rendering import Rendering
from vidmatte.live.sending import Sending
from vidmatte.live.shared import NO_TROUBLE, Shared
from vidmatte.pipeline import Crew, Stop
from vidmatte.threads import thread_budget

if TYPE_CHECKING:
    import av

    from vidmatte.matting import MattingChoice
    from vidmatte.sinks.virtualcam import VirtualCamera

WAITING_S = 0.1  # between looks at whether the camera has told its size
UNREAD_S = 5.0  # without a reader, after which the camera is switched off
LOOK_S = 0.5  # between looks at readers and at threads that may hang
SILENT_S = 2.0  # without an answer, after which it is told
SWITCH_S = 0.001  # after which a Python thread lets others run: ticks are to be on time


class LiveSession:
    """One camera, one network, one virtual camera, one background at a time.

    `open_camera` and `open_output` (None: nothing but `picture` and the recording) are called
    again after a loss, each on a thread of its own; so is `open_mattes`, which by default opens
    what `matting` chooses. `run` does the work; everything else may be called by any thread
    meanwhile.
    """

    def __init__(
        self,
        open_camera: OpenCamera,
        open_output: OpenOutput | None,
        rack: Rack,
        matting: MattingChoice,
        choice: LiveChoice,
        recording: Recorder | None = None,
        *,
        open_mattes: OpenMattes | None = None,
    ) -> None:
        self._choice = choice
        self._shared = Shared(choice)
        self._rack = rack
        self._open_output = open_output
        self._open_mattes = open_mattes or partial(_live_mattes, matting, choice.preset)
        self._recording = recording
        self._crew = Crew()
        self._intake = Intake(self._shared, open_camera)
        self._rendering: Rendering | None = None
        self._sending: Sending | None = None
        self._unread_since_s: float | None = None
        self._next_look_s = 0.0
        self._told: set[str] = set()

    def run(self, stop: Stop, on_tick: Callable[[], None], *, tick_s: float = 0.05) -> LiveResult:
        """Work until asked to stop or `end`; `on_tick` runs on this thread.

        Raises VidmatteError for what does not work at all, and for what was gone too long.
        """
        began_s = time.monotonic()
        hanging: list[str] = []
        with _prompt_threads():
            try:
                self._crew.start("camera", self._intake.run)
                self._crew.start("compute", self._compute)
                ended = self._shared.has_ended.is_set
                while not stop.wait(ended, tick_s) and not stop.requested:
                    self._crew.check()
                    self._watch()
                    on_tick()
            finally:
                self._shared.end()
                self._rack.close()
                hanging = self._crew.join()
        self._crew.check()
        return LiveResult(self.status(), time.monotonic() - began_s, stop.reason, tuple(hanging))

    def end(self) -> None:
        """Let `run` return."""
        self._shared.has_ended.set()

    def show(self, mode: Mode) -> None:
        """Choose what is sent from now on."""
        self._shared.mode = mode

    @property
    def mode(self) -> Mode:
        """What is wanted now."""
        return self._shared.mode

    def mirror(self, on: bool) -> None:
        """Flip the camera's pictures left to right, or not."""
        self._shared.mirror = on

    def events(self) -> list[str]:
        """Return what happened since the last call, a line each."""
        lines = self._shared.events() + self._rack.events()
        return lines if self._recording is None else lines + self._recording.events()

    def picture(self) -> av.VideoFrame | None:
        """Return the picture sent last, which nobody writes into; None before the first."""
        return None if self._sending is None else self._sending.picture

    def status(self) -> LiveStatus:
        """Return how it goes."""
        shared, ledger = self._shared, self._shared.ledger
        in_fps, out_fps = ledger.rates(shared.now())
        p50_ms, p95_ms = ledger.latency_ms()
        mattes = None if self._rendering is None else self._rendering.mattes
        return LiveStatus(
            state="closed" if self._sending is None else self._sending.state,
            counts=ledger.counts,
            in_fps=in_fps,
            out_fps=out_fps,
            latency_p50_ms=p50_ms,
            latency_p95_ms=p95_ms,
            level=shared.level,
            device="" if mattes is None else mattes.description,
            background=self._rack.label,
            mirror=shared.mirror,
            present=mattes is None or mattes.present,
        )

    def _compute(self) -> None:
        """Set the stage when the size is known, then render; on the computing thread."""
        shared = self._shared
        while self._choice.size is None and not shared.is_described.wait(WAITING_S):
            if shared.has_ended.is_set():
                return
        info = session_info(self._choice, shared.info)
        load_cv2().setNumThreads(thread_budget(usable_cores()).opencv)
        self._rack.start(info, LAYOUT, self._crew)
        if self._recording is not None:
            self._recording.start(info, self._crew)
        self._sending = Sending(shared, self._rack, self._opener(info), self._recording)
        self._crew.start("send", self._sending.run)
        self._rendering = Rendering(
            shared, self._rack, info, lambda: self._open_mattes(info, self._crew)
        )
        self._rendering.run()

    def _opener(self, info: VideoInfo) -> Callable[[], VirtualCamera] | None:
        opened = self._open_output
        if opened is None:
            return None
        return lambda: opened(info.width, info.height, info.frame_rate)

    def _watch(self) -> None:
        """Look, now and then, for readers that went and threads that do not answer."""
        now_s = self._shared.now()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        self._watch_readers(now_s)
        rendering = self._rendering
        since_s = None if rendering is None else rendering.busy_since_s
        if self._is_silent("the network does not answer", since_s, now_s):
            raise BackendError("the network does not answer", hint="try --device cpu")
        if self._is_silent("the camera gives no pictures", self._intake.waits_since_s, now_s):
            raise CameraLostError("the camera gives no pictures", hint="plug it in again")

    def _is_silent(self, line: str, since_s: float | None, now_s: float) -> bool:
        """Tell once that a thread is stuck; whether that lasts longer than one waits."""
        if since_s is None or now_s - since_s < SILENT_S:
            if line in self._told:
                self._told.discard(line)
                self._shared.trouble = NO_TROUBLE
            return False
        if line not in self._told:
            self._told.add(line)
            self._shared.trouble = line
            self._shared.say(f"{line}; only the background is shown")
        return now_s - since_s > self._choice.reconnect_timeout_s

    def _watch_readers(self, now_s: float) -> None:
        """Switch the camera off while nobody reads the virtual one, where the system tells."""
        output = None if self._sending is None else self._sending.output
        if not self._choice.release_idle or self._recording is not None or output is None:
            return
        shared = self._shared
        if output.readers() != 0:
            self._unread_since_s = None
            if shared.is_idle.is_set():
                shared.is_idle.clear()
                shared.say("the virtual camera is read: the camera is switched on")
        elif self._unread_since_s is None:
            self._unread_since_s = now_s
        elif now_s - self._unread_since_s >= UNREAD_S and not shared.is_idle.is_set():
            shared.is_idle.set()
            shared.say("nobody reads the virtual camera: the camera is switched off")


def session_info(choice: LiveChoice, camera: VideoInfo | None) -> VideoInfo:
    """Describe what a session sends: 8-bit 4:2:0 of limited range, of even size."""
    width, height = choice.size or (640, 360)
    rate = choice.rate or Fraction(30)
    colour = Colour()
    if camera is not None:
        width, height = choice.size or (camera.width, camera.height)
        rate = choice.rate or camera.frame_rate
        colour = camera.colour
    matrix = colour.resolved(height).matrix
    return VideoInfo(
        name="live",
        width=width // 2 * 2,
        height=height // 2 * 2,
        pix_fmt=LAYOUT.pix_fmt,
        time_base=MICROSECONDS,
        frame_rate=rate,
        colour=Colour(matrix, RANGE_LIMITED, colour.primaries, colour.transfer),
        is_live=True,
    )


def _live_mattes(matting: MattingChoice, preset: str, info: VideoInfo, crew: Crew) -> Mattes:
    return LiveMatting(info, matting, PRESETS[preset], crew)


@contextmanager
def _prompt_threads() -> Iterator[None]:
    """Let Python switch between threads often enough for ticks to be on time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
