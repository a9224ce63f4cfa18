"""The computing thread: the newest picture, its matte, the composite, and no way around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.composite import Compositor
from vidmatte.errors import BackendError, CancelledError, VidmatteError
from vidmatte.frames import Frame, plane_views
from vidmatte.live.contracts import LAYOUT
from vidmatte.live.governing import Governing
from vidmatte.live.pacing import Patience
from vidmatte.live.shared import NO_TROUBLE
from vidmatte.live.shutter import Ready

if TYPE_CHECKING:
    from vidmatte.compute.cpu.background import Background
    from vidmatte.frames import VideoInfo
    from vidmatte.live.contracts import Mattes, Rack
    from vidmatte.live.shared import Shared

logger = logging.getLogger(__name__)


class Rendering:
    """Makes pictures to send of what the camera gives, until the session ends.

    A network that fails is closed and opened again; other errors cost their picture. Either ends
    the session when nothing has worked for the reconnect time-out.
    """

    def __init__(
        self,
        shared: Shared,
        rack: Rack,
        info: VideoInfo,
        open_mattes: Callable[[], Mattes],
    ) -> None:
        self._shared = shared
        self._rack = rack
        self._info = info
        self._open_mattes = open_mattes
        self._patience = Patience(shared.choice.reconnect_timeout_s)
        self._retry_s = float("-inf")
        self._resets = shared.resets
        self._mirror = shared.mirror
        self._over: tuple[Background, Compositor] | None = None
        self._governing: Governing | None = None
        self.mattes: Mattes | None = None
        self.busy_since_s: float | None = None  # with one picture, for whoever watches

    def run(self) -> None:
        """Open the network, then work until told to end; raises what opening it raises."""
        self._open()
        try:
            while True:
                frame = self._shared.waiting.get()
                assert frame is not None
                self._attend(frame)
                del frame  # a picture must not be kept alive while waiting for the next
        finally:
            if self.mattes is not None:
                self.mattes.close()

    def _attend(self, frame: Frame) -> None:
        """Turn one picture into one that is ready, or drop it."""
        shared = self._shared
        self.busy_since_s = taken_s = shared.now()
        ready = None
        try:
            ready = self._guarded(frame, taken_s)
        finally:
            self.busy_since_s = None
            if ready is None:
                shared.ledger.drop()
        if ready is not None:
            shared.pacer.ready(ready.capture_s, ready.ready_s)
            shared.ledger.hand_over(shared.ready, ready)

    def _guarded(self, frame: Frame, taken_s: float) -> Ready | None:
        """Render; an error costs the picture, is told once, and ends the session after a while."""
        try:
            mattes = self._working_mattes(taken_s)
            ready = None if mattes is None else self._render(mattes, frame, taken_s)
        except CancelledError:
            raise
        except BackendError as exc:
            self._close_mattes()
            self._fail(exc)
            return None
        except Exception as exc:  # noqa: BLE001 - whatever it is, the room stays out of sight
            self._fail(exc)
            return None
        if ready is not None and self._patience.is_waiting:
            self._patience.succeeded()
            self._shared.trouble = NO_TROUBLE
            self._shared.say("the background is removed again")
        return ready

    def _fail(self, error: Exception) -> None:
        shared = self._shared
        if not self._patience.is_waiting:
            logger.debug("a picture failed", exc_info=error)
            text = str(error) if isinstance(error, VidmatteError) else repr(error)
            timeout_s = shared.choice.reconnect_timeout_s
            shared.say(f"{text}; only the background is shown; trying again for {timeout_s:g} s")
            shared.trouble = "the background cannot be removed"
        pause_s = self._patience.failed(shared.now())
        if pause_s is None:
            raise error
        if self.mattes is None:
            self._retry_s = shared.now() + pause_s

    def _working_mattes(self, now_s: float) -> Mattes | None:
        """Return the mattes; those that failed are opened again when it is time."""
        if self.mattes is None and now_s >= self._retry_s:
            self._open()
        return self.mattes

    def _open(self) -> None:
        self.mattes = self._open_mattes()
        self._governing = Governing(self._shared, self.mattes)

    def _close_mattes(self) -> None:
        mattes, self.mattes = self.mattes, None
        if mattes is not None:
            mattes.close()

    def _render(self, mattes: Mattes, frame: Frame, taken_s: float) -> Ready | None:
        shared = self._shared
        mirror = shared.mirror
        if self._resets != shared.resets or mirror != self._mirror:
            self._resets, self._mirror = shared.resets, mirror
            mattes.reset()
        conformed = mattes.conform(frame)
        if mirror:
            conformed = mirrored(conformed)
        background = self._rack.current()
        shared.bare = background is None
        if shared.mode == "pass-through" or background is None:
            return Ready(conformed.picture, frame.time_s, taken_s, shared.now(), bare=True)
        matte = mattes.matte(conformed)
        picture = None if matte is None else self._compositor(background).composite(matte)
        ready_s = shared.now()
        assert self._governing is not None, "opened with the mattes"
        self._governing.heard(ready_s - taken_s, ready_s)
        if picture is None:
            return None
        picture.pts, picture.time_base = frame.pts, frame.time_base
        return Ready(picture, frame.time_s, taken_s, ready_s, bare=False)

    def _compositor(self, background: Background) -> Compositor:
        if self._over is None or self._over[0] is not background:
            size = self._info.width, self._info.height
            self._over = background, Compositor(LAYOUT, *size, background=background)
        return self._over[1]


def mirrored(frame: Frame) -> Frame:
    """Return the frame with its picture flipped left to right, as in a mirror."""
    import av

    cv2 = load_cv2()
    source = frame.picture
    picture = av.VideoFrame(source.width, source.height, source.format.name)
    picture.colorspace, picture.color_range = source.colorspace, source.color_range
    picture.color_primaries, picture.color_trc = source.color_primaries, source.color_trc
    for out, plane in zip(plane_views(picture, writable=True), plane_views(source), strict=True):
        cv2.flip(plane, 1, dst=out)
    picture.pts, picture.time_base = frame.pts, frame.time_base
    return replace(frame, picture=picture)
