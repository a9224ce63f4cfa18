"""A live session over fakes: what it sends, counts, tells and hands back."""

from __future__ import annotations

import itertools
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from live_fakes import BACKGROUND, Call, MemoryCamera, Sent, TaggedCamera, mirrored, number_in
from live_fakes import room_picture as room

from vidmatte.errors import OutputError
from vidmatte.frames import Colour, Frame, VideoInfo, plane_views
from vidmatte.live import governing as governing_module
from vidmatte.live import session as session_module
from vidmatte.live.contracts import MICROSECONDS, LiveChoice
from vidmatte.live.governor import Level
from vidmatte.live.ledger import Ledger, percentile
from vidmatte.live.rack import BackgroundRack
from vidmatte.live.recording import Recording
from vidmatte.live.rendering import mirrored as mirrored_frame
from vidmatte.live.session import LiveSession, session_info
from vidmatte.live.shutter import STALE_S, Ready, Shutter
from vidmatte.matting import MattingChoice
from vidmatte.pipeline import Latest, Stop
from vidmatte.sources.camera import CameraChoice, open_camera

PERIOD_S = 1 / 60


def test_pictures_arrive_matted_on_time_and_counted() -> None:
    with Call() as call:
        call.until_matted(30)
        call.until(lambda: call.status.state == "matte")
        status = call.status
        assert status.counts.shown >= 10
        assert status.latency_p95_ms >= status.latency_p50_ms > 0
        assert status.in_fps > 0 < status.out_fps
        assert status.device == "luma below a threshold"
        assert status.background == BACKGROUND
        picture = call.session.picture()
        assert picture is not None
        assert (picture.width, picture.height) == (128, 96)
    assert call.result is not None
    assert call.result.hanging == ()
    assert call.result.stopped_by == 0
    assert call.output.rate == Fraction(60)


def test_a_steady_session_keeps_the_cameras_pace() -> None:
    with Call() as call:
        call.until_matted(90)
        sent = call.output.sent[-60:]
    intervals = np.diff([s.time_s for s in sent])
    assert np.median(intervals) == pytest.approx(PERIOD_S, rel=0.1)


def test_the_checks_of_these_tests_see_the_room() -> None:
    """Pass-through is the one way to show it; were it not wanted, the check would fail."""
    with Call() as call:
        call.until_matted()
        call.session.show("pass-through")
        call.until_sent(lambda sent: sent.shows_room, 3)
        assert call.status.state == "pass-through"
        call.session.show("matte")
        call.until_matted()
    seen = next(n for n, s in enumerate(call.output.sent) if s.shows_room)
    sent = call.output.sent[seen]
    call.output.sent[seen] = Sent(sent.time_s, sent.pts, sent.number, True, "matte", False)
    with pytest.raises(AssertionError):
        call.assert_room_unseen()


def test_after_pass_through_the_room_is_gone_at_once() -> None:
    with Call() as call:
        call.until_matted()
        for _ in range(5):
            call.session.show("pass-through")
            call.until_sent(lambda sent: sent.shows_room, 2)
            call.session.show("matte")
            hidden_s = time.monotonic()
            call.until_matted(2)
            late = [s for s in call.output.sent if s.time_s > hidden_s + 0.05]
            assert not any(s.shows_room for s in late)


def test_none_is_left_at_once_though_frozen() -> None:
    with Call(backgrounds=("none", BACKGROUND)) as call:
        call.until(lambda: call.status.state == "none")
        call.session.show("frozen")
        call.until(lambda: call.status.state == "frozen")
        call.rack.next()
        call.until(lambda: call.status.state == "closed")


def test_none_is_shown_as_it_is_and_left_at_once() -> None:
    with Call(backgrounds=("none", BACKGROUND)) as call:
        call.until_sent(lambda sent: sent.shows_room and sent.bare, 3)
        assert call.status.state == "none"
        call.rack.next()
        call.until_matted()
        start = len(call.output.sent)
        call.until_matted(10)
        assert not any(s.shows_room for s in call.output.sent[start:])


def test_a_freeze_holds_one_matted_picture_for_as_long_as_wanted() -> None:
    with Call() as call:
        call.until_matted()
        call.session.show("frozen")
        call.until(lambda: call.status.state == "frozen")
        frozen_s = time.monotonic()
        call.until(lambda: time.monotonic() > frozen_s + 0.5)
        held = {s.pts for s in call.output.sent if s.time_s > frozen_s}
        assert len(held) == 1
        shown = call.status.counts.shown
        assert call.status.counts.dropped > 10
        resumed = len(call.output.sent)
        call.thawing = lambda sent: sent.pts in held  # type: ignore[method-assign]
        call.session.show("matte")
        call.until_matted(5)
        assert call.status.counts.shown > shown
        assert not any(s.is_closed for s in call.output.sent[resumed:]), "no flicker"


def test_the_mirror_flips_the_camera_and_not_the_background() -> None:
    with Call() as call:
        call.until_matted()
        call.session.mirror(True)
        call.until_matted(10)
        assert call.status.mirror
        last = call.output.sent[-1]
        assert last.pts is not None
        assert last.number == mirrored(call.camera.taken[last.pts])
        assert call.mattes[0].resets >= 1


def test_mirroring_flips_every_plane_and_keeps_the_time() -> None:
    picture = av.VideoFrame(8, 4, "yuv420p")
    for plane in plane_views(picture, writable=True):
        plane[...] = np.arange(plane.shape[1], dtype=np.uint8)
    frame = mirrored_frame(Frame(picture, 3, 77, MICROSECONDS))
    for plane in plane_views(frame.picture):
        assert plane[0].tolist() == list(range(plane.shape[1]))[::-1]
    assert (frame.index, frame.pts, frame.picture.pts) == (3, 77, 77)


def test_the_numbers_of_the_tagged_camera_can_be_read() -> None:
    for number in (0, 1, 0x1234, 0xFFFF):
        assert number_in(room(number)) == number
    assert mirrored(mirrored(0x1234)) == 0x1234


def test_end_lets_the_session_return() -> None:
    with Call() as call:
        call.until_matted()
        call.session.end()
        call._thread.join(10)
        assert call.result is not None
        assert call.result.stopped_by is None


def test_nobody_reading_switches_the_camera_off_until_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "UNREAD_S", 0.2)
    monkeypatch.setattr(session_module, "LOOK_S", 0.05)
    with Call() as call:
        call.output.reader_count = 1
        call.until_matted()
        call.output.reader_count = 0
        call.until_said("the camera is switched off")
        call.until(lambda: not call.camera.is_on)
        call.until_closed(2)
        assert call.status.state == "idle"
        call.output.reader_count = 1
        call.until_said("the camera is switched on")
        call.until_matted()
        assert call.camera.opened == 2


@pytest.mark.parametrize("readers", [None, 2])
def test_the_camera_stays_on_where_somebody_reads_or_nobody_can_tell(
    readers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "UNREAD_S", 0.0)
    monkeypatch.setattr(session_module, "LOOK_S", 0.01)
    call = Call()
    call.output.reader_count = readers
    with call:
        call.until_matted(30)
        assert call.camera.opened == 1


def test_without_a_virtual_camera_pictures_can_still_be_looked_at() -> None:
    with Call(with_output=False) as call:
        call.until(lambda: call.status.counts.shown > 10)
        picture = call.session.picture()
        assert picture is not None
        assert number_in(picture) is not None


def test_the_wanted_rate_thins_a_fast_camera_evenly() -> None:
    choice = LiveChoice(rate=Fraction(20))
    with Call(choice, camera=TaggedCamera(Fraction(60))) as call:
        call.until_matted(40)
        numbers = [s.number for s in call.output.sent if s.number is not None]
    steps = [b - a for a, b in itertools.pairwise(numbers[-20:]) if b != a]
    assert np.median(steps) == 3


def test_what_the_governor_gives_up_is_done_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governing_module, "START_S", 0.0)
    call = Call()
    call.faults.levels = Level(320), Level(320, 1, Fraction(1, 2))
    call.faults.work_s = 0.018  # of 17 ms at 60 pictures a second
    with call:
        call.until_said("too slow here: only 1/2 of the pictures are shown")
        assert call.mattes[0].level == 1
        assert call.status.level == "1/2 of the rate"
        changed = len(call.output.sent)
        call.until_matted(40)
        sent = call.output.sent[changed + 10 :]
    numbers = [s.number for s in sent if s.number is not None]
    steps = [b - a for a, b in itertools.pairwise(numbers) if b != a]
    assert np.median(steps) == 2
    assert np.median(np.diff([s.time_s for s in sent])) == pytest.approx(2 * PERIOD_S, rel=0.1)


def test_a_session_that_is_not_to_be_governed_keeps_its_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(governing_module, "START_S", 0.0)
    call = Call(LiveChoice(govern=False))
    call.faults.levels = Level(320), Level(256)
    call.faults.work_s = 0.018
    with call:
        call.until_matted(120)
        assert call.mattes[0].level == 0
        assert call.status.level == ""


def test_what_is_sent_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "call.mkv"
    camera, output, stop = TaggedCamera(Fraction(30)), MemoryCamera(), Stop()
    session = LiveSession(
        camera.open,
        output.open,
        BackgroundRack([BACKGROUND]),
        MattingChoice(backend="null"),
        LiveChoice(),
        Recording(str(path)),
    )
    session.run(stop, lambda: len(output.sent) > 20 and stop.request(2), tick_s=0.01)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 10


def test_a_recording_that_fails_at_its_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(str(tmp_path / "call.mkv"))
    real = recording.close

    def fail() -> None:
        real()
        raise OutputError("call.mkv: the disk is full")

    monkeypatch.setattr(recording, "close", fail)
    camera, stop = TaggedCamera(), Stop()
    session = LiveSession(
        camera.open, None, BackgroundRack([BACKGROUND]), MattingChoice(backend="null"),
        LiveChoice(), recording,
    )  # fmt: skip
    with pytest.raises(OutputError, match="disk is full"):
        session.run(
            stop, lambda: session.status().counts.shown > 3 and stop.request(2), tick_s=0.01
        )


def test_the_real_network_and_camera_work_together() -> None:
    output, stop = MemoryCamera(), Stop()
    session = LiveSession(
        lambda: open_camera(CameraChoice("synthetic", (320, 180), Fraction(15))),
        output.open,
        BackgroundRack(["#000030"]),
        MattingChoice(model="live"),
        LiveChoice(),
    )
    end_s = time.monotonic() + 60

    def tick() -> None:
        if session.status().counts.shown >= 10 or time.monotonic() > end_s:
            stop.request(2)

    result = session.run(stop, tick, tick_s=0.01)
    assert result.status.counts.shown >= 10
    assert result.status.counts.in_flight == 0
    assert "live" in result.status.device


def test_what_a_session_sends_is_even_limited_and_tagged() -> None:
    camera = VideoInfo(
        "c", 641, 361, "yuvj422p", MICROSECONDS, Fraction(30), colour=Colour(2, 2, 1, 1)
    )
    info = session_info(LiveChoice(), camera)
    assert (info.width, info.height, info.pix_fmt) == (640, 360, "yuv420p")
    assert info.colour == Colour(6, 1, 1, 1)
    assert session_info(LiveChoice(size=(1281, 721)), None).upright_size == (1280, 720)
    assert session_info(LiveChoice(size=(1280, 720)), None).colour.matrix == 1
    assert session_info(LiveChoice(rate=Fraction(25)), camera).frame_rate == 25


# The shutter: the rules themselves.


def ready(capture_s: float, *, bare: bool = False, work_s: float = 0.01) -> Ready:
    return Ready(room(0), capture_s, capture_s, capture_s + work_s, bare)


def decide(shutter: Shutter, candidate: Ready | None, now_s: float, **wanted: object) -> str:
    options: dict[str, object] = {"mode": "matte", "bare": False, "period_s": 1 / 30} | wanted
    return shutter.decide(candidate, now_s, **options)[0]  # type: ignore[arg-type]


def test_a_picture_is_repeated_until_it_is_stale() -> None:
    shutter = Shutter()
    assert decide(shutter, None, 0.9) == "closed"
    assert decide(shutter, ready(1.0), 1.02) == "new"
    assert decide(shutter, None, 1.0 + STALE_S - 0.001) == "again"
    assert decide(shutter, None, 1.0 + STALE_S + 0.001) == "closed"
    assert decide(shutter, None, 1.0 + STALE_S - 0.001) == "closed", "what was let go stays away"


def test_a_new_picture_that_waited_too_long_is_not_shown() -> None:
    assert decide(Shutter(), ready(1.0), 1.0 + 0.01 + 2 / 30 - 0.001) == "new"
    assert decide(Shutter(), ready(1.0), 1.0 + 0.01 + 2 / 30 + 0.001) == "closed"
    assert decide(Shutter(), ready(1.0, work_s=0.3), 1.31) == "closed", "stale when it is ready"


@pytest.mark.parametrize("mode", ["matte", "frozen"])
def test_a_bare_picture_needs_to_be_wanted(mode: str) -> None:
    assert decide(Shutter(), ready(1.0, bare=True), 1.01, mode=mode) == "closed"
    assert decide(Shutter(), ready(1.0, bare=True), 1.01, mode="pass-through") == "new"
    assert decide(Shutter(), ready(1.0, bare=True), 1.01, bare=True) == "new"


def test_a_bare_picture_is_not_repeated_once_it_is_unwanted() -> None:
    shutter = Shutter()
    assert decide(shutter, ready(1.0, bare=True), 1.01, mode="pass-through") == "new"
    assert decide(shutter, None, 1.02, mode="pass-through") == "again"
    assert decide(shutter, None, 1.03) == "closed"
    assert decide(shutter, ready(1.02), 1.04) == "new", "and nothing is held against it"


def test_a_freeze_never_holds_the_room_against_the_will() -> None:
    shutter = Shutter()
    decide(shutter, ready(1.0, bare=True), 1.01, mode="pass-through")
    assert decide(shutter, None, 1.02, mode="frozen") == "closed"
    shutter = Shutter()
    decide(shutter, ready(1.0, bare=True), 1.01, bare=True)
    assert decide(shutter, None, 1.02, mode="frozen", bare=True) == "again"


def test_a_freeze_ends_with_the_first_new_picture_or_soon() -> None:
    shutter = Shutter()
    decide(shutter, ready(1.0), 1.01)
    assert decide(shutter, ready(1.03), 1.04, mode="frozen") == "again"
    assert decide(shutter, None, 60.0, mode="frozen") == "again"
    assert decide(shutter, None, 60.5) == "again"
    assert decide(shutter, ready(60.5), 60.52) == "new"
    decide(shutter, None, 60.53, mode="frozen")
    decide(shutter, None, 70.0)
    assert decide(shutter, None, 71.1) == "closed"


def test_a_picture_of_before_a_sleep_is_not_shown_after_it() -> None:
    shutter = Shutter()
    decide(shutter, ready(1.0), 1.01)
    shutter.forget(1.05)
    assert decide(shutter, None, 1.06) == "closed"
    assert decide(shutter, ready(1.04), 1.07) == "closed"
    assert decide(shutter, ready(1.06), 1.08) == "new"


def test_pictures_that_stay_away_again_and_again_do_not_flicker() -> None:
    """One picture in 300 ms: first shown, soon the background alone."""
    shutter, verdicts = Shutter(), []
    for tick in range(600):
        now_s = tick / 30
        candidate = ready(now_s - 0.01) if tick % 9 == 0 else None
        verdicts.append(decide(shutter, candidate, now_s))
    turns = sum((a == "closed") != (b == "closed") for a, b in itertools.pairwise(verdicts))
    assert turns <= 6
    assert set(verdicts[-300:]) == {"closed"}
    for tick in range(600, 900):
        verdicts.append(decide(shutter, ready(tick / 30 - 0.01), tick / 30))
    assert verdicts[-1] == "new", "calm again"


# The ledger.


def test_every_picture_is_counted_once_whatever_the_threads_do() -> None:
    ledger: Ledger = Ledger()
    waiting: Latest[int] = Latest()
    finished: Latest[int] = Latest()
    wrong: list[object] = []
    ended = threading.Event()

    def capture() -> None:
        for number in range(3000):
            if number % 7 == 0:
                ledger.pass_over(0.0)
            else:
                ledger.capture(waiting, number, 0.0)

    def compute() -> None:
        while not ended.is_set():
            number = waiting.get(0.001)
            if number is not None and number % 11 == 0:
                ledger.drop()
            elif number is not None:
                ledger.hand_over(finished, number)

    def send() -> None:
        while not ended.is_set():
            if finished.get(0.001) is not None:
                ledger.show(0.0, 0.01)
                if ledger.counts.shown % 13 == 0:
                    ledger.take_back()

    def look() -> None:
        while not ended.is_set():
            c = ledger.counts
            if c.captured != c.shown + c.dropped + c.in_flight or not 0 <= c.in_flight <= 3:
                wrong.append(c)

    threads = [threading.Thread(target=work) for work in (capture, compute, send, look)]
    for thread in threads:
        thread.start()
    threads[0].join()
    time.sleep(0.1)
    ended.set()
    for thread in threads:
        thread.join()
    ledger.empty(waiting)
    ledger.empty(finished)
    counts = ledger.counts
    assert not wrong
    assert counts.captured == 3000 == counts.shown + counts.dropped
    assert counts.in_flight == 0
    assert counts.shown > 0 < counts.dropped


def test_rates_and_latencies_are_of_the_last_pictures() -> None:
    ledger = Ledger()
    assert ledger.latency_ms() == (0.0, 0.0)
    slot: Latest[int] = Latest()
    for number in range(60):
        ledger.capture(slot, number, number / 30)
        slot.get()
        ledger.show(number / 30 - 0.001 * number, number / 30)
    incoming, outgoing = ledger.rates(2.0)
    assert incoming == pytest.approx(30, abs=1)
    assert outgoing == pytest.approx(30, abs=1)
    assert ledger.rates(10.0) == (0.0, 0.0)
    p50, p95 = ledger.latency_ms()
    assert p50 == pytest.approx(30, abs=1)
    assert p95 == pytest.approx(56, abs=1)
    assert percentile([], 0.5) == 0.0
