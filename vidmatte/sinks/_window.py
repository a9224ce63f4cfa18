"""The process that owns the preview's window: pictures come in by standard input, keys go out.

It is run by its path and imports OpenCV alone. Once PyAV is loaded, a window of OpenCV's hangs for
ever: Qt then gets the libxcb that PyAV brings along (seen with PyAV 18.1 and OpenCV 5.0 on Linux).
And Qt ends its process when the display goes away, which must not be the one of a call.
"""

from __future__ import annotations

import signal
import sys
from typing import BinaryIO

import cv2
import numpy as np

READY = b"\x06"  # sent once, when the window is there
KEYS_AT_ONCE = 32
ESCAPE = 27


def main(title: str) -> None:
    """Show pictures until standard input ends or the user closes the window.

    A message is width and height, four bytes each, and BGR rows; without pixels it only lets the
    window live. Keys go out as one byte each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends us
    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    cv2.pollKey()
    sent = b"\0" * 8
    shown = (0, 0)
    _tell(READY)
    while len(header := sys.stdin.buffer.read(8)) == len(sent):
        size = int.from_bytes(header[:4], "little"), int.from_bytes(header[4:], "little")
        if all(size):
            picture = _read_picture(sys.stdin.buffer, *size)
            if picture is None:
                return
            if size != shown:
                cv2.resizeWindow(title, *size)
                shown = size
            cv2.imshow(title, picture)
        _tell(_keys())
        if all(shown) and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            return


def _read_picture(stream: BinaryIO, width: int, height: int) -> np.ndarray | None:
    """Return (height, width, 3) uint8, or None where the stream ends in the middle."""
    data = stream.read(3 * width * height)
    if len(data) < 3 * width * height:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _keys() -> bytes:
    """Return the keys pressed; asking is also what lets the window draw itself."""
    pressed = bytearray()
    for _ in range(KEYS_AT_ONCE):
        code = cv2.pollKey()
        if code < 0:
            break
        if (character := code & 0xFF) == ESCAPE or 32 <= character < 127:
            pressed.append(character)
    return bytes(pressed)


def _tell(data: bytes) -> None:
    if data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
