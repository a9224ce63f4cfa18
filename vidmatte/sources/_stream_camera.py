"""A camera that FFmpeg reads as a stream: a device, a network address or a FIFO."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vidmatte.errors import CameraLostError, InputError
from vidmatte.frames import Frame, VideoInfo
from vidmatte.sources import _shared
from vidmatte.sources._describe import describe
from vidmatte.sources._live import Stamper, live_info

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

DECODER_THREADS = 2
DAMAGED_IN_A_ROW = 60  # packets, two seconds: a cable that drops bytes now and then goes on
# What FFmpeg may read before the first picture: it all comes late. Demuxers as for files.
LIVE_OPTIONS = {
    "analyzeduration": "500000",
    "formatprobesize": str(256 << 10),
    "fpsprobesize": "3",
    "max_streams": "256",
    "probesize": str(1 << 20),
}
LIVE_DEMUXERS = f"{_shared.DEMUXERS},mpjpeg"
LONGEST_STEP_S = 2.0  # between pictures of a recording; a larger one is a jump of its clock
AT_ONCE_S = 0.002  # a read that took less found a packet waiting
OLDEST_S = 1.0  # a driver's time stamp that is older, or of the future, is of another clock


class StreamCamera:
    """Reads pictures from an open container as they come and stamps them.

    `wait` is called before reads with the camera's `is_closed`; it may block, and raise
    CameraLostError. It is not called while what FFmpeg read when it opened still comes at once:
    waiting for news then would make each later picture late by as many. With `own_clock` the
    stream's time stamps are capture times of `time.monotonic()` where they can be; else the
    arrival of the packet is taken. `release` is called once, after the container is closed. Takes
    the container over, also when it raises.

    What has a length is a recording, and is played at its own pace.

    `close` may be called from any thread: while another reads, that one closes.
    """

    def __init__(
        self,
        container: InputContainer,
        name: str,
        *,
        own_clock: bool = False,
        wait: Callable[[Callable[[], bool]], None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        self._container, self._name = container, name
        self._own_clock, self._wait, self._release = own_clock, wait, release
        self._waiting: deque[tuple[av.VideoFrame, float]] = deque()
        self._stamper = Stamper()
        self._is_recorded = not own_clock and bool(container.duration)
        self._begins_s: float | None = None
        self._drained = False
        self._reading = threading.Lock()
        self._closed = threading.Event()
        self._open = True
        try:
            self._stream = _shared.video_stream(container, name)
            self._decoder = self._low_delay_decoder()
            self._packets = container.demux(self._stream)
            self._fill()
            first, _ = self._waiting[0]
            self.info: VideoInfo = live_info(describe(name, container, self._stream, first), name)
        except BaseException:
            self._let_go()
            raise

    def read(self) -> Frame:
        """Wait for the next picture; raises CameraLostError at the end and at any failure."""
        with self._reading:
            try:
                if not self._waiting:
                    self._fill()
                picture, captured_s = self._waiting.popleft()
                if self._is_recorded:
                    captured_s = self._wait_until_due(picture, captured_s)
            finally:
                if self._closed.is_set():
                    self._let_go()
        return self._stamper.frame(picture, captured_s)

    def _wait_until_due(self, picture: av.VideoFrame, captured_s: float) -> float:
        """Play what is sent faster than it is shown at its own pace; return the due time."""
        if picture.time is None:
            return captured_s
        if self._begins_s is None:
            self._begins_s = captured_s - picture.time
        due_s = self._begins_s + picture.time
        if due_s <= captured_s or due_s > captured_s + LONGEST_STEP_S:
            self._begins_s = captured_s - picture.time
            return captured_s
        self._closed.wait(due_s - time.monotonic())
        return due_s

    def close(self) -> None:
        """Let the device go, at once or when the thread that reads comes back."""
        self._closed.set()
        if self._reading.acquire(blocking=False):
            self._let_go()
            self._reading.release()

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def _let_go(self) -> None:
        if not self._open:
            return
        self._open = False
        self._waiting.clear()
        self._container.close()
        if self._release is not None:
            self._release()

    def _low_delay_decoder(self) -> av.VideoCodecContext:
        """Decode picture by picture: threads that work on several at once would hold them back."""
        context: av.VideoCodecContext | None = self._stream.codec_context
        if context is None:
            raise InputError(
                f"camera {self._name}: no decoder knows its video format",
                hint="choose another format of the camera, like H.264 or MJPEG",
            )
        context.options = {"max_pixels": str(_shared.MAX_PIXELS), "flags": "+low_delay"}
        context.thread_type = "SLICE"
        context.thread_count = DECODER_THREADS
        return context

    def _fill(self) -> None:
        """Read until there is a picture."""
        import av

        damaged = 0
        while not self._waiting:
            packet = self._next_packet()
            arrived_s = time.monotonic()
            try:
                pictures = self._decoder.decode(packet if packet.size else None)
            except av.error.EOFError:
                continue
            except (av.FFmpegError, ValueError) as exc:
                damaged += 1
                if damaged > DAMAGED_IN_A_ROW:
                    raise CameraLostError(f"camera {self._name}: sends only damage") from exc
                continue
            self._waiting.extend((p, self._captured_s(p, arrived_s)) for p in pictures)

    def _next_packet(self) -> av.Packet[av.VideoStream]:
        import av

        if self.is_closed():
            raise CameraLostError(f"camera {self._name}: is closed")
        if self._wait is not None and self._drained:
            self._wait(self.is_closed)
        asked_s = time.monotonic()
        try:
            packet = next(self._packets)
        except (StopIteration, av.error.InvalidDataError):
            raise CameraLostError(f"camera {self._name}: its stream has ended") from None
        except (av.FFmpegError, OSError) as exc:
            raise CameraLostError(f"camera {self._name}: {why(exc)}") from exc
        self._drained = self._drained or time.monotonic() - asked_s > AT_ONCE_S
        return packet

    def _captured_s(self, picture: av.VideoFrame, arrived_s: float) -> float:
        if self._own_clock and picture.pts is not None and picture.time_base is not None:
            stamp_s = float(picture.pts * picture.time_base)
            if 0 <= arrived_s - stamp_s <= OLDEST_S:
                return stamp_s
        return arrived_s


def why(exc: BaseException) -> str:
    """Put FFmpeg's or the system's reason into words, without the address it may repeat."""
    import av

    if isinstance(exc, av.error.ExitError):
        return "has sent nothing for too long"
    if isinstance(exc, (av.error.InvalidDataError, av.error.ArgumentError)):
        return "sends nothing that can be read as video"
    if isinstance(exc, OSError) and exc.errno == errno.EIO:
        return "broke off"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return type(exc).__name__
