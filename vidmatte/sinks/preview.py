"""Show pictures in a window, which has a process of its own, and take its keys."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from vidmatte.errors import CancelledError, OutputError
from vidmatte.pipeline import Crew, Latest

if TYPE_CHECKING:
    import av

TITLE = "vidmatte"
LARGEST = (1280, 720)  # what is larger is shown smaller: a preview need not cost a whole core
OPEN_S = 20.0  # what opening the window may take
PUMP_S = 0.03  # between messages, so that the window draws itself and hears keys
END_S = 2.0  # what the window may take to go away
WINDOW = Path(__file__).with_name("_window.py")
READY = b"\x06"  # what the window's process says first


class Preview:
    """A window. `open` makes one; `closed` tells when the user has closed it, or it has crashed.

    Everything may be called on one thread, and nothing waits for the window.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pictures: Latest[av.VideoFrame] = Latest()
        self._keys: deque[str] = deque()
        self._closed = False
        self._crew = Crew()
        self._crew.start("window", self._show_all, behind=True)
        self._crew.start("window-keys", self._take_keys)

    @classmethod
    def open(cls) -> Self:
        """Open the window; raises OutputError where none can be."""
        reason = _why_no_display()
        if reason is None:
            process, reason = _open_window()
            if process is not None:
                return cls(process)
        raise OutputError(f"no window can be opened: {reason}", hint=_what_to_do())

    def show(self, picture: av.VideoFrame) -> None:
        """Show a picture of any format, which is only read; what comes too early is left out."""
        self._pictures.put(picture)

    def keys(self) -> list[str]:
        """Return the keys pressed since the last call, one character each ("\\x1b" is Escape)."""
        pressed = []
        while self._keys:
            pressed.append(self._keys.popleft())
        return pressed

    @property
    def closed(self) -> bool:
        """Whether the window is gone, by the user, by an error of its own or by `close`."""
        return self._closed or self._process.poll() is not None

    def close(self) -> None:
        """Close the window; closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._pictures.cancel()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._crew.join(END_S)
        _close_pipes(self._process)

    def _show_all(self) -> None:
        """Send pictures to the window until told to end; on a thread of its own."""
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        pipe = _pipe(self._process.stdin)
        try:
            while True:
                picture = self._pictures.get(PUMP_S)
                if picture is None:
                    pipe.write(bytes(8))
                else:
                    width, height = shown_size(picture.width, picture.height)
                    bgr = reformatter.reformat(
                        picture, width, height, "bgr24", interpolation="FAST_BILINEAR"
                    )
                    pipe.write(width.to_bytes(4, "little") + height.to_bytes(4, "little"))
                    pipe.write(bgr.to_ndarray().data)
                pipe.flush()
                del picture
        except (CancelledError, OSError):  # told to end, or the window has gone
            with suppress(OSError):
                pipe.close()

    def _take_keys(self) -> None:
        pipe = _pipe(self._process.stdout)
        while data := pipe.read(1):
            self._keys.append(data.decode("ascii", "replace"))


def _open_window() -> tuple[subprocess.Popen[bytes], None] | tuple[None, str]:
    """Start the window's process and wait until it is there; return it, or why it is not."""
    # -P: a cv2.py in the current folder is not ours to run.
    command = [sys.executable, "-P", str(WINDOW), TITLE]
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
        except OSError as exc:
            return None, (exc.strerror or str(exc)).lower()
        crew, answer = Crew(), Latest[bytes]()
        crew.start("window-open", lambda: _read_answer(process, answer))
        first = answer.get(OPEN_S)
        if first == READY:
            crew.join(END_S)
            return process, None
        process.kill()
        process.wait()
        crew.join(END_S)
        _close_pipes(process)
        if first is None:
            return None, "the display does not answer"
        said.seek(0)
        return None, _reason(said.read().decode(errors="replace"))


def _read_answer(process: subprocess.Popen[bytes], answer: Latest[bytes]) -> None:
    answer.put(_pipe(process.stdout).read(1))


def _pipe(stream: object) -> BinaryIO:
    assert stream is not None
    return stream  # type: ignore[return-value]


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            _pipe(pipe).close()


def _reason(text: str) -> str:
    """Choose the line that tells why the window library gave up."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if "display" in line), None)
    return told or (lines[-1] if lines else "the window library ended itself")


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Fit a size into `LARGEST`, never enlarging."""
    scale = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _why_no_display() -> str | None:
    if sys.platform != "linux":
        return None
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        return "there is no display (DISPLAY is not set)"
    return None


def _what_to_do() -> str:
    if sys.platform == "linux":
        return "run it in a desktop session, or leave --preview out"
    return "leave --preview out"
