"""A camera, mattes and a virtual camera for tests of live sessions, with faults at a word.

The camera's pictures show a bright room (luma ROOM) and, before it, a dark subject that carries
the picture's number. Whatever is sent is looked at: luma above ROOM_SEEN is the room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from vidmatte.compute.cpu.conform import Conformer
from vidmatte.errors import BackendError, CameraLostError, VirtualCameraLostError
from vidmatte.frames import Colour, Frame, Matte, VideoInfo, plane_views
from vidmatte.live.contracts import (
    LAYOUT,
    MICROSECONDS,
    LiveChoice,
    LiveResult,
    LiveStatus,
    Mode,
    OpenOutput,
)
from vidmatte.live.governor import Level
from vidmatte.live.rack import BackgroundRack
from vidmatte.live.session import LiveSession
from vidmatte.matting import MattingChoice
from vidmatte.pipeline import Crew, Stop

SIZE = (128, 96)
ROOM, SUBJECT, DIGIT = 220, 100, 60
ROOM_SEEN = 180  # no subject, stamp, background or notice of these tests is so bright
BACKGROUND = "#000030"
MATTE_BELOW = 150  # luma: the fake network's idea of a subject
RATE = Fraction(60)  # of the fake camera: tests are short
SOON_S = 20.0  # what anything may take on a busy machine


def room_picture(number: int, size: tuple[int, int] = SIZE) -> av.VideoFrame:
    """Make a picture of the room with the subject that carries `number` (16 bits)."""
    picture = av.VideoFrame(*size, "yuv420p")
    luma, *chroma = plane_views(picture, writable=True)
    luma[...] = ROOM
    for plane, value in zip(chroma, (100, 150), strict=True):
        plane[...] = value
    height, width = luma.shape
    top, left = height // 4 // 2 * 2, width // 4 // 2 * 2
    tall, wide = height // 2 // 2, width // 2 // 8
    luma[top : top + 2 * tall, left : left + 8 * wide] = SUBJECT
    for bit in range(16):
        if number >> bit & 1:
            y, x = top + bit // 8 * tall, left + bit % 8 * wide
            luma[y : y + tall, x : x + wide] = DIGIT
    return picture


def number_in(picture: av.VideoFrame) -> int | None:
    """Read the number back, None where there is no subject."""
    luma = plane_views(picture)[0]
    height, width = luma.shape
    top, left = height // 4 // 2 * 2, width // 4 // 2 * 2
    tall, wide = height // 2 // 2, width // 2 // 8
    number = 0
    for bit in range(16):
        y, x = top + bit // 8 * tall + tall // 2, left + bit % 8 * wide + wide // 2
        if not 40 < luma[y, x] < MATTE_BELOW:
            return None
        number |= int(luma[y, x] < (SUBJECT + DIGIT) // 2) << bit
    return number


def mirrored(number: int) -> int:
    """The number that a flipped picture shows: each row of eight bits from right to left."""
    return sum((number >> bit & 1) << (bit & 8 | 7 - (bit & 7)) for bit in range(16))


class TaggedCamera:
    """A camera plugged into a computer: `open` it, unplug it, let it stall, change its size.

    Frames are stamped with the time at which they are due. `taken` maps their stamps to numbers.
    """

    def __init__(self, rate: Fraction = RATE, size: tuple[int, int] = SIZE) -> None:
        self.rate, self.size = rate, size
        self.is_plugged = True
        self.is_stalled = threading.Event()
        self.taken: dict[int, int] = {}
        self.opened = self.closed = 0
        self.burst = 1  # pictures that come at once
        self._number = 0
        self._due_s: float | None = None

    @property
    def is_on(self) -> bool:
        return self.opened > self.closed

    @property
    def info(self) -> VideoInfo:
        width, height = self.size
        return VideoInfo(
            "tagged", width, height, "yuv420p", MICROSECONDS, self.rate,
            colour=Colour(6, 1, 2, 2), is_live=True,
        )  # fmt: skip

    def open(self) -> TaggedCamera:
        if not self.is_plugged:
            raise CameraLostError("camera 0: it is not there")
        assert not self.is_on, "opened twice"
        self.opened += 1
        self._due_s = None
        return self

    def read(self) -> Frame:
        while self.is_stalled.is_set() and self.is_plugged and self.is_on:
            time.sleep(0.002)
        if not self.is_plugged:
            raise CameraLostError("camera 0: it was unplugged")
        number = self._number = (self._number + 1) & 0xFFFF
        now_s = time.monotonic()
        period_s = float(1 / self.rate)
        if self._due_s is None or self._due_s < now_s - 5 * period_s:
            self._due_s = now_s
        elif number % self.burst == 0:
            self._due_s += self.burst * period_s
        else:
            self._due_s += 1e-5
        time.sleep(max(0.0, self._due_s - now_s))
        picture = room_picture(number, self.size)
        pts = picture.pts = round(self._due_s * 1e6)
        picture.time_base = MICROSECONDS
        self.taken[pts] = number
        return Frame(picture, number, pts, MICROSECONDS)

    def close(self) -> None:
        self.closed = self.opened


@dataclass
class Faults:
    """What the fake network does wrong, from now on."""

    error: Exception | None = None
    hang: threading.Event = field(default_factory=threading.Event)
    work_s: float = 0.002
    no_matte: bool = False
    levels: tuple[Level, ...] = (Level(320),)


class FakeMattes:
    """Mattes by luma: what is dark is the subject. Exact, so that nothing of the room is left."""

    description = "luma below a threshold"
    network_s = 0.0

    def __init__(self, info: VideoInfo, faults: Faults) -> None:
        self._conformer = Conformer(info, LAYOUT)
        self._faults = faults
        self.levels = faults.levels
        self.available = frozenset(range(len(self.levels)))
        self.level = 0
        self.present = True
        self.resets = self.closed = 0

    def conform(self, frame: Frame) -> Frame:
        return self._conformer.conform(frame)

    def matte(self, frame: Frame) -> Matte | None:
        faults = self._faults
        while faults.hang.is_set():
            time.sleep(0.002)
        time.sleep(faults.work_s)
        if faults.error is not None:
            raise faults.error
        if faults.no_matte:
            return None
        luma = plane_views(frame.picture)[0]
        return Matte(frame, np.where(luma < MATTE_BELOW, np.uint8(255), np.uint8(0)))

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Sent:
    """What the virtual camera got: when, what it shows, and what the session wanted then."""

    time_s: float
    pts: int | None
    number: int | None
    shows_room: bool
    mode: Mode
    bare: bool

    @property
    def is_closed(self) -> bool:
        return self.number is None


class MemoryCamera:
    """A virtual camera that looks at everything it is sent."""

    device = "memory"

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.is_there = True
        self.reader_count: int | None = None
        self.opened = self.closed = 0
        self.wanted: Callable[[], tuple[Mode, bool]] = lambda: ("matte", False)

    def open(self, width: int, height: int, rate: Fraction) -> MemoryCamera:
        if not self.is_there:
            raise VirtualCameraLostError("virtual camera: it is busy")
        self.opened += 1
        self.size, self.rate = (width, height), rate
        return self

    def send(self, picture: av.VideoFrame) -> None:
        if not self.is_there:
            raise VirtualCameraLostError("virtual camera: it is gone")
        assert (picture.width, picture.height) == self.size
        assert picture.format.name == "yuv420p"
        mode, bare = self.wanted()
        luma = plane_views(picture)[0]
        number = number_in(picture)
        seen = bool(luma.max() >= ROOM_SEEN)
        self.sent.append(Sent(time.monotonic(), picture.pts, number, seen, mode, bare))

    def readers(self) -> int | None:
        return self.reader_count

    def close(self) -> None:
        self.closed = self.opened


class Call:
    """A session over fakes, running on a thread of its own, for tests to disturb.

    Leave it as a context manager: it ends the session and checks what was promised.
    """

    def __init__(
        self,
        choice: LiveChoice | None = None,
        *,
        camera: TaggedCamera | None = None,
        backgrounds: tuple[str, ...] = (BACKGROUND,),
        rack: BackgroundRack | None = None,
        with_output: bool = True,
        open_output: OpenOutput | None = None,
    ) -> None:
        self.camera = camera or TaggedCamera()
        self.output = MemoryCamera()
        self.faults = Faults()
        self.mattes: list[FakeMattes] = []
        self.rack = rack or BackgroundRack(list(backgrounds))
        self.lines: list[str] = []
        self.stop = Stop()
        self.result: LiveResult | None = None
        self.error: BaseException | None = None
        self.open_error: Exception | None = None
        self.session = LiveSession(
            lambda: self.camera.open(),
            (open_output or self.output.open) if with_output else None,
            self.rack,
            MattingChoice(backend="null"),
            choice or LiveChoice(reconnect_timeout_s=SOON_S),
            open_mattes=self._open_mattes,
        )
        self.output.wanted = lambda: (self.session._shared.mode, self.session._shared.bare)
        self._thread = threading.Thread(target=self._run, name="call", daemon=True)

    def _open_mattes(self, info: VideoInfo, crew: Crew) -> FakeMattes:
        if self.open_error is not None:
            raise self.open_error
        self.mattes.append(FakeMattes(info, self.faults))
        return self.mattes[-1]

    def _run(self) -> None:
        try:
            self.result = self.session.run(self.stop, self._tick, tick_s=0.01)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def _tick(self) -> None:
        self.lines += self.session.events()
        counts = self.session.status().counts
        assert counts.captured == counts.shown + counts.dropped + counts.in_flight
        assert 0 <= counts.in_flight <= 3

    def __enter__(self) -> Call:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop.request(0)
        self.faults.hang.clear()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), "the session does not end"
        if kind is None:
            if self.error is not None:
                raise self.error
            self.check()

    def check(self) -> None:
        """Check what holds for every session, however it was disturbed."""
        self.assert_room_unseen()
        self.assert_stamps_are_true()
        self.assert_repeats_are_fresh()
        counts = self.session.status().counts
        assert counts.in_flight == 0
        assert counts.captured == counts.shown + counts.dropped
        assert not self.camera.is_on
        assert self.output.opened == self.output.closed or not self.output.sent

    def assert_room_unseen(self) -> None:
        for sent in self.output.sent:
            deliberate = sent.mode == "pass-through" or sent.bare
            assert deliberate or not sent.shows_room, sent

    def assert_stamps_are_true(self) -> None:
        """The picture that a stamp claims is the picture sent."""
        for sent in self.output.sent:
            if sent.number is not None and sent.pts is not None:
                number = self.camera.taken[sent.pts]
                assert sent.number in (number, mirrored(number)), sent

    def assert_repeats_are_fresh(self) -> None:
        """New pictures never go back in time; none is older than 200 ms unless frozen."""
        newest = 0
        for sent in self.output.sent:
            if sent.pts is None or sent.number is None:
                continue
            assert sent.pts >= newest
            newest = sent.pts
            if sent.mode != "frozen" and not self.thawing(sent):
                assert sent.time_s - sent.pts / 1e6 <= 0.2 + SEND_S, sent

    def thawing(self, sent: Sent) -> bool:
        """Overridden by tests that freeze."""
        return False

    def until(self, condition: Callable[[], bool], timeout_s: float = SOON_S) -> None:
        """Wait for a condition; fail when it does not come or the session ends before."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"timed out; said: {self.lines}"
            if not self._thread.is_alive():
                raise self.error or AssertionError(f"the session ended; said: {self.lines}")
            time.sleep(0.005)

    def until_sent(self, wanted: Callable[[Sent], bool], count: int = 1) -> None:
        """Wait until `count` pictures that are wanted have been sent, from now on."""
        start = len(self.output.sent)
        self.until(lambda: sum(wanted(s) for s in self.output.sent[start:]) >= count)

    def until_matted(self, count: int = 3) -> None:
        self.until_sent(lambda sent: not sent.is_closed and not sent.shows_room, count)

    def until_closed(self, count: int = 3) -> None:
        self.until_sent(lambda sent: sent.is_closed, count)

    def until_said(self, part: str, times: int = 1) -> None:
        self.until(lambda: sum(part in line for line in self.lines) >= times)

    def until_fails(self, kind: type[Exception], part: str) -> None:
        """Wait until the session ends with an error of that kind."""
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), f"it goes on; said: {self.lines}"
        assert isinstance(self.error, kind), self.error
        assert part in str(self.error)
        self.error = None

    @property
    def status(self) -> LiveStatus:
        return self.session.status()


SEND_S = 0.1  # from the decision to the look at the picture, on a machine with other work
BROKEN = BackendError("the network returned NaN")
