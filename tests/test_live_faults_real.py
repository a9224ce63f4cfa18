"""Faults of a live session with the real cameras, networks and mattes, and no look at the room."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from live_fakes import BACKGROUND, ROOM_SEEN, SOON_S, MemoryCamera, TaggedCamera

from vidmatte.backends import Backend, Request
from vidmatte.errors import VidmatteError, VirtualCameraLostError
from vidmatte.frames import plane_views
from vidmatte.live.contracts import LiveChoice
from vidmatte.live.rack import BackgroundRack
from vidmatte.live.session import LiveSession
from vidmatte.matting import MattingChoice
from vidmatte.pipeline import Stop
from vidmatte.sources.camera import CameraChoice, open_camera

pytestmark = pytest.mark.fault


class LookingCamera(MemoryCamera):
    """A virtual camera that only looks for brightness: the room of these tests is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = 0
        self.dark = 0
        self.bright_corners = 0

    def send(self, picture: av.VideoFrame) -> None:
        if not self.is_there:
            raise VirtualCameraLostError("virtual camera: it is gone")
        luma = plane_views(picture)[0]
        seen = int(luma.max()) >= ROOM_SEEN
        self.bright_corners += int(luma[:8, :8].max()) >= ROOM_SEEN
        self.bright, self.dark = self.bright + seen, self.dark + (not seen)


def run_for(
    session: LiveSession, until: Callable[[], bool], lines: list[str]
) -> VidmatteError | None:
    """Run a session until a condition; return the error that ended it before."""
    stop = Stop()
    deadline = time.monotonic() + SOON_S

    def tick() -> None:
        lines.extend(session.events())
        if until() or time.monotonic() > deadline:
            session.end()

    try:
        session.run(stop, tick, tick_s=0.01)
    except VidmatteError as error:
        return error
    assert time.monotonic() < deadline, lines
    return None


def bright_stream(frames: int) -> bytes:
    """A bright room as MPEG-TS, as a camera program would write it into a FIFO."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=Fraction(30))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(frames):
            image = np.full((96, 128, 3), 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are a Unix thing")
def test_a_fifo_camera_dies_and_returns(tmp_path: Path) -> None:
    """The matte is a disc about the middle: no corner of the bright room may ever be seen."""
    fifo = tmp_path / "camera.ts"
    os.mkfifo(fifo)
    data = bright_stream(40)
    piece = -(-len(data) // 40)
    ended = threading.Event()

    def feed() -> None:
        while not ended.is_set():
            try:
                file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it yet
                time.sleep(0.02)
                continue
            try:
                os.set_blocking(file, True)
                for start in range(0, len(data), piece):  # a picture at a time, as it is taken
                    os.write(file, data[start : start + piece])
                    time.sleep(1 / 60)
            except BrokenPipeError:
                pass
            finally:
                os.close(file)
            time.sleep(0.1)

    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    output, lines = LookingCamera(), list[str]()
    session = LiveSession(
        lambda: open_camera(CameraChoice(str(fifo))),
        output.open,
        BackgroundRack([BACKGROUND]),
        MattingChoice(backend="null:disc", model="live"),
        LiveChoice(reconnect_timeout_s=SOON_S, govern=False),
        open_mattes=None,
    )
    try:
        error = run_for(session, lambda: lines.count("the camera is back") >= 2, lines)
    finally:
        ended.set()
        writer.join(SOON_S)
    assert error is None
    assert output.bright > 0, "the disc was seen"
    assert output.dark > 0, "and between, the background alone"
    assert output.bright_corners == 0
    counts = session.status().counts
    assert counts.in_flight == 0
    assert counts.captured == counts.shown + counts.dropped


class BreakingBackend:
    """The null backend's answers, until they are wished to be something else."""

    def __init__(self, request: Request) -> None:
        from vidmatte.backends.null import open_backend

        self._inner = open_backend(request)
        self.name, self.description = "breaking", "breaking"
        self.input_size, self.batch = self._inner.input_size, self._inner.batch

    def infer(self, image_NHW3: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        fault = BreakingBackend.fault
        if fault == "raise":
            raise RuntimeError("the driver went away")
        found = np.zeros_like(self._inner.infer(image_NHW3))
        if fault == "nan":
            found[:] = np.nan
        return found

    def close(self) -> None:
        self._inner.close()

    fault = ""


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_the_real_matting_fails_closed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidmatte import matting as matting_module

    def open_breaking(model: object, *, size: tuple[int, int], **options: object) -> Backend:
        request = Request(model, "cpu", size, 1, "auto", 1)  # type: ignore[arg-type]
        return BreakingBackend(request)

    monkeypatch.setattr(matting_module, "open_backend", open_breaking)
    monkeypatch.setattr(BreakingBackend, "fault", "")
    camera, output, lines = TaggedCamera(Fraction(30)), LookingCamera(), list[str]()
    session = LiveSession(
        camera.open,
        output.open,
        BackgroundRack([BACKGROUND]),
        MattingChoice(backend="null"),
        LiveChoice(reconnect_timeout_s=SOON_S),
    )

    def until() -> bool:
        shown = session.status().counts.shown
        if shown >= 5 and not any("only the background" in line for line in lines):
            BreakingBackend.fault = fault
        elif any("only the background" in line for line in lines):
            BreakingBackend.fault = ""
        return "the background is removed again" in lines

    assert run_for(session, until, lines) is None
    assert output.bright == 0
    assert output.dark > 5
