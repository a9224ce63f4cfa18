"""Virtual cameras: pyvirtualcam through a memory backend, v4l2 output, their errors and readers."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from conftest import fill_picture, plane_arrays, wait_until
from memory_backend import DEVICE, MemoryBackend, registered

from vidmatte import v4l2
from vidmatte.errors import OutputError, VirtualCameraLostError
from vidmatte.sinks import virtualcam
from vidmatte.sinks.virtualcam import (
    PyvirtualcamOutput,
    V4l2Output,
    VirtualCameraDescription,
    list_virtual_cameras,
    open_virtual_camera,
    why_no_virtual_camera,
)

SIZE = (70, 46)  # rows of PyAV's planes are padded at this width
RATE = Fraction(30)
real_open = av.open


@pytest.fixture
def memory() -> Iterator[type[MemoryBackend]]:
    with registered() as backend:
        yield backend


@pytest.fixture
def without_pyvirtualcam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)


def picture_of(number: int) -> av.VideoFrame:
    picture = av.VideoFrame(*SIZE, "yuv420p")
    fill_picture(picture, number)
    return picture


def as_i420(picture: av.VideoFrame) -> bytes:
    return b"".join(plane.tobytes() for plane in plane_arrays(picture))


def test_pictures_arrive_whole(memory: type[MemoryBackend]) -> None:
    camera = open_virtual_camera(None, *SIZE, RATE)
    assert isinstance(camera, PyvirtualcamOutput)
    assert camera.device == DEVICE
    for number in range(3):
        camera.send(picture_of(number))
    (backend,) = memory.opened
    assert (backend.width, backend.height, backend.fps) == (*SIZE, 30.0)
    assert backend.fourcc == int.from_bytes(b"I420", "little")
    assert [p.tobytes() for p in backend.pictures] == [as_i420(picture_of(n)) for n in range(3)]
    camera.close()
    camera.close()
    assert backend.closed


def test_sending_only_reads_the_picture(memory: type[MemoryBackend]) -> None:
    camera = open_virtual_camera("my camera", *SIZE, RATE)
    assert camera.device == "my camera"
    picture = picture_of(0)
    picture.pts = 7
    camera.send(picture)
    assert (picture.pts, as_i420(picture)) == (7, as_i420(picture_of(0)))
    camera.close()


@pytest.mark.fault
def test_gone_while_sending(memory: type[MemoryBackend]) -> None:
    camera = open_virtual_camera(None, *SIZE, RATE)
    memory.failure = RuntimeError("stream\x1b[31m stopped")
    with pytest.raises(VirtualCameraLostError, match=r"memory:0: stream\\x1b\[31m stopped"):
        camera.send(picture_of(0))
    camera.close()
    with pytest.raises(VirtualCameraLostError, match="closed"):
        camera.send(picture_of(0))


@pytest.mark.fault
@pytest.mark.parametrize(
    "words",
    [
        "Device /dev/video9 is already in use.",
        "could not be configured: Device or resource busy",
        "virtual camera output could not be started",
        "Couldn't start stream",
    ],
)
def test_busy_may_come_back(memory: type[MemoryBackend], words: str) -> None:
    memory.refusal = RuntimeError(words)
    with pytest.raises(VirtualCameraLostError, match="'memory' backend") as raised:
        open_virtual_camera(None, *SIZE, RATE)
    assert words.rstrip(".") in str(raised.value)
    assert "close the program" in str(raised.value.hint)


@pytest.mark.fault
def test_none_installed_tells_the_step(memory: type[MemoryBackend]) -> None:
    memory.refusal = RuntimeError("No v4l2 loopback device found at /dev/video[0-99].")
    with pytest.raises(OutputError) as raised:
        open_virtual_camera(None, *SIZE, RATE)
    assert not isinstance(raised.value, VirtualCameraLostError)
    assert "No v4l2 loopback device found" in str(raised.value)
    assert raised.value.hint == why_no_virtual_camera()


@pytest.mark.fault
def test_not_allowed_tells_the_group(memory: type[MemoryBackend]) -> None:
    memory.refusal = RuntimeError("Could not access /dev/video9 due to missing permissions.")
    with pytest.raises(OutputError) as raised:
        open_virtual_camera("/dev/video9", *SIZE, RATE)
    assert "usermod -aG video" in str(raised.value.hint)


def test_the_shipped_backend_says_what_is_missing() -> None:
    if sys.platform != "linux" or list_virtual_cameras():
        pytest.skip("this machine may have a virtual camera")
    with pytest.raises(OutputError, match=r"'v4l2loopback' backend: No v4l2 loopback device"):
        open_virtual_camera(None, *SIZE, RATE)
    with pytest.raises(OutputError, match=r"/dev/video98: 'v4l2loopback' backend: .*not exist"):
        open_virtual_camera("98", *SIZE, RATE)


@pytest.mark.parametrize(("width", "height"), [(71, 46), (70, 45)])
def test_odd_sizes_are_refused(memory: type[MemoryBackend], width: int, height: int) -> None:
    with pytest.raises(OutputError, match="not even"):
        open_virtual_camera(None, width, height, RATE)
    assert not memory.opened


@pytest.mark.parametrize("count", [None, 0, 3])
def test_readers_of_a_backend(memory: type[MemoryBackend], count: int | None) -> None:
    camera = open_virtual_camera(None, *SIZE, RATE)
    memory.reader_count = count
    assert camera.readers() == count
    camera.close()


@pytest.mark.parametrize(
    ("system", "words"),
    [("linux", "modprobe v4l2loopback"), ("darwin", "OBS 30"), ("win32", "OBS Studio")],
)
def test_every_system_has_its_step(
    monkeypatch: pytest.MonkeyPatch, system: str, words: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert words in why_no_virtual_camera()


@pytest.mark.usefixtures("without_pyvirtualcam")
def test_without_pyvirtualcam_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OutputError, match="pyvirtualcam") as raised:
        open_virtual_camera(None, *SIZE, RATE)
    assert "vidmatte[webcam]" in str(raised.value.hint)


class FakeDevice:
    """Stands in for PyAV's v4l2 output: the packets go to a raw file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusal: int | None = None

    def open(self, name: str, mode: str, format: str | None = None) -> Any:
        self.asked.append((name, mode, format))
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal), name)
        return real_open(str(self.path), mode, format="rawvideo")


@pytest.fixture
def v4l2_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_pyvirtualcam: None
) -> FakeDevice:
    monkeypatch.setattr(sys, "platform", "linux")
    device = FakeDevice(tmp_path / "sent.yuv")
    monkeypatch.setattr(av, "open", device.open)
    return device


def test_v4l2_output_gets_the_pictures(v4l2_output: FakeDevice, tmp_path: Path) -> None:
    node = tmp_path / "video9"
    node.touch()
    camera = open_virtual_camera(str(node), *SIZE, RATE)
    assert isinstance(camera, V4l2Output)
    for number in range(3):
        camera.send(picture_of(number))
    camera.close()
    camera.close()
    assert v4l2_output.asked == [(str(node), "w", "v4l2")]
    assert v4l2_output.path.read_bytes() == b"".join(as_i420(picture_of(n)) for n in range(3))
    with pytest.raises(VirtualCameraLostError, match="closed"):
        camera.send(picture_of(0))


def test_v4l2_output_takes_the_first_loopback(
    v4l2_output: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "video4"
    node.touch()
    found = [VirtualCameraDescription(str(node), "Call"), VirtualCameraDescription("/x", "other")]
    monkeypatch.setattr(virtualcam, "list_virtual_cameras", lambda: found)
    for wanted in (None, "call"):
        camera = open_virtual_camera(wanted, *SIZE, RATE)
        assert camera.device == str(node)
        camera.close()


@pytest.mark.fault
def test_v4l2_output_without_a_device(
    v4l2_output: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtualcam, "list_virtual_cameras", list)
    with pytest.raises(OutputError, match="no v4l2loopback device; pyvirtualcam") as raised:
        open_virtual_camera(None, *SIZE, RATE)
    assert "modprobe v4l2loopback" in str(raised.value.hint)
    with pytest.raises(OutputError, match="no such device"):
        open_virtual_camera("/dev/video97", *SIZE, RATE)
    assert not v4l2_output.asked


@pytest.mark.fault
@pytest.mark.usefixtures("without_pyvirtualcam")
def test_a_file_is_no_virtual_camera_and_stays(tmp_path: Path) -> None:
    """FFmpeg's own v4l2 output, which asks the file what it can do."""
    if sys.platform != "linux":
        pytest.skip("v4l2 is Linux's")
    file = tmp_path / "diary.txt"
    file.write_text("dear diary")
    with pytest.raises(OutputError, match="is not a video device; pyvirtualcam is not") as raised:
        open_virtual_camera(str(file), *SIZE, RATE)
    assert not isinstance(raised.value, VirtualCameraLostError)
    assert file.read_text() == "dear diary"


@pytest.mark.fault
def test_v4l2_output_busy(v4l2_output: FakeDevice, tmp_path: Path) -> None:
    node = tmp_path / "video9"
    node.touch()
    v4l2_output.refusal = errno.EBUSY
    with pytest.raises(VirtualCameraLostError, match=r"v4l2: .*busy.*; pyvirtualcam"):
        open_virtual_camera(str(node), *SIZE, RATE)


@pytest.mark.fault
def test_v4l2_output_gone_while_sending(v4l2_output: FakeDevice, tmp_path: Path) -> None:
    node = tmp_path / "video9"
    node.touch()
    camera = open_virtual_camera(str(node), *SIZE, RATE)
    assert isinstance(camera, V4l2Output)
    container = camera._container

    def refuse(packet: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    def gone() -> None:
        refuse(None)

    camera._container = SimpleNamespace(mux_one=refuse, close=gone)  # type: ignore[assignment]
    with pytest.raises(VirtualCameraLostError, match="no such device"):
        camera.send(picture_of(0))
    camera.close()
    assert container is not None
    container.close()


@pytest.mark.fault
def test_a_device_file_that_goes_away_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [True]

    def look(path: str) -> SimpleNamespace:
        if not there[0]:
            raise FileNotFoundError(path)
        return SimpleNamespace(st_rdev=0x5105)

    monkeypatch.setattr(virtualcam.os, "stat", look)
    monkeypatch.setattr(virtualcam, "CHECK_EVERY_S", 0.0)
    presence = virtualcam.DevicePresence("/dev/video9")
    presence.check()
    there[0] = False
    with pytest.raises(VirtualCameraLostError, match="is gone"):
        presence.check()


def test_another_process_that_holds_the_device_is_a_reader(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    device = tmp_path / "video9"
    device.touch()
    watch = v4l2.ReaderWatch(str(device))
    now_s = iter(range(0, 10**6, 10))

    def count() -> int | None:
        return watch.count(float(next(now_s)))

    with device.open():  # our own does not count
        wait_until(lambda: count() in (0, None))
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(device)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        wait_until(lambda: count() == 1)
        reader.communicate()
    wait_until(lambda: count() in (0, None))
    watch.close()


def a_process(proc: Path, pid: int, uid: int, links: dict[str, str], *, sealed: bool) -> None:
    descriptors = proc / str(pid) / "fd"
    descriptors.mkdir(parents=True)
    for name, target in links.items():
        (descriptors / name).symlink_to(target)
    (proc / str(pid) / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    if sealed:
        descriptors.chmod(0)


@pytest.mark.parametrize(
    ("uid", "holds", "expected"),
    [
        (os.getuid() if hasattr(os, "getuid") else 0, False, None),
        (os.getuid() if hasattr(os, "getuid") else 0, True, 1),
        (4242, False, 0),
    ],
    ids=["ours sealed", "ours sealed, another reads", "a stranger's sealed"],
)
def test_a_sealed_process_of_ours_might_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    holds: bool,
    expected: int | None,
) -> None:
    device = tmp_path / "video9"
    device.touch()
    proc = tmp_path / "proc"
    a_process(proc, 11, uid, {}, sealed=True)
    a_process(proc, 12, 0, {"3": str(device) if holds else "/dev/null"}, sealed=False)
    (proc / "self").mkdir()
    real_list = os.listdir

    def listed(path: Any) -> list[str]:  # root may read what is sealed: refuse as the kernel would
        if not stat.S_IMODE(os.stat(path).st_mode):
            raise PermissionError(path)
        return real_list(path)

    monkeypatch.setattr(v4l2.os, "listdir", listed)
    watch = v4l2.ReaderWatch(str(device), proc=proc, ioctl=no_events)
    assert watch.count(0.0) == expected
    (proc / "11" / "fd").chmod(0o700)


def no_events(descriptor: int, request: int, argument: bytearray) -> int:
    raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")


def test_searching_rests_between_searches(tmp_path: Path) -> None:
    device = tmp_path / "video9"
    device.touch()
    proc = tmp_path / "proc"
    a_process(proc, 11, 0, {"3": str(device)}, sealed=False)
    watch = v4l2.ReaderWatch(str(device), proc=proc, ioctl=no_events)
    assert watch.count(5.0) == 1
    (proc / "11" / "fd" / "3").unlink()
    assert watch.count(5.9) == 1
    assert watch.count(6.1) == 0


def test_the_loopback_driver_tells_its_readers(tmp_path: Path) -> None:
    """Events of v4l2loopback: a count at once, then one at every change."""
    device = tmp_path / "video9"
    device.touch()
    usage = 0x08000000 + 0x08E00000 + 1
    waiting = [(usage, 0)]
    subscribed = []

    def driver(descriptor: int, request: int, argument: bytearray) -> int:
        if request == v4l2.SUBSCRIBE_EVENT:
            assert len(argument) == 32
            subscribed.append(struct.unpack_from("=3I", argument))
            return 0
        assert request == v4l2.DQEVENT
        if not waiting:
            raise OSError(errno.ENOENT, "No such file or directory")
        kind, count = waiting.pop(0)
        struct.pack_into("=I4xI", argument, 0, kind, count)
        return 0

    watch = v4l2.ReaderWatch(str(device), proc=tmp_path / "none", ioctl=driver)
    assert subscribed == [(usage, 0, 1)]
    assert watch.count(0.0) == 0
    waiting[:] = [(2, 77), (usage, 2)]
    assert watch.count(0.0) == 2
    assert watch.count(0.0) == 2
    watch.close()


def test_a_child_process_can_register_the_backend() -> None:
    code = (
        "import memory_backend, numpy\n"
        "from fractions import Fraction\n"
        "import av\n"
        "from vidmatte.sinks.virtualcam import open_virtual_camera\n"
        "backend = memory_backend.register()\n"
        "camera = open_virtual_camera(None, 64, 48, Fraction(30))\n"
        "camera.send(av.VideoFrame(64, 48, 'yuv420p'))\n"
        "assert backend.opened[0].wait_for(1)\n"
        "camera.close()\n"
        "print(camera.device)"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == (DEVICE, 0), done.stderr


def test_the_packer_uses_its_buffer_again() -> None:
    packer = virtualcam.I420Packer(*SIZE)
    first = packer.pack(picture_of(0))
    assert np.shares_memory(first, packer.pack(picture_of(1)))
    assert first.tobytes() == as_i420(picture_of(1))
