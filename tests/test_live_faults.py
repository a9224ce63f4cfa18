"""Everything that goes wrong in a call, with every picture sent looked at for the room."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest
from live_fakes import BACKGROUND, BROKEN, ROOM_SEEN, SOON_S, Call, TaggedCamera

from vidmatte.errors import (
    BackendError,
    CameraLostError,
    InputError,
    ModelError,
    OutputError,
    VirtualCameraLostError,
)
from vidmatte.live import session as session_module
from vidmatte.live.contracts import LiveChoice
from vidmatte.live.rack import BackgroundRack

pytestmark = pytest.mark.fault
BRIEF = LiveChoice(reconnect_timeout_s=0.5)
SIZED = LiveChoice(size=(128, 96), reconnect_timeout_s=SOON_S)


def test_a_cold_start_shows_the_background_until_the_first_matte() -> None:
    call = Call(SIZED)
    call.camera.is_stalled.set()
    with call:
        call.until_closed(5)
        assert all(sent.is_closed for sent in call.output.sent)
        call.camera.is_stalled.clear()
        call.until_matted()


def test_the_background_is_there_before_the_camera_if_the_size_is_known() -> None:
    call = Call(SIZED)
    call.camera.is_plugged = False
    with call:
        call.until_closed(5)
        call.until_said("it is not there; waiting up to")
        call.camera.is_plugged = True
        call.until_matted()


@pytest.mark.parametrize("times", [1, 3])
def test_a_camera_is_unplugged_and_comes_back(times: int) -> None:
    with Call() as call:
        for count in range(1, times + 1):
            call.until_matted()
            call.camera.is_plugged = False
            call.until_closed()
            assert call.status.state == "closed"
            call.until_said("it was unplugged; waiting up to")
            call.camera.is_plugged = True
            call.until_said("the camera is back", count)
            call.until_matted()
        assert call.mattes[0].resets >= times
    assert call.camera.opened == times + 1


def test_a_camera_that_does_not_come_back_ends_the_session() -> None:
    with Call(BRIEF) as call:
        call.until_matted()
        call.camera.is_plugged = False
        call.until_fails(CameraLostError, "not there")


def test_a_camera_that_can_never_work_ends_the_session_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call()
    monkeypatch.setattr(call.camera, "open", _raising(InputError("x.mp4: is no video")))
    with call:
        call.until_fails(InputError, "no video")


def _raising(error: Exception) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise error

    return fail


def test_a_stall_of_the_camera_closes_after_200_ms_and_heals() -> None:
    with Call() as call:
        call.until_matted(10)
        call.camera.is_stalled.set()
        call.until_closed(5)
        call.camera.is_stalled.clear()
        call.until_matted(5)
        assert call.camera.opened == 1


def test_a_camera_that_stays_silent_is_told_and_ends_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "SILENT_S", 0.2)
    call = Call(LiveChoice(reconnect_timeout_s=1.0))
    with call:
        call.until_matted()
        call.camera.is_stalled.set()
        call.until_said("the camera gives no pictures; only the background is shown")
        threading.Timer(1.5, call.camera.is_stalled.clear).start()  # lets its thread go
        call.until_fails(CameraLostError, "gives no pictures")


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_network_that_fails_at_picture_n_is_opened_again(number: int) -> None:
    with Call() as call:
        call.until(lambda: len(call.mattes) == 1)
        if number > 1:
            call.until_matted(number)
        call.faults.error = BROKEN
        call.until_closed()
        call.until_said("the network returned NaN; only the background is shown")
        call.faults.error = None
        call.until_said("the background is removed again")
        call.until_matted()
        assert len(call.mattes) >= 2
    assert all(mattes.closed for mattes in call.mattes)


def test_a_network_that_keeps_failing_ends_the_session() -> None:
    with Call(BRIEF) as call:
        call.until_matted()
        call.faults.error = BROKEN
        call.until_fails(BackendError, "NaN")


def test_a_network_that_cannot_be_opened_again_is_tried_until_the_time_out() -> None:
    with Call(BRIEF) as call:
        call.until_matted()
        call.open_error = BackendError("no device")
        call.faults.error = BROKEN
        call.until_fails(BackendError, "no device")


def test_a_model_that_is_missing_ends_the_session_at_once() -> None:
    call = Call()
    call.open_error = ModelError("there is no model x")
    with call:
        call.until_fails(ModelError, "no model x")


def test_an_unexpected_error_costs_pictures_and_never_shows_the_room() -> None:
    with Call() as call:
        call.until_matted()
        call.faults.error = ZeroDivisionError("a bug")
        call.until_closed()
        call.until_said("a bug")
        call.faults.error = None
        call.until_matted()
        assert len(call.mattes) == 1, "nothing is wrong with the network"


def test_a_network_that_hangs_leaves_the_background_and_the_rhythm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "SILENT_S", 0.2)
    with Call() as call:
        call.until_matted()
        call.faults.hang.set()
        call.until_closed(20)
        call.until_said("the network does not answer")
        assert call.status.counts.in_flight <= 2
        call.faults.hang.clear()
        call.until_matted()


def test_a_network_that_hangs_for_good_ends_the_session_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "SILENT_S", 0.2)
    call = Call(BRIEF)
    with call:
        call.until_matted()
        call.faults.hang.set()
        threading.Timer(1.5, call.faults.hang.clear).start()
        call.until_fails(BackendError, "does not answer")


def test_no_honest_matte_means_the_background_alone() -> None:
    with Call() as call:
        call.until_matted()
        call.faults.no_matte = True
        call.until_closed(5)
        call.faults.no_matte = False
        call.until_matted()


def test_a_network_too_slow_for_live_shows_the_background_without_flicker() -> None:
    with Call() as call:
        call.faults.work_s = 0.3
        call.until_closed(100)
        pictures = call.output.sent[-80:]
        turns = sum(a.is_closed != b.is_closed for a, b in itertools.pairwise(pictures))
        assert turns <= 4


def test_a_virtual_camera_that_is_busy_at_the_start_is_waited_for() -> None:
    call = Call()
    call.output.is_there = False
    with call:
        call.until_said("it is busy; waiting up to")
        call.until(lambda: call.status.counts.dropped > 3)
        assert call.status.counts.shown == 0
        call.output.is_there = True
        call.until_matted()


def test_a_virtual_camera_that_goes_and_comes_back() -> None:
    with Call() as call:
        call.until_matted()
        call.output.is_there = False
        call.until_said("it is gone; waiting up to")
        shown = call.status.counts.shown
        time.sleep(0.1)
        assert call.status.counts.shown == shown, "what was not sent was not shown"
        call.output.is_there = True
        call.until_said("the virtual camera is back: memory")
        call.until_matted()
    assert call.output.opened == 2


def test_a_virtual_camera_that_stays_away_ends_the_session() -> None:
    with Call(BRIEF) as call:
        call.until_matted()
        call.output.is_there = False
        call.until_fails(VirtualCameraLostError, "busy")


def test_a_virtual_camera_that_can_never_work_ends_the_session_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call()
    call.output.opened = 0
    error = OutputError("no virtual camera", hint="modprobe v4l2loopback")
    call.session._open_output = _raising(error)
    with call:
        call.until_fails(OutputError, "no virtual camera")


def test_pyvirtualcams_camera_is_busy_goes_and_comes_back() -> None:
    pytest.importorskip("pyvirtualcam")
    from memory_backend import registered

    from vidmatte.sinks.virtualcam import open_virtual_camera

    with registered() as backend:
        backend.refusal = RuntimeError("the device is busy")
        call = Call(open_output=lambda *shape: open_virtual_camera(None, *shape))
        with call:
            call.until_said("the device is busy; waiting up to")
            backend.refusal = None
            call.until(lambda: call.status.counts.shown > 5)
            backend.failure = RuntimeError("the device went away")
            call.until_said("the device went away; waiting up to")
            shown = call.status.counts.shown
            backend.failure = None
            call.until_said("the virtual camera is back")
            call.until(lambda: call.status.counts.shown > shown + 5)
        pictures = [picture for camera in backend.opened for picture in camera.pictures]
    assert len(pictures) >= 5
    assert all(int(picture[: 128 * 96].max()) < ROOM_SEEN for picture in pictures)


@pytest.mark.parametrize("size", [(96, 128), (256, 192), (100, 60)])
def test_a_camera_that_changes_its_size_is_conformed(size: tuple[int, int]) -> None:
    with Call() as call:
        call.until_matted()
        call.camera.size = size
        call.until_said(f"the camera's pictures are {size[0]}x{size[1]} now")
        start = len(call.output.sent)
        call.until(lambda: len(call.output.sent) > start + 30)
        assert call.output.size == (128, 96)
        call.camera.size = (128, 96)
        call.until_matted()
        assert call.mattes[0].resets >= 2


def test_an_odd_camera_gives_even_pictures() -> None:
    with Call(camera=TaggedCamera(size=(131, 97))) as call:
        call.until(lambda: len(call.output.sent) > 20)
        assert call.output.size == (130, 96)


def test_after_a_sleep_nothing_of_before_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    offset_s = [0.0]
    with Call() as call:
        shared = call.session._shared
        monkeypatch.setattr(shared, "wall", lambda: time.time() + offset_s[0], raising=False)
        call.until_matted(5)
        resets = call.mattes[0].resets
        call.camera.is_stalled.set()
        woke_s = time.monotonic()
        offset_s[0] = 7200.0
        call.until_closed(3)
        late = [s for s in call.output.sent if s.time_s > woke_s + 0.1]
        assert all(s.is_closed or s.pts is None or s.pts / 1e6 > woke_s - 0.1 for s in late)
        call.camera.is_stalled.clear()
        call.until_matted()
        assert call.mattes[0].resets > resets


def test_a_gap_between_pictures_begins_anew() -> None:
    with Call() as call:
        call.until_matted()
        resets = call.mattes[0].resets
        call.camera.is_stalled.set()
        time.sleep(1.1)
        call.camera.is_stalled.clear()
        call.until_matted()
        assert call.mattes[0].resets > resets


class FailingRack(BackgroundRack):
    """A rack whose background breaks at a word."""

    error: Exception | None = None

    def current(self) -> object:  # type: ignore[override]
        if self.error is not None:
            raise self.error
        return super().current()


@pytest.mark.parametrize("error", [InputError("beach.mp4: is gone"), RuntimeError("a bug")])
def test_a_rack_that_fails_costs_pictures_only(error: Exception) -> None:
    rack = FailingRack([BACKGROUND])
    with Call(rack=rack) as call:
        call.until_matted()
        rack.error = error
        call.until_closed()
        call.until_said(str(error))
        rack.error = None
        call.until_matted()


def test_a_rack_that_cannot_start_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    rack = BackgroundRack([BACKGROUND])
    monkeypatch.setattr(rack, "start", _raising(InputError("beach.jpg: is damaged")))
    with Call(rack=rack) as call:
        call.until_fails(InputError, "damaged")


def test_many_faults_at_once_never_show_the_room() -> None:
    with Call() as call:
        call.until_matted()
        for turn in range(12):
            call.camera.is_plugged = turn % 4 != 1
            call.output.is_there = turn % 6 != 3
            call.faults.error = BROKEN if turn % 5 == 2 else None
            call.session.mirror(turn % 2 == 0)
            call.session.show("frozen" if turn % 7 == 5 else "matte")
            time.sleep(0.15)
        call.camera.is_plugged = call.output.is_there = True
        call.faults.error = None
        call.session.show("matte")
        call.until_matted()
