"""Open a camera of this machine through FFmpeg: v4l2, avfoundation or dshow."""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from vidmatte.errors import CameraLostError, InputError
from vidmatte.sources._devices import (
    CameraDescription,
    in_container,
    permission_hint,
    why_no_camera,
)
from vidmatte.sources._stream_camera import StreamCamera, why
from vidmatte.v4l2 import CameraFormat

SIZE, RATE = (1280, 720), Fraction(30)
COMPRESSED_FROM_LINES, COMPRESSED_FROM_RATE = 720, 25  # beyond it raw pictures fill a USB 2 cable
SILENT_S = 5.0  # without a picture: a device that hangs is opened anew
SLICE_MS = 200
REPLUG = "unplug it and plug it in again"
# What FFmpeg calls the drivers' formats; compressed video that holds pictures back is left out.
INPUT_FORMATS = {
    "mjpg": "mjpeg",
    "jpeg": "mjpeg",
    "yuyv": "yuyv422",
    "uyvy": "uyvy422",
    "nv12": "nv12",
    "yu12": "yuv420p",
}
_NO_USE_TO_TRY_ON = frozenset(
    {errno.EBUSY, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM, errno.ENOTTY}
)


def open_device(
    camera: CameraDescription,
    *,
    size: tuple[int, int] | None = None,
    rate: Fraction | None = None,
) -> StreamCamera:
    """Open a camera with the wanted size and rate, or what it can that is nearest.

    Raises CameraLostError when it is absent, busy or refuses every format, InputError when it is
    not allowed or no camera.
    """
    import av

    format_name, address = _address(camera.device)
    failure: BaseException | None = None
    for options in attempts(format_name, camera.formats, size or SIZE, rate or RATE):
        before = _descriptors_on(camera.device)
        try:
            container = av.open(address, format=format_name, options=options)
        except (av.FFmpegError, OSError, ValueError) as exc:
            failure = exc
            if getattr(exc, "errno", None) in _NO_USE_TO_TRY_ON:
                break
            continue
        opened = _descriptors_on(camera.device) - before
        wait = Patience(camera.device, opened.pop()).wait if len(opened) == 1 else None
        return StreamCamera(container, camera.device, own_clock=True, wait=wait)
    assert failure is not None
    raise _lost(camera.device, failure) from failure


def _address(device: str) -> tuple[str, str]:
    """FFmpeg's name of the device layer, and of the device in it."""
    if sys.platform == "darwin":
        return "avfoundation", f"{device}:none"
    if sys.platform == "win32":
        return "dshow", f"video={device}"
    return "v4l2", device


def attempts(
    format_name: str,
    formats: tuple[CameraFormat, ...],
    size: tuple[int, int],
    rate: Fraction,
) -> Iterator[dict[str, str]]:
    """Yield the options to try, best first; the last asks for nothing.

    `formats` is what the camera says it has. Large fast pictures are preferred compressed.
    """
    large = size[1] >= COMPRESSED_FROM_LINES and rate >= COMPRESSED_FROM_RATE
    known = [f for f in formats if f.pixel_format in INPUT_FORMATS]
    for entry in sorted(known, key=lambda f: _distance(f, size, rate, large))[:3]:
        yield {
            **_size_and_rate((entry.width, entry.height), nearest_rate(entry.rates, rate)),
            "input_format": INPUT_FORMATS[entry.pixel_format],
        }
    compressed = {"v4l2": {"input_format": "mjpeg"}, "dshow": {"vcodec": "mjpeg"}}
    if large and not known and format_name in compressed:
        yield {**_size_and_rate(size, rate), **compressed[format_name]}
    yield _size_and_rate(size, rate)
    yield {"video_size": f"{size[0]}x{size[1]}"}
    yield {"framerate": str(rate)}
    yield {}


def _distance(
    entry: CameraFormat, size: tuple[int, int], rate: Fraction, large: bool
) -> tuple[object, ...]:
    """Order formats: the size, then not smaller than it, then the rate, then the encoding."""
    smaller = entry.width < size[0] or entry.height < size[1]
    away = abs(entry.width * entry.height - size[0] * size[1])
    short = max(Fraction(0), rate - max(entry.rates, default=rate))
    compressed = INPUT_FORMATS[entry.pixel_format] == "mjpeg"
    return (entry.width, entry.height) != size, smaller, away, short, compressed != large


def nearest_rate(rates: tuple[Fraction, ...], rate: Fraction) -> Fraction:
    """The slowest rate that is enough, else the fastest there is."""
    enough = [r for r in rates if r >= rate]
    return min(enough) if enough else max(rates, default=rate)


def _size_and_rate(size: tuple[int, int], rate: Fraction) -> dict[str, str]:
    return {"video_size": f"{size[0]}x{size[1]}", "framerate": str(rate)}


def _lost(device: str, failure: BaseException) -> InputError:
    code = getattr(failure, "errno", None)
    if code == errno.EBUSY:
        return CameraLostError(
            f"camera {device}: is used by another program",
            hint=f"close that program; `fuser {device}` tells which it is",
        )
    if code in (errno.EACCES, errno.EPERM):
        return InputError(f"camera {device}: not allowed", hint=permission_hint(device))
    if code == errno.ENOTTY:
        return InputError(f"{device}: is not a camera", hint="`vidmatte cameras` lists them")
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return CameraLostError(f"no camera {device}", hint=why_no_camera())
    hint = "in a container it needs --device" if in_container() else REPLUG
    return CameraLostError(f"camera {device}: {why(failure)}", hint=hint)


def _descriptors_on(device: str) -> set[int]:
    """This process's open descriptors of a device file (Linux; else none)."""
    try:
        wanted = os.stat(device).st_rdev
        names = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    return {int(name) for name in names if wanted and _device_of(name) == wanted}


def _device_of(descriptor: str) -> int:
    try:
        return Path("/proc/self/fd", descriptor).stat().st_rdev
    except OSError:
        return 0


class Patience:
    """Waits for a device's next picture with an end, where FFmpeg would wait for ever."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name, self._descriptor = name, descriptor

    def wait(self, is_closed: Callable[[], bool]) -> None:
        """Return when a picture is there; raises CameraLostError after `SILENT_S` or at a close."""
        end_s = time.monotonic() + SILENT_S
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while not poll.poll(SLICE_MS):
            if is_closed():
                raise CameraLostError(f"camera {self._name}: is closed")
            if time.monotonic() > end_s:
                raise CameraLostError(f"camera {self._name}: delivers nothing", hint=REPLUG)
