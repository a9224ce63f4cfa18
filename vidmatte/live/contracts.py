"""What a live session is made of and what it tells: choices, status, result, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

from vidmatte.frames import Frame, Layout, Matte, VideoInfo, layout_of

if TYPE_CHECKING:
    import av

    from vidmatte.compute.cpu.background import Background
    from vidmatte.live.governor import Level
    from vidmatte.pipeline import Crew
    from vidmatte.sinks.virtualcam import VirtualCamera
    from vidmatte.sources.camera import Camera

MICROSECONDS = Fraction(1, 1_000_000)
_LAYOUT = layout_of("yuv420p")
assert _LAYOUT is not None
LAYOUT: Layout = _LAYOUT
"""The working layout of every live session."""

Mode = Literal["matte", "pass-through", "frozen"]
State = Literal["matte", "none", "pass-through", "frozen", "closed", "idle"]


@dataclass(frozen=True, slots=True)
class LiveChoice:
    """What is wanted of a session.

    `size` is (width, height) of what is sent, by default the camera's, made even. `rate` limits
    the pictures used per second; by default every one is. `govern` lets the governor give up
    quality when the machine is too slow. A camera, network or virtual camera that is gone for
    `reconnect_timeout_s` ends the session. `notice` writes a line into the background when
    it is shown alone. `release_idle` switches the camera off while nobody reads the virtual one.
    """

    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    mirror: bool = False
    preset: str = "balanced"
    govern: bool = True
    reconnect_timeout_s: float = 30.0
    notice: bool = False
    release_idle: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    """Pictures so far: `captured == shown + dropped + in_flight` at every moment.

    `repeated` and `closed` count pictures sent beyond those shown: the last one again, and the
    background alone.
    """

    captured: int = 0
    shown: int = 0
    dropped: int = 0
    in_flight: int = 0
    repeated: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """How a session is doing; latencies are from capture to send, of the last new pictures.

    `in_fps` counts the camera's pictures, `out_fps` all that are sent, over the last seconds.
    `level` says in words what the governor gave up, or is empty. `device` says what the network
    runs on, or is empty before it is loaded.
    """

    state: State = "closed"
    counts: Counts = Counts()
    in_fps: float = 0.0
    out_fps: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0
    level: str = ""
    device: str = ""
    background: str = ""
    mirror: bool = False
    present: bool = True


@dataclass(frozen=True, slots=True)
class LiveResult:
    """What a session did. `stopped_by` is the signal's number, `hanging` names stuck threads."""

    status: LiveStatus
    elapsed_s: float
    stopped_by: int | None = None
    hanging: tuple[str, ...] = ()


class Rack(Protocol):
    """The backgrounds of a session."""

    def start(self, info: VideoInfo, layout: Layout, crew: Crew) -> None:
        """Build the first background; raises VidmatteError."""

    def current(self) -> Background | None:
        """Return the background for the next frame, None for `none`. Compute thread."""

    def closed_picture(self, notice: str | None = None) -> av.VideoFrame:
        """Return the background alone. Any thread, never blocks."""

    def events(self) -> list[str]:
        """Return what happened since the last call."""

    def close(self) -> None:
        """End its thread."""

    @property
    def label(self) -> str:
        """What is shown, in words."""

    @property
    def shows_room(self) -> bool:
        """Whether `none` is the newest background. Any thread."""


class Mattes(Protocol):
    """Makes the matte of a live frame. Used by the compute thread, but for what it tells."""

    levels: tuple[Level, ...]
    level: int

    @property
    def available(self) -> frozenset[int]:
        """The levels that may be set now."""

    @property
    def network_s(self) -> float:
        """Seconds that the network took for its last answer, 0 where unknown."""

    @property
    def present(self) -> bool:
        """Whether somebody is there. Any thread."""

    @property
    def description(self) -> str:
        """What the network is and runs on. Any thread."""

    def conform(self, frame: Frame) -> Frame:
        """Return the frame as yuv420p in the session's size."""

    def matte(self, frame: Frame) -> Matte | None:
        """Return the matte of a conformed frame, None where there is no honest one.

        Raises BackendError.
        """

    def reset(self) -> None:
        """Forget what was seen before."""

    def close(self) -> None:
        """Free the network."""


class Recorder(Protocol):
    """Records what is sent, without ever holding it up."""

    def start(self, info: VideoInfo, crew: Crew) -> None:
        """Open the file and start the thread; raises VidmatteError."""

    def offer(self, picture: av.VideoFrame, time_s: float) -> None:
        """Take a picture that was sent at `time_s`, or drop and count it. Never blocks.

        The picture is shared: nobody writes into it or stamps it.
        """

    def events(self) -> list[str]:
        """Return what happened since the last call."""

    def close(self) -> None:
        """Finish the file; raises OutputError."""


OpenCamera = Callable[[], "Camera"]
OpenOutput = Callable[[int, int, Fraction], "VirtualCamera"]
OpenMattes = Callable[[VideoInfo, "Crew"], Mattes]
