"""Ask Linux's video devices what they are, what they deliver and who reads them.

Numbers and layouts are those of the kernel's include/uapi/linux/videodev2.h.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

Ioctl = Callable[[int, int, bytearray], int]

LOOPBACK_DRIVER = "v4l2 loopback"
SYSFS = Path("/sys/class/video4linux")
DEV = Path("/dev")
PROC = Path("/proc")

_CAPABILITY = struct.Struct("=16s32s32s3I12x")  # v4l2_capability
_FORMAT = struct.Struct("=3I32s2I12x")  # v4l2_fmtdesc
_FRAME_SIZE = struct.Struct("=3I6I8x")  # v4l2_frmsizeenum
_FRAME_INTERVAL = struct.Struct("=5I6I8x")  # v4l2_frmivalenum
_SUBSCRIPTION = struct.Struct("=3I20x")  # v4l2_event_subscription
_EVENT = struct.Struct("=I4x64s2I2qI36x")  # v4l2_event where a long has 64 bits
_READ, _WRITE = 2, 1


def _request(direction: int, number: int, layout: struct.Struct) -> int:
    """The kernel's _IOC for type 'V' (asm-generic/ioctl.h)."""
    return direction << 30 | layout.size << 16 | ord("V") << 8 | number


QUERYCAP = _request(_READ, 0, _CAPABILITY)
ENUM_FMT = _request(_READ | _WRITE, 2, _FORMAT)
ENUM_FRAMESIZES = _request(_READ | _WRITE, 74, _FRAME_SIZE)
ENUM_FRAMEINTERVALS = _request(_READ | _WRITE, 75, _FRAME_INTERVAL)
DQEVENT = _request(_READ, 89, _EVENT)
SUBSCRIBE_EVENT = _request(_WRITE, 90, _SUBSCRIPTION)

_CAP_CAPTURE, _CAP_OUTPUT, _CAP_DEVICE_CAPS = 0x1, 0x2, 0x80000000
_BUF_CAPTURE = 1
_DISCRETE = 1
_ENTRIES = 256  # more than any driver lists; one that never says EINVAL must not hold us
_CLIENT_USAGE = 0x08000000 + 0x08E00000 + 1  # v4l2loopback.c, V4L2_EVENT_PRI_CLIENT_USAGE
_SEND_INITIAL = 1
_SCAN_EVERY_S, _SCAN_SLICE_S = 1.0, 0.01

COMMON_SIZES = ((320, 240), (640, 360), (640, 480), (800, 600), (1280, 720), (1920, 1080),
                (2560, 1440), (3840, 2160))  # fmt: skip
COMMON_RATES = (60, 50, 30, 25, 24, 20, 15, 10, 5)


@dataclass(frozen=True, slots=True)
class CameraFormat:
    """One size that a camera delivers, with its rates, fastest first (empty: not told).

    `pixel_format` is the fourcc in lower case: "mjpg", "yuyv", "nv12".
    """

    width: int
    height: int
    rates: tuple[Fraction, ...]
    pixel_format: str


@dataclass(frozen=True, slots=True)
class VideoDevice:
    """A /dev/videoN: `problem` says why it could not be asked, then the rest is a guess."""

    path: str
    number: int
    name: str
    driver: str = ""
    captures: bool = True
    outputs: bool = False
    formats: tuple[CameraFormat, ...] = ()
    problem: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether it is a virtual camera of v4l2loopback."""
        return self.driver == LOOPBACK_DRIVER


def video_devices(
    *, dev: Path = DEV, sysfs: Path = SYSFS, ioctl: Ioctl | None = None
) -> list[VideoDevice]:
    """Ask every /dev/videoN, in order of their numbers; none is opened for streaming."""
    numbers = sorted(_numbers(dev))
    return [_ask(dev / f"video{number}", number, sysfs, ioctl) for number in numbers]


def hidden_devices(*, dev: Path = DEV, sysfs: Path = SYSFS) -> int:
    """Count devices that the kernel has and this process's /dev has not (in a container)."""
    return len(set(_numbers(sysfs)) - set(_numbers(dev)))


def _numbers(folder: Path) -> Iterator[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if match := re.fullmatch(r"video(\d{1,4})", name):
            yield int(match[1])


def _ask(path: Path, number: int, sysfs: Path, ioctl: Ioctl | None) -> VideoDevice:
    unknown = VideoDevice(str(path), number, _kernel_name(sysfs / path.name) or path.name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        return replace(unknown, problem=(exc.strerror or str(exc)).lower())
    try:
        return _describe(descriptor, unknown, ioctl or _kernel_ioctl())
    except OSError as exc:
        return replace(unknown, problem=(exc.strerror or str(exc)).lower())
    finally:
        os.close(descriptor)


def _kernel_ioctl() -> Ioctl:
    import fcntl

    return fcntl.ioctl


def _kernel_name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(errors="replace").strip()
    except OSError:
        return ""


def _describe(descriptor: int, unknown: VideoDevice, ioctl: Ioctl) -> VideoDevice:
    answer = bytearray(_CAPABILITY.size)
    ioctl(descriptor, QUERYCAP, answer)
    driver, card, _, _, all_caps, device_caps = _CAPABILITY.unpack(answer)
    caps = device_caps if all_caps & _CAP_DEVICE_CAPS else all_caps
    captures = bool(caps & _CAP_CAPTURE)
    return replace(
        unknown,
        name=_text(card) or unknown.name,
        driver=_text(driver),
        captures=captures,
        outputs=bool(caps & _CAP_OUTPUT),
        formats=tuple(_formats(descriptor, ioctl)) if captures else (),
    )


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace").strip()


def _formats(descriptor: int, ioctl: Ioctl) -> Iterator[CameraFormat]:
    for values in _enumerated(descriptor, ENUM_FMT, _FORMAT, (_BUF_CAPTURE, 0, b"", 0, 0), ioctl):
        pixel_format = values[4]
        fourcc = pixel_format.to_bytes(4, "little").decode("ascii", "replace").strip().lower()
        for width, height in _sizes(descriptor, pixel_format, ioctl):
            rates = tuple(_rates(descriptor, pixel_format, (width, height), ioctl))
            yield CameraFormat(width, height, rates, fourcc)


def _sizes(descriptor: int, pixel_format: int, ioctl: Ioctl) -> Iterator[tuple[int, int]]:
    blank = (pixel_format, 0, 0, 0, 0, 0, 0, 0)
    for values in _enumerated(descriptor, ENUM_FRAMESIZES, _FRAME_SIZE, blank, ioctl):
        if values[2] == _DISCRETE:
            yield values[3], values[4]
        else:
            yield from _within_steps(*values[3:9])
            return


def _within_steps(
    least_w: int, most_w: int, step_w: int, least_h: int, most_h: int, step_h: int
) -> Iterator[tuple[int, int]]:
    """The usual sizes, and the largest, of a camera that takes any."""
    for width, height in sorted({*COMMON_SIZES, (most_w, most_h)}):
        fits = least_w <= width <= most_w and least_h <= height <= most_h
        on_grid = not ((width - least_w) % max(1, step_w) or (height - least_h) % max(1, step_h))
        if fits and on_grid:
            yield width, height


def _rates(
    descriptor: int, pixel_format: int, size: tuple[int, int], ioctl: Ioctl
) -> list[Fraction]:
    blank = (pixel_format, *size, 0, 0, 0, 0, 0, 0, 0)
    rates: set[Fraction] = set()
    for values in _enumerated(descriptor, ENUM_FRAMEINTERVALS, _FRAME_INTERVAL, blank, ioctl):
        shortest = _rate(values[5], values[6])
        if values[4] == _DISCRETE:
            rates.add(shortest)
            continue
        longest = _rate(values[7], values[8])
        rates |= {shortest} | {Fraction(r) for r in COMMON_RATES if longest <= r <= shortest}
        break
    return sorted(rates - {Fraction(0)}, reverse=True)


def _rate(numerator: int, denominator: int) -> Fraction:
    return Fraction(denominator, numerator) if numerator else Fraction(0)


def _enumerated(
    descriptor: int, request: int, layout: struct.Struct, blank: tuple[object, ...], ioctl: Ioctl
) -> Iterator[tuple[int, ...]]:
    """Call an enumerating ioctl with index 0, 1, … until the driver refuses."""
    for index in range(_ENTRIES):
        answer = bytearray(layout.pack(index, *blank))
        try:
            ioctl(descriptor, request, answer)
        except OSError:
            return
        yield layout.unpack(answer)


class ReaderWatch:
    """Knows how many programs read a virtual camera of Linux.

    v4l2loopback from 0.13 tells through an event whether somebody streams. Where it does not,
    /proc is searched for other processes that hold the device open, at most once a second and a
    few milliseconds per question. Questions never wait; `close` may come from another thread.
    """

    def __init__(self, path: str, *, ioctl: Ioctl | None = None, proc: Path = PROC) -> None:
        self._path, self._proc = os.path.realpath(path), proc
        self._ioctl = ioctl or _kernel_ioctl()
        self._count: int | None = None
        self._scan: Generator[None, None, int | None] | None = None
        self._scanned_at_s: float | None = None
        self._lock = threading.Lock()
        self._descriptor = self._subscribe()

    def _subscribe(self) -> int:
        """Open the device once more for its events; -1 where it has none."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return -1
        try:
            wish = _SUBSCRIPTION.pack(_CLIENT_USAGE, 0, _SEND_INITIAL)
            self._ioctl(descriptor, SUBSCRIBE_EVENT, bytearray(wish))
        except OSError:
            os.close(descriptor)
            return -1
        return descriptor

    def count(self, now_s: float) -> int | None:
        """Return the number of readers, or None where that cannot be known (yet)."""
        with self._lock:
            if self._descriptor >= 0:
                self._take_events()
            else:
                self._search(now_s)
            return self._count

    def _take_events(self) -> None:
        for _ in range(_ENTRIES):
            answer = bytearray(_EVENT.size)
            try:
                self._ioctl(self._descriptor, DQEVENT, answer)
            except OSError:
                return  # none is waiting
            kind, data, *_rest = _EVENT.unpack(answer)
            if kind == _CLIENT_USAGE:
                self._count = int.from_bytes(data[:4], sys.byteorder)

    def _search(self, now_s: float) -> None:
        if self._scan is None:
            if self._scanned_at_s is not None and now_s - self._scanned_at_s < _SCAN_EVERY_S:
                return
            self._scanned_at_s = now_s
            self._scan = _processes_holding(self._path, self._proc)
        end_s = time.monotonic() + _SCAN_SLICE_S
        while time.monotonic() < end_s:
            try:
                next(self._scan)
            except StopIteration as done:
                self._count, self._scan = done.value, None
                return

    def close(self) -> None:
        """Let the device go."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _processes_holding(target: str, proc: Path) -> Generator[None, None, int | None]:
    """Count the other processes that hold `target` open, one process a step.

    A process of the same user whose descriptors are closed to us (browsers seal some of theirs)
    might be one: without a reader in sight the count is then None, not 0.
    """
    own = str(os.getpid())
    readers, sealed = 0, False
    try:
        processes = [name for name in os.listdir(proc) if name.isdigit() and name != own]
    except OSError:
        return None
    for process in processes:
        try:
            readers += _holds(proc / process / "fd", target)
        except PermissionError:
            sealed = sealed or _is_ours(proc / process / "status")
        except OSError:
            continue  # it has ended
        yield
    return None if sealed and not readers else readers


def _holds(descriptors: Path, target: str) -> bool:
    for name in os.listdir(descriptors):
        try:
            if os.readlink(descriptors / name) == target:
                return True
        except FileNotFoundError:
            continue
    return False


def _is_ours(status: Path) -> bool:
    """Whether a process belongs to this user; what cannot be read is taken for ours."""
    try:
        text = status.read_text()
    except OSError:
        return status.exists()
    match = re.search(r"^Uid:\s+(\d+)", text, re.MULTILINE)
    return match is None or int(match[1]) == os.getuid()
