"""Ways to make the live commands say something on any machine: without a camera, before a start."""

from __future__ import annotations

import sys
from pathlib import Path

from message_tools import Patch, Scenario

from vidmatte.sinks import virtualcam
from vidmatte.sources import _devices, camera


def no_devices(folder: Path, patch: Patch) -> None:
    """A Linux machine with nothing plugged in."""
    patch.setattr(camera, "list_cameras", list)
    patch.setattr(virtualcam, "list_virtual_cameras", list)
    patch.setattr(_devices, "CONTAINER_MARKS", ())
    patch.setattr(_devices.v4l2, "hidden_devices", lambda: 0)
    patch.setattr(sys, "platform", "linux")


def own_sessions(folder: Path, patch: Patch) -> None:
    """No other session's socket is in reach."""
    patch.setenv("XDG_RUNTIME_DIR", str(folder))


WEBCAM = "webcam --backend null --no-control"
LIVE = {
    "cameras with none": Scenario("cameras", no_devices),
    "webcam onto nothing": Scenario(WEBCAM, no_devices),
    "webcam on two GPUs": Scenario(f"{WEBCAM} --record o.mp4 --device cuda:0,1", no_devices),
    "webcam of no name": Scenario(f"{WEBCAM} --record o.mp4 --camera Brio", no_devices),
    "webcam of no file": Scenario(f"{WEBCAM} --record o.mp4 --camera none.mp4"),
    "webcam of a text": Scenario(f"{WEBCAM} --record o.mp4 --camera t.mp4"),
    "webcam of an address": Scenario(f"{WEBCAM} --record o.mp4 --camera rtsp://127.0.0.1/x"),
    "webcam of a wrong address": Scenario(
        f"{WEBCAM} --record o.mp4 --allow-network --camera gopher://127.0.0.1/x"
    ),
    "webcam recorded over": Scenario(f"{WEBCAM} --record s.mp4 --camera synthetic"),
    "webcam recorded to a text": Scenario(f"{WEBCAM} --record o.txt --camera synthetic"),
    "webcam over no background": Scenario(f"{WEBCAM} --record o.mp4 -b none.png"),
    "webcam over an address": Scenario(f"{WEBCAM} --record o.mp4 -b http://127.0.0.1/x.jpg"),
    "webcam too small": Scenario(f"{WEBCAM} --record o.mp4 --size 9x9"),
    "session of no name": Scenario("webcam --backend null --record o.mp4 --control a/b"),
    "control of no session": Scenario("control freeze", own_sessions),
    "control of no command": Scenario("control explode", own_sessions),
}
