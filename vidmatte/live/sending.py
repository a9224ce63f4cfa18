"""The sending thread: on every tick one picture, and only one that may be shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vidmatte.errors import OutputError, VirtualCameraLostError
from vidmatte.live.pacing import Patience, SleepWatch
from vidmatte.live.shutter import Ready, Shutter

if TYPE_CHECKING:
    import av

    from vidmatte.live.contracts import Rack, Recorder, State
    from vidmatte.live.shared import Shared
    from vidmatte.sinks.virtualcam import VirtualCamera

IDLE_TICK_S = 0.5  # between pictures while nobody looks


class Sending:
    """Paces pictures to the virtual camera and the recording; `open_output` may be None.

    A virtual camera that is lost is opened again; pictures are dropped meanwhile.
    """

    def __init__(
        self,
        shared: Shared,
        rack: Rack,
        open_output: Callable[[], VirtualCamera] | None,
        recorder: Recorder | None,
    ) -> None:
        self._shared = shared
        self._rack = rack
        self._open_output = open_output
        self._recorder = recorder
        self._patience = Patience(shared.choice.reconnect_timeout_s)
        self._retry_s = float("-inf")
        self._was_open = False
        self._has_shown = False  # a picture; the recording begins with the first
        self._shutter = Shutter()
        self._sleep_watch = SleepWatch()
        self.output: VirtualCamera | None = None
        self.picture: av.VideoFrame | None = None  # the last one sent
        self.state: State = "closed"

    def run(self) -> None:
        """Send until the session ends, then close what is sent to."""
        shared = self._shared
        try:
            while not self._wait_for_tick():
                self._wake_from_sleep()
                if self._open_output is None or self._is_connected():
                    self._tick(shared.ready.get(0.0))
                elif shared.ready.get(0.0) is not None:
                    shared.ledger.drop()
        finally:
            if self.output is not None:
                self.output.close()
            if self._recorder is not None:
                self._recorder.close()

    def _wait_for_tick(self) -> bool:
        """Wait until the next picture is due; return whether the session has ended."""
        shared = self._shared
        if shared.is_idle.is_set():
            return shared.has_ended.wait(IDLE_TICK_S)
        now_s = shared.now()
        return shared.has_ended.wait(shared.pacer.next_tick(now_s) - now_s)

    def _wake_from_sleep(self) -> None:
        shared = self._shared
        if self._sleep_watch.has_slept(shared.now(), shared.wall()):
            shared.reset()
            self._shutter.forget(shared.now())

    def _is_connected(self) -> bool:
        """Whether the virtual camera is open; opens it where it is time to."""
        shared = self._shared
        if self.output is None and shared.now() >= self._retry_s:
            assert self._open_output is not None
            try:
                self.output = self._open_output()
            except OutputError as exc:
                if not self._was_open and not isinstance(exc, VirtualCameraLostError):
                    raise
                self._lose(exc)
                return False
            self._was_open = True
        return self.output is not None

    def _lose(self, error: OutputError) -> None:
        """Say once that it is gone; raise when it does not come back."""
        shared = self._shared
        if self.output is not None:
            output, self.output = self.output, None
            output.close()
        if not self._patience.is_waiting:
            shared.say_lost(error)
        pause_s = self._patience.failed(shared.now())
        if pause_s is None:
            raise error
        self._retry_s = shared.now() + pause_s

    def _tick(self, candidate: Ready | None) -> None:
        """Send one picture and count it; the candidate too, whatever becomes of it."""
        shared, ledger = self._shared, self._shared.ledger
        now_s = shared.now()
        if shared.is_idle.is_set():
            verdict, chosen = "closed", None
        else:
            verdict, chosen = self._shutter.decide(
                candidate,
                now_s,
                mode=shared.mode,
                bare=shared.bare and self._rack.shows_room,
                period_s=shared.pacer.period_s,
            )
        if verdict == "new":
            assert chosen is not None
            ledger.show(chosen.capture_s, now_s)
            self._has_shown = True
        elif candidate is not None:
            ledger.drop()
        picture = self._closed_picture() if chosen is None else chosen.picture
        if not self._send(picture):
            if verdict == "new":
                ledger.take_back()
            return
        if verdict == "again":
            ledger.repeat(now_s)
        elif verdict == "closed":
            ledger.close(now_s)
        self.state = self._state_of(chosen)
        self.picture = picture

    def _closed_picture(self) -> av.VideoFrame:
        shared = self._shared
        notice = shared.trouble if shared.choice.notice and not shared.is_idle.is_set() else None
        return self._rack.closed_picture(notice)

    def _send(self, picture: av.VideoFrame) -> bool:
        if self.output is not None:
            try:
                self.output.send(picture)
            except OutputError as exc:
                self._lose(exc)
                return False
            if self._patience.is_waiting:
                self._patience.succeeded()
                self._shared.say(f"the virtual camera is back: {self.output.device}")
        if self._recorder is not None and self._has_shown:
            self._recorder.offer(picture, self._shared.now())
        return True

    def _state_of(self, chosen: Ready | None) -> State:
        """Name what was just sent."""
        shared = self._shared
        if shared.is_idle.is_set():
            return "idle"
        if chosen is None:
            return "closed"
        if shared.mode == "frozen":
            return "frozen"
        if not chosen.bare:
            return "matte"
        return "none" if shared.bare else "pass-through"
