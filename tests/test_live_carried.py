"""Masks carried to later frames: they follow the subject, and where they cannot there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from live_red import (
    CARRIED,
    CARRIED_ERROR,
    FPS,
    OWN_ERROR,
    RED_AS_GREY,
    SKIN,
    SYNCHRONOUS,
    Bench,
    benches,
    enter,
    error,
    frame_at,
    grain,
    room_seen,
    true_alpha,
    until,
)


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    with benches(monkeypatch) as make:
        yield make


def test_carried_masks_follow_a_moving_subject(bench: Callable[..., Bench]) -> None:
    """Answers come three frames late: masks are three to five frames old when they are shown."""
    one = bench(SYNCHRONOUS, CARRIED)
    start = enter(one)
    one.matting.level = 1
    carried, held, ages = [], [], []
    positions = [100 + 3.0 * i for i in range(24)]
    for i, x in enumerate(positions):
        if i % 3 == 2:  # just before the next picture is asked about
            one.network.free.set()
            one.settle()
            one.network.free.clear()
        alpha = one.alpha(frame_at(start + i, x))
        assert one.matting._mask is not None
        made = round(one.matting._mask.time_s * FPS) - start
        ages.append(i - made)
        assert alpha is not None
        carried.append(error(alpha, x))
        held.append(float(np.abs(true_alpha(100 + 3.0 * max(made, 0)) - true_alpha(x)).mean()))
        assert room_seen(alpha, x) < 2e-4, i
    assert max(ages) >= 4, "the masks were too fresh to prove anything"
    assert max(carried) < CARRIED_ERROR, carried
    assert np.mean(carried[4:]) < 0.3 * np.mean(held[4:]), (np.mean(carried), np.mean(held))


def test_the_network_gets_every_nth_picture_and_the_newest_when_it_is_late(
    bench: Callable[..., Bench],
) -> None:
    one = bench(CARRIED)
    asked = []
    for index in range(10):
        one.alpha(frame_at(index, 100))
        one.settle()
        asked.append(one.network.begun)
    assert asked == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    one.network.free.clear()
    one.alpha(frame_at(12, 100))
    until(lambda: one.network.begun == 5)
    for index in range(13, 18):
        one.alpha(frame_at(index, 100))
    one.network.free.set()
    one.settle()
    one.alpha(frame_at(18, 100))
    assert one.network.begun == 6
    assert one.matting._mask is not None
    assert round(one.matting._mask.time_s * FPS) == 17


def test_slow_cameras_get_masks_as_often(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    for index in range(0, 30, 3):  # 10 fps, where every third picture's would be too old
        one.alpha(frame_at(index, 100))
        one.settle()
    assert one.network.begun == 10


def test_a_cut_gives_no_mask_until_there_is_one(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    start = enter(one)
    elsewhere = 190 - grain(7, 30)
    one.network.free.clear()
    assert one.alpha(frame_at(start, 100)) is not None
    assert one.alpha(frame_at(start + 1, 240, room=elsewhere)) is None
    one.network.free.set()
    one.alpha(frame_at(start + 2, 240, room=elsewhere))
    one.settle()
    alpha = one.alpha(frame_at(start + 3, 240, room=elsewhere))
    assert error(alpha, 240) < CARRIED_ERROR


def test_a_subject_that_is_lost_gives_no_mask(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    start = enter(one, 80)
    one.network.free.clear()
    alpha = one.alpha(frame_at(start, None))
    assert alpha is None or room_seen(alpha, None) == 0


def test_a_room_that_differs_from_the_subject_in_colour_only_is_not_shown(
    bench: Callable[..., Bench],
) -> None:
    """Somebody leaves, and in grey, which flow sees, the picture is the same as before."""
    one = bench(CARRIED)
    skin = SKIN - 65  # dark enough that its red is not clipped
    same = np.roll(skin, 80, axis=1) + RED_AS_GREY
    for index in range(8):
        alpha = one.alpha(frame_at(index, 80, room=same, skin=skin))
        one.settle()
    assert error(alpha, 80) < CARRIED_ERROR
    one.network.free.clear()
    for index in range(8, 11):
        alpha = one.alpha(frame_at(index, None, room=same))
        assert alpha is None or not alpha.any()


def test_a_mask_that_is_too_old_is_not_carried(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    start = enter(one)
    one.network.free.clear()
    shown = {}
    for index in range(start, start + 10):
        alpha = one.alpha(frame_at(index, 100))
        assert one.matting._mask is not None
        age = index - round(one.matting._mask.time_s * FPS)
        shown[age] = alpha is not None
    assert {age for age, was in shown.items() if was} >= {3, 4, 5}
    assert {age for age, was in shown.items() if not was} >= {7, 8, 9}
    one.network.free.set()


def test_there_is_no_mask_before_the_first_answer(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    one.network.free.clear()
    assert [one.alpha(frame_at(index, 100)) for index in range(3)] == [None] * 3
    one.network.free.set()


def test_after_a_reset_no_older_mask_is_used(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED)
    start = enter(one, frames=9)
    one.alpha(frame_at(start, 100))
    assert one.network.begun == 4
    one.settle()
    one.matting.reset()
    assert one.alpha(frame_at(start + 1, 100)) is None
    assert one.matting.present, "nobody vanishes because a picture was mirrored"
    one.settle()
    assert one.alpha(frame_at(start + 2, 100)) is not None


def test_a_late_answer_is_not_taken_for_a_later_frames(bench: Callable[..., Bench]) -> None:
    one = bench(CARRIED, SYNCHRONOUS)
    start = enter(one, frames=9)
    one.alpha(frame_at(start, 100))
    one.settle()
    one.matting.level = 1

    def slowly(probability: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return probability

    one.network.change = slowly
    assert error(one.alpha(frame_at(start + 1, 220)), 220) < OWN_ERROR
