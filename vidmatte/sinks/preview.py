"""Show pictures in a window and take its keys. Everything here belongs on the main thread."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from vidmatte.errors import OutputError

if TYPE_CHECKING:
    import av

TITLE = "vidmatte"
LARGEST = (1280, 720)  # what is larger is shown smaller: a preview need not cost a whole core
PROBE_S = 20.0
KEYS_AT_ONCE = 32
ESCAPE = 27
# Qt aborts the process that cannot reach its display, so another one tries first.
_PROBE = "import cv2; cv2.namedWindow('vidmatte'); cv2.destroyAllWindows()"


class Preview:
    """A window. `open` makes one; `closed` tells when the user has closed it."""

    def __init__(self) -> None:
        import cv2
        from av.video.reformatter import VideoReformatter

        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._reformatter = VideoReformatter()
        self._shown: tuple[int, int] | None = None
        self._closed = False

    @classmethod
    def open(cls) -> Self:
        """Open the window; raises OutputError, and never ends the process, where none can be."""
        reason = _why_no_display() or _why_probe_failed()
        if reason is not None:
            raise OutputError(f"no window can be opened: {reason}", hint=_what_to_do())
        import cv2

        try:
            return cls()
        except cv2.error as exc:
            raise OutputError(
                f"no window can be opened: {_first_line(exc.err)}", hint=_what_to_do()
            ) from exc

    def show(self, picture: av.VideoFrame) -> None:
        """Show a picture of any format, which is only read; nothing once the window is closed."""
        import cv2

        if self.closed:
            return
        width, height = shown_size(picture.width, picture.height)
        bgr = self._reformatter.reformat(
            picture, width, height, "bgr24", interpolation="FAST_BILINEAR"
        )
        if self._shown != (width, height):
            cv2.resizeWindow(TITLE, width, height)
            self._shown = (width, height)
        cv2.imshow(TITLE, bgr.to_ndarray())

    def keys(self) -> list[str]:
        """Return the keys pressed since the last call, one character each ("\\x1b" is Escape).

        This is also what lets the window draw itself: call it often.
        """
        import cv2

        pressed: list[str] = []
        for _ in range(KEYS_AT_ONCE):
            code = cv2.pollKey()
            if code < 0:
                break
            character = code & 0xFF
            if character == ESCAPE or 32 <= character < 127:
                pressed.append(chr(character))
        return pressed

    @property
    def closed(self) -> bool:
        """Whether the window is gone, by the user or by `close`."""
        import cv2

        if not self._closed and self._shown is not None:
            try:
                self._closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            except cv2.error:
                self._closed = True
        return self._closed

    def close(self) -> None:
        """Close the window; closing twice does nothing."""
        import cv2

        if self._closed:
            return
        self._closed = True
        with suppress(cv2.error):  # the user was first
            cv2.destroyWindow(TITLE)
            cv2.pollKey()


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


def _why_probe_failed() -> str | None:
    """Let a process of its own open a window; None when that works."""
    if sys.platform != "linux":
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "the display does not answer"
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return next((line.strip() for line in said if "display" in line), None) or (
        said[-1].strip() if said else "the window library ended itself"
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "the window library refuses"


def _what_to_do() -> str:
    if sys.platform == "linux":
        return "run it in a desktop session, or leave --preview out"
    return "leave --preview out"
