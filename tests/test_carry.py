"""Maps carried along flow: where they land, where they are trusted, and when not at all."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from vidmatte.compute.cpu.carry import LOOSE, STRICT, Carried, Moment, Tolerance, carry, small_grey

HEIGHT, WIDTH = 128, 256
RADIUS = 30.0
# A carried edge may be off by a fraction of a pixel, of about 190 edge pixels among 32,768.
LANDED = 0.004


def grain(seed: int, *, softness: float = 2.0, contrast: float = 25.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (2 * HEIGHT, 2 * WIDTH)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), softness)
    return np.asarray(soft * contrast / soft.std(), np.float32)


ROOM, SKIN = 80 + grain(1), 170 + grain(2)


def scene(x: float, y: float, *, light: float = 0.0, room: np.ndarray = ROOM) -> Moment:
    """A disc with a pattern of its own about (x, y), which it carries along, in a fixed room."""
    rows, columns = np.indices((HEIGHT, WIDTH), np.float32)
    map_ = np.clip(RADIUS - np.hypot(columns - x, rows - y) + 0.5, 0, 1)
    shift = np.array([[1, 0, WIDTH - x], [0, 1, HEIGHT - y]], np.float32)
    skin = cv2.warpAffine(
        SKIN, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    picture = room[:HEIGHT, :WIDTH] * (1 - map_) + skin * map_ + light
    return Moment(map_.astype(np.float32), np.clip(picture, 0, 255).round().astype(np.uint8))


def carried(then: Moment, now: Moment, tolerance: Tolerance = LOOSE) -> Carried:
    result = carry(then, now.grey, tolerance)
    assert result is not None
    return result


@pytest.mark.parametrize("step", [(1.5, 0.5), (4.0, -2.0), (-7.5, 3.0), (12.0, 0.0)])
def test_a_map_lands_where_its_picture_went(step: tuple[float, float]) -> None:
    then, now = scene(120, 64), scene(120 + step[0], 64 + step[1])
    result = carried(then, now)
    trusted = result.value * result.trust
    error, held = np.abs(trusted - now.value).mean(), np.abs(then.value - now.value).mean()
    assert error < max(LANDED, 0.35 * held), (error, held)
    assert trusted.sum() > 0.85 * now.value.sum(), "the subject is lost"


def test_what_comes_out_from_behind_is_not_trusted_as_subject() -> None:
    then, now = scene(110, 64), scene(122, 64)
    result = carried(then, now)
    uncovered = (then.value > 0.5) & (cv2.dilate(now.value, np.ones((5, 5))) == 0)
    assert uncovered.sum() > 300
    assert (result.value * result.trust)[uncovered].mean() < 0.05


def test_a_subject_that_is_gone_is_not_trusted() -> None:
    then, now = scene(120, 64), scene(120, 400)
    assert not now.value.any()
    result = carry(then, now.grey, LOOSE)
    assert result is None or (result.value * result.trust).sum() < 0.6 * then.value.sum()


def test_slack_forgives_a_little_misplacement_of_fine_grain_only() -> None:
    fine = 80 + grain(3, softness=0.8, contrast=40)
    shift = np.array([[1, 0, 1.5], [0, 1, 1.5]], np.float32)
    then = scene(60, 64, room=fine)
    moved = scene(60, 64, room=cv2.warpAffine(fine, shift, (2 * WIDTH, 2 * HEIGHT)))
    part = slice(40, 90), slice(150, 220)
    strict, slack = (carried(then, moved, t).trust[part].mean() for t in (STRICT, LOOSE))
    assert strict < 0.5
    assert slack > 0.95
    replaced = fine.copy()
    replaced[35:95, 145:225] = 110 + grain(4, softness=0.8, contrast=25)[35:95, 145:225]
    assert carried(then, scene(60, 64, room=replaced)).trust[part].mean() < 0.4


def tinted(grey: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """`grey` in RGB, reddish where `map_` is, greenish elsewhere: OpenCV makes `grey` of it."""
    red = (np.float32(60), np.float32(-25), np.float32(-28.6))  # .299 R + .587 G + .114 B = 0
    sign = 2 * map_ - 1
    return np.dstack([np.clip(grey + sign * part, 0, 255) for part in red]).round().astype(np.uint8)


def test_a_room_of_the_subjects_luma_is_not_trusted_where_its_colour_differs() -> None:
    """The subject is gone, and what was behind has just the same grey."""
    then, empty = scene(120, 64), np.zeros((HEIGHT, WIDTH), np.float32)
    grey = np.clip(then.grey, 62, 193)  # so that no channel clips
    before, after = tinted(grey, then.value), tinted(grey, empty)
    inside = cv2.erode(then.value, np.ones((5, 5))) == 1
    in_grey = carry(Moment(then.value, small_grey(before, grey.shape)), Moment(empty, after).grey)
    assert in_grey is not None
    assert in_grey.trust[inside].mean() > 0.99, "this test shows nothing"
    result = carry(Moment(then.value, before), after, LOOSE)
    assert result is None or result.trust[inside].max() == 0


@pytest.mark.parametrize("step", [(4.0, -2.0), (-7.5, 3.0)])
def test_colours_are_carried_as_far_as_grey(step: tuple[float, float]) -> None:
    then, now = scene(120, 64), scene(120 + step[0], 64 + step[1])
    coloured = Moment(then.value, tinted(then.grey, then.value))
    result = carry(coloured, tinted(now.grey, now.value), LOOSE)
    assert result is not None
    trusted = result.value * result.trust
    held = np.abs(then.value - now.value).mean()
    assert np.abs(trusted - now.value).mean() < max(LANDED, 0.35 * held)
    assert trusted.sum() > 0.85 * now.value.sum(), "the subject is lost"
    assert coloured.at((64, 128)).image.shape == (64, 128, 3)


@pytest.mark.parametrize("light", [(14, 14, 14), (12, 0, -9)])
def test_light_of_another_colour_costs_no_trust(light: tuple[int, int, int]) -> None:
    then, now = scene(120, 64), scene(122, 64)
    lit = np.clip(tinted(now.grey, now.value).astype(int) + light, 0, 255).astype(np.uint8)
    result = carry(Moment(then.value, tinted(then.grey, then.value)), lit, LOOSE)
    assert result is not None
    assert result.trust[now.value > 0.9].mean() > 0.7


@pytest.mark.parametrize("tolerance", [STRICT, LOOSE])
def test_a_change_of_light_costs_no_trust(tolerance: Tolerance) -> None:
    then, now = scene(120, 64), scene(122, 64, light=12)
    assert carried(then, now, tolerance).trust[now.value > 0.9].mean() > 0.7


def test_where_nothing_moves_a_map_is_its_own() -> None:
    then = scene(120, 64)
    rng = np.random.default_rng(8)
    noisy = np.clip(then.grey + rng.normal(0, 1, then.grey.shape), 0, 255).astype(np.uint8)
    result = carried(then, Moment(then.value, noisy))
    assert result.still.mean() > 0.99
    np.testing.assert_array_equal(result.value[result.still], then.value[result.still])
    assert (result.trust[result.still] == 1).all()


@pytest.mark.parametrize("tolerance", [STRICT, LOOSE])
def test_nothing_is_carried_across_a_cut(tolerance: Tolerance) -> None:
    then, now = scene(120, 64), scene(60, 40, room=180 - grain(9, softness=8, contrast=50))
    assert carry(then, now.grey, tolerance) is None


def test_inputs_stay_and_sizes_can_be_brought_together() -> None:
    then, now = scene(120, 64), scene(124, 64)
    before = then.value.copy(), then.grey.copy(), now.grey.copy()
    small = then.at((64, 128))
    assert small.value.shape == small.grey.shape == (64, 128)
    assert small.value.mean() == pytest.approx(then.value.mean(), rel=0.02)
    assert then.at(then.value.shape) is then
    carried(then, now)
    for kept, seen in zip(before, (then.value, then.grey, now.grey), strict=True):
        np.testing.assert_array_equal(kept, seen)


def test_grey_is_of_the_same_picture() -> None:
    image = np.dstack([scene(120, 64).grey] * 3)
    assert small_grey(image, (64, 128)).shape == (64, 128)
    np.testing.assert_array_equal(small_grey(image, (HEIGHT, WIDTH)), image[..., 0])


NARROW = """
import numpy as np
from vidmatte.compute.cpu.carry import Moment, carry
for height, width in ((16, 160), (160, 16), (8, 160), (12, 40), (31, 91), (8, 8), (4, 4)):
    noise = np.random.default_rng(0).integers(0, 255, (height, width + 2), np.uint8)
    then, now = (np.ascontiguousarray(x) for x in (noise[:, 2:], noise[:, :-2]))
    value = np.full((height, width), 0.5, np.float32)
    brought = carry(Moment(value, then), now)
    assert brought is None or np.isfinite(brought.value).all()
print("done")
"""


def test_narrow_pictures_do_not_crash_the_flow() -> None:
    """In a process of its own: DIS reads beyond pictures that are narrower than a patch."""
    done = subprocess.run(
        [sys.executable, "-c", NARROW], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "done", (done.returncode, done.stderr)
