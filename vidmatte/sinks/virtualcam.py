"""Send pictures to a virtual camera: pyvirtualcam, or on Linux v4l2 output through PyAV."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidmatte import v4l2
from vidmatte.errors import OutputError, VirtualCameraLostError
from vidmatte.frames import plane_views
from vidmatte.sources._devices import in_container, list_cameras

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

    Plane = NDArray[np.uint8]

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0  # that the device file is still there: writing alone does not always tell
BUSY_WORDS = ("in use", "busy", "could not be started", "couldn't start", "multiple cameras")
MODPROBE = "sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label=vidmatte"
INSTALL_LOOPBACK = f"sudo apt install v4l2loopback-dkms, then {MODPROBE}"
INSTALL_OBS = {
    "darwin": "install OBS 30 or later, press Start Virtual Camera in it once, allow the system "
    "extension in System Settings, then quit OBS",
    "win32": "install OBS Studio 26 or later (https://obsproject.com), then quit OBS",
}
INSTALL_PYVIRTUALCAM = 'pip install "vidmatte[webcam]"'
NAMES_ELSEWHERE = ("OBS Virtual Camera", "Unity Video Capture")


class VirtualCamera(Protocol):
    """A virtual camera that is open. `send` and `close` are used by one thread.

    `device` is what other programs find it under.
    """

    device: str

    def send(self, picture: av.VideoFrame) -> None:
        """Show a yuv420p picture of the opened size, which is only read.

        Raises VirtualCameraLostError when the device is gone or refuses.
        """
        ...

    def readers(self) -> int | None:
        """Return how many programs read it, None where the system does not tell. Any thread."""
        ...

    def close(self) -> None:
        """Give the device back; closing twice does nothing, and a device that is gone is closed."""
        ...


@dataclass(frozen=True, slots=True)
class VirtualCameraDescription:
    """A virtual camera that is installed: what to pass as `--virtual-cam`, and its name."""

    device: str
    name: str
    problem: str | None = None


def list_virtual_cameras() -> list[VirtualCameraDescription]:
    """List the virtual cameras that pictures can be sent to."""
    if sys.platform == "linux":
        return [
            VirtualCameraDescription(d.path, d.name, d.problem)
            for d in v4l2.video_devices()
            if d.is_loopback
        ]
    return [
        VirtualCameraDescription(camera.name, camera.name)
        for camera in list_cameras()
        if camera.name.startswith(NAMES_ELSEWHERE)
    ]


def why_no_virtual_camera() -> str:
    """Say in one line what to install where there is no virtual camera."""
    if sys.platform == "linux":
        if in_container():
            return f"on the host: {INSTALL_LOOPBACK}; then give the container --device /dev/videoN"
        return INSTALL_LOOPBACK
    return INSTALL_OBS.get(sys.platform, "this system has no virtual camera that is known here")


def open_virtual_camera(
    device: str | None, width: int, height: int, rate: Fraction
) -> VirtualCamera:
    """Open a virtual camera for yuv420p pictures of an even size; None is the first that is free.

    `device` is a device file or a name. Raises VirtualCameraLostError where it is busy, else
    OutputError; the message names every way that was tried, the hint the step to take.
    """
    if width % 2 or height % 2:
        raise OutputError(
            f"virtual camera: {width}x{height} is not even", hint="use an even --size"
        )
    wanted = _device_named(device)
    pyvirtualcam, reason = _import_pyvirtualcam()
    if pyvirtualcam is not None:
        return PyvirtualcamOutput(pyvirtualcam, wanted, width, height, rate)
    if sys.platform == "linux":
        return V4l2Output(wanted, width, height, rate, without=reason)
    raise OutputError(f"virtual camera: {reason}", hint=INSTALL_PYVIRTUALCAM)


def _device_named(device: str | None) -> str | None:
    """Turn a virtual camera's name into its device; leave other words as they are."""
    if device is None or sys.platform != "linux" or device.startswith("/"):
        return device
    if device.isdecimal():
        return f"/dev/video{device}"
    wanted = device.casefold()
    found = [c.device for c in list_virtual_cameras() if c.name.casefold() == wanted]
    return found[0] if found else device


def _import_pyvirtualcam() -> tuple[Any, str]:
    try:
        import pyvirtualcam
    except ImportError as exc:
        missing = isinstance(exc, ModuleNotFoundError) and exc.name == "pyvirtualcam"
        why = "is not installed" if missing else f"cannot be loaded: {exc}"
        return None, f"pyvirtualcam {why}"
    return pyvirtualcam, ""


class PyvirtualcamOutput:
    """A virtual camera through pyvirtualcam, as I420."""

    def __init__(
        self, pyvirtualcam: Any, device: str | None, width: int, height: int, rate: Fraction
    ) -> None:
        try:
            self._camera = pyvirtualcam.Camera(
                width, height, float(rate), fmt=pyvirtualcam.PixelFormat.I420, device=device
            )
        except (RuntimeError, ValueError, OSError) as exc:
            raise _refused(device, str(exc)) from exc
        self.device = str(self._camera.device)
        self._packer = I420Packer(width, height)
        self._presence = DevicePresence(self.device)
        self._watch = _watch_for(self.device)
        self._backend_readers = _readers_of_backend(self._camera.backend)

    def send(self, picture: av.VideoFrame) -> None:
        """Show a picture."""
        if self._camera is None:
            raise VirtualCameraLostError(f"virtual camera {self.device}: is closed")
        self._presence.check()
        try:
            self._camera.send(self._packer.pack(picture))
        except (RuntimeError, ValueError, OSError) as exc:
            raise VirtualCameraLostError(f"virtual camera {self.device}: {exc}") from exc

    def readers(self) -> int | None:
        """Count the programs that read it, where the system or the backend tells."""
        if self._backend_readers is not None:
            count = self._backend_readers(self.device)
            return None if count is None else int(count)
        return None if self._watch is None else self._watch.count(time.monotonic())

    def close(self) -> None:
        """Give the device back."""
        camera, self._camera = self._camera, None
        if camera is None:
            return
        if self._watch is not None:
            self._watch.close()
        try:
            camera.close()
        except (RuntimeError, OSError) as exc:  # it is gone, which is why it is closed
            log.warning("virtual camera %s: %s", self.device, exc)


def _readers_of_backend(name: str) -> Any:
    """A backend of one's own may tell how many read: `readers(device)` on its class."""
    from pyvirtualcam.camera import BACKENDS

    return getattr(BACKENDS[name], "readers", None)


class V4l2Output:
    """A v4l2loopback device that FFmpeg writes raw pictures to."""

    def __init__(
        self, device: str | None, width: int, height: int, rate: Fraction, *, without: str
    ) -> None:
        import av

        self.device = device or _first_loopback(without)
        if not os.path.exists(self.device):
            raise OutputError(
                f"virtual camera {self.device}: no such device", hint=why_no_virtual_camera()
            )
        self._container: av.container.OutputContainer | None = None
        try:
            self._container = av.open(self.device, "w", format="v4l2")
            self._stream = self._container.add_stream("rawvideo", rate=rate)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as exc:
            self._abandon()
            raise _refused(self.device, f"v4l2: {_words(exc)}; {without}") from exc
        self._count = 0
        self._packer = I420Packer(width, height)
        self._presence = DevicePresence(self.device)
        self._watch = v4l2.ReaderWatch(self.device)

    def send(self, picture: av.VideoFrame) -> None:
        """Show a picture."""
        import av

        if self._container is None:
            raise VirtualCameraLostError(f"virtual camera {self.device}: is closed")
        self._presence.check()
        packet = av.Packet(self._packer.pack(picture).tobytes())
        packet.stream = self._stream
        packet.pts = packet.dts = self._count
        packet.time_base = 1 / Fraction(self._stream.codec_context.framerate)
        self._count += 1
        try:
            self._container.mux_one(packet)
        except (av.FFmpegError, OSError) as exc:
            raise VirtualCameraLostError(f"virtual camera {self.device}: {_words(exc)}") from exc

    def readers(self) -> int | None:
        """Count the programs that read it, where the driver or /proc tells."""
        return self._watch.count(time.monotonic())

    def close(self) -> None:
        """Give the device back."""
        if self._container is not None:
            self._watch.close()
        self._abandon()

    def _abandon(self) -> None:
        import av

        container, self._container = self._container, None
        if container is not None:
            try:
                container.close()
            except (av.FFmpegError, OSError) as exc:
                log.warning("virtual camera %s: %s", self.device, _words(exc))


def _words(exc: Exception) -> str:
    """The reason of an error without the name that it may repeat."""
    if isinstance(exc, OSError) and exc.errno == errno.ENOTTY:
        return "is not a video device"
    return exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else str(exc)


def _first_loopback(without: str) -> str:
    loopbacks = list_virtual_cameras()
    if not loopbacks:
        raise OutputError(
            f"no virtual camera: no v4l2loopback device; {without}", hint=why_no_virtual_camera()
        )
    return loopbacks[0].device


def _refused(device: str | None, reasons: str) -> OutputError:
    """Say why no virtual camera could be opened; busy ones may become free."""
    reasons = "; ".join(line.strip().rstrip(".") for line in reasons.splitlines() if line.strip())
    subject = "no virtual camera" if device is None else f"virtual camera {device}"
    words = reasons.lower()
    if any(word in words for word in BUSY_WORDS):
        return VirtualCameraLostError(
            f"{subject}: {reasons}", hint="close the program that sends to it (OBS, another run)"
        )
    if "permission" in words:
        return OutputError(
            f"{subject}: {reasons}", hint="sudo usermod -aG video $USER, log in again"
        )
    return OutputError(f"{subject}: {reasons}", hint=why_no_virtual_camera())


def _watch_for(device: str) -> v4l2.ReaderWatch | None:
    if sys.platform == "linux" and os.path.exists(device):
        return v4l2.ReaderWatch(device)
    return None


class DevicePresence:
    """Notices that a device file went away, looking at most once a second."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._identity = self._look() if device.startswith("/dev/") else None
        self._looked_s = time.monotonic()

    def _look(self) -> int | None:
        try:
            return os.stat(self._device).st_rdev
        except OSError:
            return None

    def check(self) -> None:
        """Raise VirtualCameraLostError when the device that was opened is no more."""
        now_s = time.monotonic()
        if self._identity is None or now_s - self._looked_s < CHECK_EVERY_S:
            return
        self._looked_s = now_s
        if self._look() != self._identity:
            raise VirtualCameraLostError(f"virtual camera {self._device}: is gone")


class I420Packer:
    """Copies a yuv420p picture's planes into one buffer without padding, which is used again."""

    def __init__(self, width: int, height: int) -> None:
        self._buffer: Plane = np.empty(width * height * 3 // 2, np.uint8)
        luma, chroma = width * height, width * height // 4
        half = (height // 2, width // 2)
        self._planes = (
            self._buffer[:luma].reshape(height, width),
            self._buffer[luma : luma + chroma].reshape(half),
            self._buffer[luma + chroma :].reshape(half),
        )

    def pack(self, picture: av.VideoFrame) -> Plane:
        """Return the picture as I420 (1-D uint8), valid until the next call."""
        assert picture.format.name == "yuv420p", picture.format.name
        for own, plane in zip(self._planes, plane_views(picture), strict=True):
            np.copyto(own, plane, casting="no")
        return self._buffer
