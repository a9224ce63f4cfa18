"""Cameras of this machine: which one is meant, what FFmpeg is asked, and what failures say."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import make_clip
from test_camera import check_contract, read_on

from vidmatte.errors import CameraLostError, InputError
from vidmatte.sources import _device_camera, _devices, _stream_camera, camera
from vidmatte.sources._device_camera import Patience, attempts, nearest_rate, open_device
from vidmatte.sources._stream_camera import StreamCamera
from vidmatte.sources.camera import CameraChoice, CameraDescription, find_camera, open_camera
from vidmatte.v4l2 import CameraFormat, VideoDevice

real_open = av.open
R30, R15, R10, R60 = (Fraction(r) for r in (30, 15, 10, 60))
WEBCAM = (
    CameraFormat(640, 480, (R30,), "yuyv"),
    CameraFormat(1280, 720, (R10,), "yuyv"),
    CameraFormat(640, 480, (R30,), "mjpg"),
    CameraFormat(1280, 720, (R60, R30, R15), "mjpg"),
    CameraFormat(1280, 720, (R30,), "h264"),
)
LISTED = [
    CameraDescription(0, "/dev/video0", "Integrated Camera", WEBCAM),
    CameraDescription(2, "/dev/video2", "Logitech BRIO"),
    CameraDescription(12, "/dev/video12", "Logitech BRIO 2"),
]


class Layer:
    """Stands in for av.open on devices: plays a clip, or refuses as told."""

    def __init__(self, clip: Path) -> None:
        self.clip = clip
        self.asked: list[tuple[str, str | None, dict[str, str]]] = []
        self.refusals: list[int] = []

    def open(
        self, name: str, format: str | None = None, options: dict[str, str] | None = None
    ) -> Any:
        self.asked.append((name, format, options or {}))
        if self.refusals:
            number = self.refusals.pop(0)
            raise OSError(number, os.strerror(number), name)
        return real_open(str(self.clip))


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layer:
    layer = Layer(make_clip(tmp_path / "c.mkv", 20, codec="mjpeg", pix_fmt="yuvj420p"))
    monkeypatch.setattr(av, "open", layer.open)
    monkeypatch.setattr(sys, "platform", "linux")
    return layer


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "list_cameras", lambda: LISTED)


def first_attempt(size: tuple[int, int], rate: int) -> dict[str, str]:
    return next(attempts("v4l2", WEBCAM, size, Fraction(rate)))


def test_large_fast_pictures_are_asked_for_compressed() -> None:
    assert first_attempt((1280, 720), 30) == {
        "video_size": "1280x720", "framerate": "30", "input_format": "mjpeg",
    }  # fmt: skip


def test_small_or_slow_pictures_are_asked_for_raw() -> None:
    assert first_attempt((640, 480), 30)["input_format"] == "yuyv422"
    assert first_attempt((1280, 720), 10)["input_format"] == "yuyv422"


def test_the_size_comes_before_the_encoding() -> None:
    raw_only = (CameraFormat(1280, 720, (R30,), "yuyv"), CameraFormat(640, 480, (R30,), "mjpg"))
    first = next(attempts("v4l2", raw_only, (1280, 720), R30))
    assert first["input_format"] == "yuyv422"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 360), "640x480"), ((1000, 600), "1280x720"), ((3840, 2160), "1280x720")],
)
def test_a_size_that_is_not_there_gives_the_nearest(size: tuple[int, int], expected: str) -> None:
    assert first_attempt(size, 30)["video_size"] == expected


def test_a_camera_that_tells_nothing_is_tried_from_best_to_anything() -> None:
    assert list(attempts("v4l2", (), (1280, 720), R30)) == [
        {"video_size": "1280x720", "framerate": "30", "input_format": "mjpeg"},
        {"video_size": "1280x720", "framerate": "30"},
        {"video_size": "1280x720"},
        {"framerate": "30"},
        {},
    ]
    assert next(attempts("v4l2", (), (640, 480), R30)) == {
        "video_size": "640x480", "framerate": "30",
    }  # fmt: skip
    assert next(attempts("dshow", (), (1280, 720), R30))["vcodec"] == "mjpeg"
    assert next(attempts("avfoundation", (), (1280, 720), R30)) == {
        "video_size": "1280x720", "framerate": "30",
    }  # fmt: skip


def test_rates() -> None:
    assert nearest_rate((R60, R30, R15), R30) == 30
    assert nearest_rate((R60, R15), Fraction(24)) == 60
    assert nearest_rate((R15, R10), R30) == 15
    assert nearest_rate((), R30) == 30
    options = next(attempts("v4l2", (), (64, 48), Fraction(30000, 1001)))
    assert options["framerate"] == "30000/1001"


@pytest.mark.parametrize(
    ("system", "device", "expected"),
    [
        ("linux", "/dev/video3", ("/dev/video3", "v4l2")),
        ("darwin", "0", ("0:none", "avfoundation")),
        ("win32", "@device_pnp_x", ("video=@device_pnp_x", "dshow")),
    ],
)
def test_what_ffmpeg_is_asked(
    layer: Layer,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    device: str,
    expected: tuple[str, str],
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    description = CameraDescription(3, device, "Cam", WEBCAM if system == "linux" else ())
    check_contract(open_device(description, size=(640, 480), rate=R30))
    ((name, layer_name, options),) = layer.asked
    assert (name, layer_name) == expected
    assert (options["video_size"], options["framerate"]) == ("640x480", "30")
    assert options.get("input_format") == ("yuyv422" if system == "linux" else None)


@pytest.mark.fault
def test_refused_formats_are_followed_by_the_next(layer: Layer) -> None:
    layer.refusals = [errno.EINVAL, errno.EIO]
    open_device(CameraDescription(0, "/dev/video0", "Cam")).close()
    assert [options for _, _, options in layer.asked] == [
        {"video_size": "1280x720", "framerate": "30", "input_format": "mjpeg"},
        {"video_size": "1280x720", "framerate": "30"},
        {"video_size": "1280x720"},
    ]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("number", "kind", "words", "hint"),
    [
        (errno.EBUSY, CameraLostError, "used by another program", "fuser /dev/video0"),
        (errno.ENOENT, CameraLostError, "no camera /dev/video0", "plug one in"),
        (errno.ENODEV, CameraLostError, "no camera /dev/video0", "plug one in"),
        (errno.EACCES, InputError, "not allowed", "ls -l /dev/video0"),
    ],
)
def test_failures_say_what_to_do(
    layer: Layer,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[InputError],
    words: str,
    hint: str,
) -> None:
    monkeypatch.setattr(_devices, "CONTAINER_MARKS", ())
    monkeypatch.setattr(_devices.v4l2, "hidden_devices", lambda: 0)
    monkeypatch.setattr(_devices, "_group_of", lambda device: None)
    layer.refusals = [number]
    with pytest.raises(kind, match=words) as raised:
        open_device(CameraDescription(0, "/dev/video0", "Cam"))
    assert type(raised.value) is kind
    assert hint in str(raised.value.hint)
    assert len(layer.asked) == 1


@pytest.mark.fault
def test_another_device_is_no_camera() -> None:
    """FFmpeg's own v4l2 input, which asks the device what it can do."""
    if sys.platform != "linux":
        pytest.skip("v4l2 is Linux's")
    with pytest.raises(InputError, match="/dev/null: is not a camera") as raised:
        open_camera(CameraChoice("/dev/null"))
    assert not isinstance(raised.value, CameraLostError)


@pytest.mark.fault
def test_a_camera_that_refuses_everything_may_be_unplugged_and_plugged(layer: Layer) -> None:
    layer.refusals = [errno.EINVAL] * 9
    with pytest.raises(CameraLostError, match="invalid argument"):
        open_device(CameraDescription(0, "/dev/video0", "Cam"))
    assert layer.asked[-1][2] == {}


def test_the_group_of_a_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(_devices, "_group_of", lambda device: "video")
    assert "usermod -aG video" in _devices.permission_hint(str(device))


def test_a_container_needs_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "mark").touch()
    monkeypatch.setattr(_devices, "CONTAINER_MARKS", (tmp_path / "mark",))
    assert "--device /dev/video0" in _devices.why_no_camera()


@pytest.mark.parametrize(
    ("system", "words"), [("darwin", "Privacy & Security"), ("win32", "Settings, Privacy")]
)
def test_every_system_says_where_to_allow(
    monkeypatch: pytest.MonkeyPatch, system: str, words: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert words in _devices.why_no_camera()


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("name", "number"),
    [
        (None, 0),
        ("2", 2),
        ("/dev/video12", 12),
        ("logitech brio", 2),
        ("Logitech BRIO 2", 12),
        ("integrated", 0),
    ],
)
def test_which_camera_is_meant(name: str | None, number: int) -> None:
    assert find_camera(name).number == number


@pytest.mark.fault
@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("1", CameraLostError), ("/dev/video7", CameraLostError), ("Logitec BRIO", InputError)],
)
def test_a_camera_that_is_not_there(name: str, kind: type[InputError]) -> None:
    with pytest.raises(kind, match=f"no camera.*{name}") as raised:
        open_camera(CameraChoice(name))
    assert type(raised.value) is kind
    assert "0 Integrated Camera, 2 Logitech BRIO" in str(raised.value.hint)


@pytest.mark.fault
def test_without_any_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "list_cameras", list)
    for name in (None, "0", "/dev/video0"):
        with pytest.raises(CameraLostError, match="no camera") as raised:
            find_camera(name)
        assert raised.value.hint


def test_the_choice_reaches_the_device(layer: Layer, listed: None) -> None:
    open_camera(CameraChoice("brio", (1920, 1080), R60)).close()
    assert layer.asked == [
        (
            "/dev/video2",
            "v4l2",
            {"video_size": "1920x1080", "framerate": "60", "input_format": "mjpeg"},
        )
    ]


def test_linux_lists_what_captures_and_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    found = [
        VideoDevice("/dev/video0", 0, "Cam", "uvcvideo", formats=WEBCAM),
        VideoDevice("/dev/video1", 1, "Cam", "uvcvideo", captures=False),
        VideoDevice("/dev/video2", 2, "Loop", "v4l2 loopback"),
        VideoDevice("/dev/video3", 3, "Shut", problem="permission denied"),
    ]
    monkeypatch.setattr(_devices.v4l2, "video_devices", lambda: found)
    assert _devices.list_cameras() == [
        CameraDescription(0, "/dev/video0", "Cam", WEBCAM),
        CameraDescription(3, "/dev/video3", "Shut", problem="permission denied"),
    ]


@pytest.mark.parametrize(("system", "layer_name"), [("darwin", "avfoundation"), ("win32", "dshow")])
def test_other_systems_are_listed_by_ffmpeg(
    monkeypatch: pytest.MonkeyPatch, system: str, layer_name: str
) -> None:
    from av.device import DeviceInfo

    asked = []

    def enumerate_devices(format_name: str) -> list[DeviceInfo]:
        asked.append(format_name)
        return [
            DeviceInfo("m", "Microphone", False, ["audio"]),
            DeviceInfo("0", "FaceTime HD", True, ["video"]),
            DeviceInfo("1", "Phone", False, ["video", "audio"]),
        ]

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("av.device.enumerate_input_devices", enumerate_devices)
    assert _devices.list_cameras() == [
        CameraDescription(0, "0", "FaceTime HD"),
        CameraDescription(1, "1", "Phone"),
    ]
    assert asked == [layer_name]


def test_a_layer_that_is_not_built_in_lists_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(_devices.LISTED_BY, "win32", "no such layer")
    assert _devices.list_cameras() == []
    monkeypatch.setattr(sys, "platform", "plan9")
    assert _devices.list_cameras() == []


def stamped(path: Path, times_s: list[float]) -> StreamCamera:
    pts = [round(time_s * 1e6) for time_s in times_s]
    clip = make_clip(path, len(pts), codec="mjpeg", pix_fmt="yuvj420p", pts=pts,
                     time_base=Fraction(1, 1_000_000), rate=1_000_000)  # fmt: skip
    return StreamCamera(real_open(str(clip)), "device", own_clock=True)


def test_the_drivers_stamps_are_capture_times(tmp_path: Path) -> None:
    base_s = time.monotonic() - 0.3
    times_s = [base_s, base_s + 0.033, base_s + 0.1]
    stream = stamped(tmp_path / "c.nut", times_s)
    assert [stream.read().time_s for _ in times_s] == pytest.approx(times_s, abs=2e-6)
    stream.close()


@pytest.mark.parametrize("offset_s", [-3600.0, 3600.0])
def test_stamps_of_another_clock_are_not_taken(tmp_path: Path, offset_s: float) -> None:
    base_s = max(0.0, time.monotonic() + offset_s)
    asked_s = time.monotonic()
    stream = stamped(tmp_path / "c.nut", [base_s, base_s + 0.033])
    for _ in range(2):
        assert asked_s <= stream.read().time_s + 1e-6 <= time.monotonic() + 1e-5
    stream.close()


def test_waiting_begins_when_nothing_is_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read while opening must not be waited for, or all that follows is late."""
    clip = make_clip(tmp_path / "c.mkv", 6, codec="mjpeg", pix_fmt="yuvj420p")
    waits: list[int] = []

    def wait(is_closed: Callable[[], bool]) -> None:
        waits.append(len(waits))

    monkeypatch.setattr(_stream_camera, "AT_ONCE_S", 60.0)
    stream = StreamCamera(real_open(str(clip)), "device", wait=wait)
    stream.read()
    stream.read()
    assert not waits
    monkeypatch.setattr(_stream_camera, "AT_ONCE_S", -1.0)
    stream.read()
    assert not waits
    stream.read()
    assert waits == [0]
    stream.close()


@pytest.fixture
def pipe() -> Any:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.fault
def test_a_device_that_hangs_is_lost(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device_camera, "SILENT_S", 0.2)
    monkeypatch.setattr(_device_camera, "SLICE_MS", 20)
    patience = Patience("/dev/video0", pipe[0])
    with pytest.raises(CameraLostError, match="delivers nothing"):
        patience.wait(lambda: False)
    os.write(pipe[1], b"x")
    patience.wait(lambda: False)


def test_closing_ends_the_wait_for_a_device(pipe: tuple[int, int]) -> None:
    with pytest.raises(CameraLostError, match="closed"):
        Patience("/dev/video0", pipe[0]).wait(lambda: True)


def test_the_devices_descriptor_is_found() -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    before = _device_camera._descriptors_on("/dev/null")
    with open("/dev/null", "rb") as device:
        assert _device_camera._descriptors_on("/dev/null") - before == {device.fileno()}
    assert _device_camera._descriptors_on("/no/device") == set()


def damaged(path: Path, damage: int, good: int) -> Path:
    """Motion JPEG of which the packets after the first are noise, then good again."""
    clip = make_clip(path.with_suffix(".avi"), 1, codec="mjpeg", pix_fmt="yuvj420p")
    with real_open(str(clip)) as container:
        picture = next(bytes(p) for p in container.demux(video=0) if p.size)
    with real_open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
        for number, body in enumerate([picture] + [b"\xff\xd8noise"] * damage + [picture] * good):
            packet: Any = av.Packet(body)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


@pytest.mark.fault
def test_damaged_pictures_are_left_out(tmp_path: Path) -> None:
    clip = damaged(tmp_path / "c.mkv", 5, 2)
    stream = StreamCamera(real_open(str(clip)), "device")
    assert [stream.read().index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CameraLostError, match="ended"):
        stream.read()
    stream.close()


@pytest.mark.fault
def test_nothing_but_damage_loses_the_camera(tmp_path: Path) -> None:
    clip = damaged(tmp_path / "c.mkv", _stream_camera.DAMAGED_IN_A_ROW + 5, 2)
    stream = StreamCamera(real_open(str(clip)), "device")
    with pytest.raises(CameraLostError, match="damage"):
        read_on(stream)
    stream.close()


@pytest.mark.fault
def test_sound_alone_is_no_camera(tmp_path: Path) -> None:
    path = tmp_path / "s.wav"
    with real_open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    released = threading.Event()
    with pytest.raises(InputError, match="no video"):
        StreamCamera(real_open(str(path)), "device", release=released.set)
    assert released.is_set()
