"""Read a FIFO as a camera: another program writes the video, goes and comes back."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from vidmatte.errors import CameraLostError
from vidmatte.sources._stream_camera import LIVE_DEMUXERS, LIVE_OPTIONS, StreamCamera, why

WRITER_S = 1.0  # that a try to open waits for a writer
FIRST_DATA_S = 5.0  # that a writer may think before it writes
SLICE_MS = 100
POLL_S = 0.01


def open_fifo(path: str) -> StreamCamera:
    """Open a FIFO that somebody writes to; raises CameraLostError where nobody does."""
    import av

    pipe = FifoReader(path)
    options = {
        **LIVE_OPTIONS,
        "protocol_whitelist": "none",
        "format_whitelist": LIVE_DEMUXERS,
    }
    try:
        pipe.wait_for_writer()
        container = av.open(pipe, "r", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError, MemoryError) as exc:
        pipe.let_go()
        raise CameraLostError(f"camera {path}: {why(exc)}") from exc
    except BaseException:
        pipe.let_go()
        raise
    camera = StreamCamera(container, path, release=pipe.let_go)
    pipe.is_closed, pipe.patience_s = camera.is_closed, None
    return camera


class FifoReader:
    """The reading end of a FIFO as the file object that FFmpeg reads; never blocks for good.

    `patience_s` bounds the wait for data; None waits as long as a writer is there and `is_closed`
    says no.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._first = b""
        self.is_closed: Callable[[], bool] = lambda: False
        self.patience_s: float | None = FIRST_DATA_S

    def wait_for_writer(self) -> None:
        """Wait a moment for one; raises CameraLostError when none comes.

        The end stays open meanwhile: a writer that finds it closed again dies of SIGPIPE.
        """
        end_s = time.monotonic() + WRITER_S
        while time.monotonic() < end_s:
            try:
                self._first = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return  # somebody is there and has written nothing yet
            if self._first:
                return
            time.sleep(POLL_S)
        raise CameraLostError(
            f"camera {self._path}: nobody writes to this FIFO", hint="start the program that does"
        )

    def read(self, size: int) -> bytes:
        """Return what is there, up to `size` bytes; b"" when the writer has gone."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        end_s = None if self.patience_s is None else time.monotonic() + self.patience_s
        while not self.is_closed():
            if poll.poll(SLICE_MS):
                return os.read(self._descriptor, size)
            if end_s is not None and time.monotonic() > end_s:
                raise CameraLostError(f"camera {self._path}: its writer sends nothing")
        raise CameraLostError(f"camera {self._path}: is closed")

    def let_go(self) -> None:
        """Close the reading end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
