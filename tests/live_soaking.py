"""Run a live session for long in one process, disturbed all the time; samples as JSON on stdout.

live_soaking.py SECONDS [leak]
"""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction
from typing import Any

import av
from soaking import sample, samples

from vidmatte.errors import BackendError, CameraLostError, VirtualCameraLostError
from vidmatte.frames import Frame, Matte
from vidmatte.live.contracts import LiveChoice
from vidmatte.live.governor import PRESETS
from vidmatte.live.mattes import LiveMatting
from vidmatte.live.rack import BackgroundRack
from vidmatte.live.session import LiveSession
from vidmatte.matting import MattingChoice
from vidmatte.pipeline import Stop
from vidmatte.sources._synthetic_camera import SyntheticCamera

SIZE, RATE = (320, 180), Fraction(30)
SAMPLES = 60
CAMERA_S, OUTPUT_S, NETWORK_S = 4.3, 6.1, 9.7  # between losses
FIRST_S = 1.0  # until the network is lost first: a second one takes more memory than the first
BACKGROUNDS = ("#203040", "blur", "#402030")
kept: list[Any] = []


class LosableCamera(SyntheticCamera):
    """The synthetic camera, unplugged every CAMERA_S."""

    def __init__(self) -> None:
        super().__init__(SIZE, RATE)
        self._lost_s = time.monotonic() + CAMERA_S

    def read(self) -> Frame:
        if time.monotonic() > self._lost_s:
            raise CameraLostError("camera synthetic: unplugged")
        return super().read()


class LosableOutput:
    """A virtual camera that is gone every OUTPUT_S."""

    device = "memory"

    def __init__(self, *, leak: bool) -> None:
        self._lost_s = time.monotonic() + OUTPUT_S
        self._leak = leak

    def send(self, picture: av.VideoFrame) -> None:
        if time.monotonic() > self._lost_s:
            raise VirtualCameraLostError("virtual camera: gone")
        if self._leak:
            kept.append(picture)

    def readers(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


class LosableMattes(LiveMatting):
    """The live mattes, which fail every NETWORK_S."""

    lost_s = float("inf")

    def matte(self, frame: Frame) -> Matte | None:
        if time.monotonic() > self.lost_s:
            raise BackendError("the network failed")
        return super().matte(frame)


def main(seconds: float, *, leak: bool) -> dict[str, Any]:
    """Run for `seconds`, then tell what was held and how often what was lost."""
    opened = {"camera": 0, "output": 0, "network": 0}
    rack = BackgroundRack(BACKGROUNDS)

    def open_camera() -> LosableCamera:
        opened["camera"] += 1
        return LosableCamera()

    def open_output(width: int, height: int, rate: Fraction) -> LosableOutput:
        opened["output"] += 1
        return LosableOutput(leak=leak)

    def open_mattes(info: Any, crew: Any) -> LosableMattes:
        opened["network"] += 1
        mattes = LosableMattes(info, MattingChoice("live"), PRESETS["fast"][:1], crew)
        mattes.lost_s = time.monotonic() + (NETWORK_S if opened["network"] > 1 else FIRST_S)
        return mattes

    session = LiveSession(
        open_camera, open_output, rack, MattingChoice("live"), LiveChoice(govern=False),
        open_mattes=open_mattes,
    )  # fmt: skip
    start_s = time.monotonic()
    lines = 0

    def tick() -> None:
        nonlocal lines
        lines += len(session.events())
        passed_s = time.monotonic() - start_s
        if passed_s * SAMPLES / seconds > len(samples):
            sample(session.status().counts.captured)
            rack.next()
            session.mirror(len(samples) % 3 == 0)
            session.show("frozen" if len(samples) % 5 == 0 else "matte")
        if passed_s > seconds:
            session.end()

    result = session.run(Stop(), tick)
    counts = result.status.counts
    return {
        "samples": samples,
        "opened": opened,
        "lines": lines,
        "shown": counts.shown,
        "exact": counts.captured == counts.shown + counts.dropped and not counts.in_flight,
        "hanging": result.hanging,
    }


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), leak="leak" in sys.argv)))
