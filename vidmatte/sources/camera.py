"""Cameras: what one is, which one a user's word means, and opening it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from vidmatte.errors import UsageError
from vidmatte.frames import Frame, VideoInfo

SYNTHETIC = "synthetic"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Camera(Protocol):
    """A live source of frames, used by one thread.

    `info.is_live` is true and `info.time_base` 1/1000000; a frame's pts is its capture time in
    microseconds of `time.monotonic()`. Pictures may change their size and format on the way.
    """

    @property
    def info(self) -> VideoInfo:
        """What is known of the pictures from the first one."""
        ...

    def read(self) -> Frame:
        """Wait for the next picture.

        Raises CameraLostError when device or stream ends or fails; `close` and open again.
        """
        ...

    def close(self) -> None:
        """Let the device go; closing twice does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class CameraChoice:
    """Which camera, and what is wished of it; a device that cannot gives what is nearest.

    `name` is a number, a device file, a camera's name, a URL (opened only with `allow_network`),
    a video file, a FIFO, or "synthetic"; None is the first camera. `size` is (width, height).
    """

    name: str | None = None
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    allow_network: bool = False


def open_camera(choice: CameraChoice) -> Camera:
    """Open the camera and read its first picture.

    Raises CameraLostError for what may come back (absent, busy, a FIFO without a writer),
    InputError or UsageError for what can never work.
    """
    name = choice.name
    if name == SYNTHETIC:
        from vidmatte.sources._synthetic_camera import SyntheticCamera

        return SyntheticCamera(_even(choice.size), choice.rate)
    from vidmatte.sources._file_camera import FileCamera

    return FileCamera(name or "")


def _even(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if min(size) < 64:
        raise UsageError(f"camera {SYNTHETIC}: pictures of {size[0]}x{size[1]} are too small")
    return size[0] & ~1, size[1] & ~1
