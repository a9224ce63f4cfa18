"""The camera's thread: open, read, hand over the newest picture, and come back after a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidmatte.errors import CameraLostError, InputError
from vidmatte.live.pacing import Patience, Thinner
from vidmatte.live.shared import NO_TROUBLE

if TYPE_CHECKING:
    from vidmatte.frames import Frame
    from vidmatte.live.contracts import OpenCamera
    from vidmatte.live.shared import Shared
    from vidmatte.sources.camera import Camera

GAP_S = 1.0  # between pictures: after it the scene may be another
IDLE_S = 0.1  # between looks at whether the camera is wanted again


class Intake:
    """Reads the camera until the session ends; raises what can never work, or took too long.

    A camera that is lost is opened again. The first picture after it counts as its return.
    """

    def __init__(self, shared: Shared, open_camera: OpenCamera) -> None:
        self._shared = shared
        self._open_camera = open_camera
        self._patience = Patience(shared.choice.reconnect_timeout_s)
        self._thinner = Thinner()
        self._size: tuple[int, int] | None = None
        self._last_s: float | None = None
        self.waits_since_s: float | None = None  # for a picture, for whoever watches

    def run(self) -> None:
        """Work until told to end."""
        shared = self._shared
        while not shared.has_ended.is_set():
            if shared.is_idle.is_set():
                shared.has_ended.wait(IDLE_S)
                continue
            camera = self._open()
            if camera is None:
                continue
            try:
                self._read(camera)
            finally:
                self.waits_since_s = None
                camera.close()

    def _open(self) -> Camera | None:
        """Open the camera; None to try again. Raises when that is pointless."""
        try:
            camera = self._open_camera()
        except InputError as exc:
            if self._shared.info is None and not isinstance(exc, CameraLostError):
                raise
            self._lose(exc)
            return None
        shared = self._shared
        shared.info = camera.info
        shared.is_described.set()
        shared.pacer.expect(max(shared.camera_s, shared.wanted_s or 0.0) / shared.rate_share)
        return camera

    def _lose(self, error: InputError) -> None:
        """Say once that the camera is gone, wait before the next try; raise after the time-out."""
        shared = self._shared
        if not self._patience.is_waiting:
            shared.say_lost(error)
            shared.trouble = "waiting for the camera"
        pause_s = self._patience.failed(shared.now())
        if pause_s is None:
            raise error
        shared.has_ended.wait(pause_s)

    def _read(self, camera: Camera) -> None:
        """Hand pictures over until the camera is lost, unwanted, or the session ends."""
        shared = self._shared
        while not shared.has_ended.is_set() and not shared.is_idle.is_set():
            self.waits_since_s = shared.now()
            try:
                frame = camera.read()
            except InputError as exc:
                shared.reset()
                self._lose(exc)
                return
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        shared = self._shared
        if self._patience.is_waiting:
            self._patience.succeeded()
            shared.trouble = NO_TROUBLE
            shared.say("the camera is back")
        self._notice_changes(frame)
        now_s = shared.now()
        if not self._thinner.accept(frame.time_s, shared.wanted_s, shared.rate_share):
            shared.ledger.pass_over(now_s)
            return
        shared.used += 1
        shared.pacer.captured(frame.time_s)
        if shared.mode == "frozen":
            shared.ledger.pass_over(now_s)
            return
        shared.ledger.capture(shared.waiting, frame, now_s)

    def _notice_changes(self, frame: Frame) -> None:
        """Let the matting begin anew after a gap or a change of size."""
        size = frame.picture.width, frame.picture.height
        if self._size is not None and size != self._size:
            self._shared.say(f"the camera's pictures are {size[0]}x{size[1]} now")
            self._shared.reset()
        if self._last_s is not None and frame.time_s - self._last_s > GAP_S:
            self._shared.reset()
        self._size, self._last_s = size, frame.time_s
