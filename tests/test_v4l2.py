"""Linux's video devices as the kernel describes them: layouts, listing, odd drivers."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from vidmatte import v4l2
from vidmatte.v4l2 import CameraFormat, hidden_devices, video_devices

CAPTURE, OUTPUT, META, STREAMING = 0x1, 0x2, 0x00800000, 0x04000000
DEVICE_CAPS = 0x80000000


def fourcc(text: str) -> int:
    return int.from_bytes(text.encode(), "little")


@dataclass
class Driver:
    """A driver's answers, packed as videodev2.h lays them out (offsets counted by hand there)."""

    driver: bytes = b"uvcvideo"
    card: bytes = b"Integrated Camera"
    caps: int = CAPTURE | META | STREAMING | DEVICE_CAPS
    device_caps: int = CAPTURE | STREAMING
    # (pixel format, [(size, [(numerator, denominator)])])
    formats: list[tuple[str, list[tuple[tuple[int, int], list[tuple[int, int]]]]]] = field(
        default_factory=list
    )
    calls: int = 0

    def ioctl(self, descriptor: int, request: int, answer: bytearray) -> int:
        self.calls += 1
        if request == 0x80685600:  # VIDIOC_QUERYCAP
            assert len(answer) == 104
            struct.pack_into("=16s32s", answer, 0, self.driver, self.card)
            struct.pack_into("=II", answer, 84, self.caps, self.device_caps)
            return 0
        index = struct.unpack_from("=I", answer)[0]
        if request == 0xC0405602:  # VIDIOC_ENUM_FMT
            assert struct.unpack_from("=I", answer, 4)[0] == 1  # of capturing
            pixel_format, _ = self._at(self.formats, index)
            struct.pack_into("=I", answer, 44, fourcc(pixel_format))
            return 0
        wanted = struct.unpack_from("=I", answer, 4)[0]
        sizes = next(sizes for name, sizes in self.formats if fourcc(name) == wanted)
        if request == 0xC02C564A:  # VIDIOC_ENUM_FRAMESIZES
            size, _ = self._at(sizes, index)
            struct.pack_into("=III", answer, 8, 1, *size)
            return 0
        assert request == 0xC034564B  # VIDIOC_ENUM_FRAMEINTERVALS
        asked = struct.unpack_from("=II", answer, 8)
        intervals = next(intervals for size, intervals in sizes if size == asked)
        struct.pack_into("=III", answer, 16, 1, *self._at(intervals, index))
        return 0

    @staticmethod
    def _at(entries: list, index: int):  # type: ignore[no-untyped-def, type-arg]
        if index >= len(entries):
            raise OSError(errno.EINVAL, "Invalid argument")
        return entries[index]


WEBCAM = [
    ("MJPG", [((1280, 720), [(1, 30), (1, 15)]), ((640, 480), [(1001, 30000)])]),
    ("YUYV", [((1280, 720), [(1, 10)])]),
]


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    folder = tmp_path / "dev"
    folder.mkdir()
    return folder


def node(dev: Path, number: int, *, name: str | None = None) -> Path:
    """A device file and its entry in sysfs."""
    (dev / f"video{number}").touch()
    entry = dev.parent / "sys" / f"video{number}"
    entry.mkdir(parents=True, exist_ok=True)
    if name is not None:
        (entry / "name").write_text(f"{name}\n")
    return entry.parent


def test_a_webcam_tells_everything(dev: Path) -> None:
    sysfs = node(dev, 0)
    (device,) = video_devices(dev=dev, sysfs=sysfs, ioctl=Driver(formats=WEBCAM).ioctl)
    assert (device.path, device.number) == (str(dev / "video0"), 0)
    assert (device.name, device.driver) == ("Integrated Camera", "uvcvideo")
    assert (device.captures, device.outputs, device.is_loopback) == (True, False, False)
    assert device.problem is None
    assert device.formats == (
        CameraFormat(1280, 720, (Fraction(30), Fraction(15)), "mjpg"),
        CameraFormat(640, 480, (Fraction(30000, 1001),), "mjpg"),
        CameraFormat(1280, 720, (Fraction(10),), "yuyv"),
    )


def test_devices_come_in_order_of_their_numbers(dev: Path) -> None:
    for number in (10, 2, 0):
        node(dev, number)
    (dev / "video-else").touch()
    found = video_devices(dev=dev, sysfs=dev, ioctl=Driver().ioctl)
    assert [d.number for d in found] == [0, 2, 10]


def test_a_metadata_node_is_no_camera(dev: Path) -> None:
    node(dev, 1)
    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=Driver(device_caps=META).ioctl)
    assert not device.captures
    assert device.formats == ()


def test_old_drivers_have_one_set_of_capabilities(dev: Path) -> None:
    node(dev, 1)
    driver = Driver(caps=CAPTURE | OUTPUT, device_caps=0)
    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=driver.ioctl)
    assert (device.captures, device.outputs) == (True, True)


@pytest.mark.parametrize("caps", [OUTPUT, CAPTURE, OUTPUT | CAPTURE])
def test_a_loopback_is_known_by_its_driver(dev: Path, caps: int) -> None:
    node(dev, 9)
    driver = Driver(driver=b"v4l2 loopback", card=b"vidmatte", device_caps=caps)
    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=driver.ioctl)
    assert device.is_loopback
    assert device.outputs == bool(caps & OUTPUT)


def any_size(descriptor: int, request: int, answer: bytearray) -> int:
    """A driver of stepwise sizes and continuous rates."""
    if request == 0x80685600:
        return Driver().ioctl(descriptor, request, answer)
    if struct.unpack_from("=I", answer)[0] > 0:
        raise OSError(errno.EINVAL, "Invalid argument")
    if request == 0xC0405602:
        struct.pack_into("=I", answer, 44, fourcc("YUYV"))
    elif request == 0xC02C564A:
        struct.pack_into("=7I", answer, 8, 3, 32, 1440, 16, 24, 900, 12)
    else:
        struct.pack_into("=7I", answer, 16, 2, 1, 30, 1, 12, 1, 1)
    return 0


def test_a_camera_of_any_size_tells_the_usual_ones(dev: Path) -> None:
    node(dev, 0)
    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=any_size)
    sizes = [(f.width, f.height) for f in device.formats]
    assert sizes == [(320, 240), (640, 360), (640, 480), (800, 600), (1280, 720), (1440, 900)]
    assert {f.rates for f in device.formats} == {tuple(map(Fraction, (30, 25, 24, 20, 15)))}


@pytest.mark.fault
def test_a_driver_that_never_ends_is_cut_off(dev: Path) -> None:
    node(dev, 0)
    calls = []

    def endless(descriptor: int, request: int, answer: bytearray) -> int:
        calls.append(request)
        if request == 0x80685600:
            return Driver().ioctl(descriptor, request, answer)
        if request in (0xC02C564A, 0xC034564B):
            struct.pack_into("=III", answer, 8 if request == 0xC02C564A else 16, 1, 0, 0)
        if request == 0xC02C564A and struct.unpack_from("=I", answer)[0] > 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        if request == 0xC0405602 and struct.unpack_from("=I", answer)[0] > 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=endless)
    assert all(f.rates == () for f in device.formats)  # an interval of 0 is none
    assert len(calls) < 2000


@pytest.mark.fault
def test_a_device_that_may_not_be_opened_is_named(
    dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs = node(dev, 0, name="Laptop Camera")

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(v4l2.os, "open", refuse)
    (device,) = video_devices(dev=dev, sysfs=sysfs)
    assert (device.name, device.problem) == ("Laptop Camera", "permission denied")
    assert device.captures


@pytest.mark.fault
def test_what_is_no_video_device_is_named(dev: Path) -> None:
    """The kernel's own ioctl on a plain file."""
    node(dev, 0)
    (device,) = video_devices(dev=dev, sysfs=dev)
    assert device.problem is not None
    assert device.name == "video0"


@pytest.mark.fault
def test_names_that_are_not_text(dev: Path) -> None:
    node(dev, 0)
    (device,) = video_devices(dev=dev, sysfs=dev, ioctl=Driver(card=b"\xff" * 32).ioctl)
    assert device.name == "\ufffd" * 32


def test_without_any_device(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert video_devices(dev=nowhere, sysfs=nowhere) == []
    assert hidden_devices(dev=nowhere, sysfs=nowhere) == 0


def test_a_container_hides_devices(dev: Path) -> None:
    sysfs = node(dev, 0)
    node(dev, 1)
    os.unlink(dev / "video1")
    assert hidden_devices(dev=dev, sysfs=sysfs) == 1


def test_listing_leaves_no_descriptor_open(dev: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    node(dev, 0)
    before = len(os.listdir("/proc/self/fd"))
    video_devices(dev=dev, sysfs=dev, ioctl=Driver(formats=WEBCAM).ioctl)
    assert len(os.listdir("/proc/self/fd")) == before
