"""Cameras: what one is, which one a user's word means, and opening it."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from vidmatte.errors import CameraLostError, InputError, UsageError
from vidmatte.frames import Frame, VideoInfo
from vidmatte.sources._devices import (
    CameraDescription,
    list_cameras,
    permission_hint,
    why_no_camera,
)

__all__ = [
    "Camera",
    "CameraChoice",
    "CameraDescription",
    "list_cameras",
    "open_camera",
    "permission_hint",
    "why_no_camera",
]

SYNTHETIC = "synthetic"
SMALLEST = 32  # side of a synthetic picture that still holds its code
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(name: str) -> bool:
    """Whether a name is written like a URL."""
    return _URL.match(name) is not None


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
    if name is not None and is_address(name):
        from vidmatte.sources._network_camera import open_address

        return open_address(name, allow_network=choice.allow_network)
    kind = None if name is None else _kind_of_file(name)
    if name is not None and kind == "fifo":
        from vidmatte.sources._fifo_camera import open_fifo

        return open_fifo(name)
    if name is not None and kind == "file":
        from vidmatte.sources._file_camera import FileCamera

        return FileCamera(name, rate=choice.rate)
    from vidmatte.sources._device_camera import open_device

    return open_device(find_camera(name), size=choice.size, rate=choice.rate)


def _kind_of_file(name: str) -> Literal["file", "fifo"] | None:
    """Tell video files and FIFOs from names and numbers of cameras."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return "file" if _looks_like_a_file(name) else None
    if stat.S_ISFIFO(mode):
        return "fifo"
    return None if stat.S_ISCHR(mode) or name.isdecimal() else "file"


def _looks_like_a_file(name: str) -> bool:
    """Whether a name of nothing that exists can only have meant a file."""
    if re.fullmatch(r"/dev/video\d+", name):
        return False
    return "\0" in name or os.sep in name or re.search(r"\.[A-Za-z0-9]{2,4}$", name) is not None


def find_camera(name: str | None) -> CameraDescription:
    """Find the camera that a number, a device file or a name stands for; None is the first.

    Raises CameraLostError when that device is not there, InputError when no camera has that name;
    the hint says which there are.
    """
    cameras = list_cameras()
    if name is None:
        if not cameras:
            raise CameraLostError("no camera", hint=why_no_camera())
        return cameras[0]
    if not name.strip():
        raise UsageError("an empty name is no camera", hint="`vidmatte cameras` lists them")
    wanted = name.casefold()
    for matches in (
        [c for c in cameras if str(c.number) == name or c.device == name],
        [c for c in cameras if c.name.casefold() == wanted],
        [c for c in cameras if wanted in c.name.casefold()],
    ):
        if matches:
            return matches[0]
    if os.path.exists(name):  # a device that the list leaves out, like a virtual camera
        return CameraDescription(-1, name, name)
    listed = ", ".join(f"{c.number} {c.name}" for c in cameras)
    hint = f"there is: {listed}" if listed else why_no_camera()
    if name.isdecimal() or name.startswith("/dev/"):
        raise CameraLostError(f"no camera {name}", hint=hint)
    raise InputError(f"no camera is named {name}", hint=hint)


def _even(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if min(size) < SMALLEST:
        raise UsageError(
            f"camera {SYNTHETIC}: pictures of {size[0]}x{size[1]} are too small",
            hint=f"use a --size from {SMALLEST}x{SMALLEST}",
        )
    return size[0] & ~1, size[1] & ~1
