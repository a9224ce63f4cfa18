"""List the cameras of this machine, and say what to do where there is none."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vidmatte import v4l2
from vidmatte.v4l2 import CameraFormat

CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
LISTED_BY = {"darwin": "avfoundation", "win32": "dshow"}  # FFmpeg's name of the system's cameras


@dataclass(frozen=True, slots=True)
class CameraDescription:
    """A camera that is there.

    `number` is what `--camera N` means, `device` what is opened, `formats` what it says it
    delivers (empty where the system does not tell). `problem` says why it could not be asked.
    """

    number: int
    device: str
    name: str
    formats: tuple[CameraFormat, ...] = ()
    problem: str | None = None


def list_cameras() -> list[CameraDescription]:
    """List the cameras, virtual ones left out; an empty list says nothing of why."""
    if sys.platform == "linux":
        return [
            CameraDescription(d.number, d.path, d.name, d.formats, d.problem)
            for d in v4l2.video_devices()
            if d.captures and not d.is_loopback
        ]
    return _listed_by_ffmpeg(LISTED_BY.get(sys.platform))


def _listed_by_ffmpeg(format_name: str | None) -> list[CameraDescription]:
    """Ask FFmpeg's device listing; it tells names and no formats."""
    if format_name is None:
        return []
    import av
    from av.device import enumerate_input_devices

    try:
        devices = enumerate_input_devices(format_name)
    except (av.FFmpegError, OSError, ValueError):
        return []
    cameras = [d for d in devices if not d.media_types or "video" in d.media_types]
    return [CameraDescription(i, d.name, d.description or d.name) for i, d in enumerate(cameras)]


def why_no_camera() -> str:
    """Say in one line what to do where no camera is found."""
    if sys.platform == "darwin":
        return (
            "plug one in, and allow this terminal under System Settings, Privacy & Security, "
            "Camera; `vidmatte cameras` lists them"
        )
    if sys.platform == "win32":
        return (
            "plug one in, and allow desktop apps under Settings, Privacy, Camera; "
            "`vidmatte cameras` lists them"
        )
    if in_container() or v4l2.hidden_devices():
        return "give the container the camera: docker run --device /dev/video0 …"
    return "plug one in; `vidmatte cameras` lists them"


def in_container() -> bool:
    """Whether this looks like a container, whose /dev has only what it was given."""
    return any(mark.exists() for mark in CONTAINER_MARKS)


def permission_hint(device: str) -> str:
    """Say how to be allowed to open a device file."""
    if os.path.exists(device) and _group_of(device) == "video":
        return "sudo usermod -aG video $USER, then log in again"
    return f"check who may open it: ls -l {device}"


def _group_of(device: str) -> str | None:
    try:
        return Path(device).group()
    except (OSError, KeyError, NotImplementedError):
        return None
