"""Live mattes: of the very frame or honestly carried to it, and nothing worse when things fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from vidmatte.errors import BackendError, CancelledError
from vidmatte.frames import RANGE_FULL, RANGE_LIMITED, Colour, Frame, VideoInfo, plane_views
from vidmatte.live import mattes as mattes_module
from vidmatte.live import networks as networks_module
from vidmatte.live.governor import Level
from vidmatte.live.mattes import LiveMatting
from vidmatte.matting import MattingChoice, Network, open_network
from vidmatte.pipeline import Crew
from vidmatte.sources.synthetic import SyntheticClip

WIDTH, HEIGHT = 320, 192
FPS = 30
INFO = VideoInfo("live", WIDTH, HEIGHT, "yuv420p", Fraction(1, 1_000_000), Fraction(FPS),
                 colour=Colour(1, RANGE_LIMITED, 1, 1), is_live=True)  # fmt: skip
SYNCHRONOUS, CARRIED, SMALL = Level(320), Level(320, 3), Level(256)
END_S = 20.0  # what a loaded machine may take for what takes milliseconds
RADIUS = 40.0
# Mean error of alpha, of 1: the network's grid is half a picture's, and a matte's edge is soft.
OWN_ERROR = 0.006
CARRIED_ERROR = 0.015
MARGIN_PX = 8  # beyond it nothing of the room may be seen, not even faintly


def grain(seed: int, contrast: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.asarray(soft * contrast / soft.std(), np.float32)


ROOM, SKIN = 70 + grain(1, 12), 160 + grain(2, 18)


def true_alpha(x: float | None, y: float = HEIGHT / 2) -> np.ndarray:
    if x is None:
        return np.zeros((HEIGHT, WIDTH), np.float32)
    rows, columns = np.indices((HEIGHT, WIDTH), np.float32)
    return np.clip(RADIUS - np.hypot(columns - x, rows - y) + 0.5, 0, 1)


def frame_at(index: int, x: float | None, *, room: np.ndarray = ROOM) -> Frame:
    """A red patterned disc about `x`, or nobody, in a grey room, `index` frames after the start."""
    alpha = true_alpha(x)
    skin = np.roll(SKIN, round(x or 0), axis=1)
    picture = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    y, u, v = plane_views(picture, writable=True)
    y[...] = np.clip(room * (1 - alpha) + skin * alpha, 16, 235)
    small = cv2.resize(alpha, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    u[...], v[...] = 128 - 20 * small, 128 + 70 * small
    return Frame(picture, index, 1_000_000 * index // FPS, INFO.time_base)


class RedNetwork:
    """A network that finds what is red in the very picture it is given, when it is let."""

    name, description, batch = "red", "a formula", 1

    def __init__(self, input_size: tuple[int, int]) -> None:
        self.input_size = input_size
        self.free = threading.Event()
        self.free.set()
        self.begun = self.finished = 0
        self.error: Exception | None = None
        self.closed = False
        self.change: Callable[[np.ndarray], np.ndarray] = lambda probability: probability

    def infer(self, image_NHW3: np.ndarray) -> np.ndarray:
        self.begun += 1
        assert self.free.wait(END_S)
        if self.error is not None:
            raise self.error
        image = image_NHW3[0].astype(np.float32)
        red = np.clip((image[..., 0] - image[..., 1]) / 60, 0, 1)
        height, width = self.input_size
        small = cv2.resize(red, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        self.finished += 1
        return np.asarray(self.change(small)[None], np.float32)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A LiveMatting over RedNetworks, stepped by hand."""

    def __init__(self, levels: tuple[Level, ...], choice: MattingChoice) -> None:
        self.crew = Crew()
        self.matting = LiveMatting(INFO, choice, levels, self.crew)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *args: object) -> None:
        for network in opened.values():
            network.free.set()
        self.matting.close()
        assert self.crew.join(END_S) == []
        self.crew.check()

    @property
    def network(self) -> RedNetwork:
        return opened[self.matting.levels[self.matting.level].size]

    def alpha(self, frame: Frame) -> np.ndarray | None:
        matte = self.matting.matte(frame)
        if matte is None:
            return None
        assert matte.frame is frame
        assert matte.alpha.dtype == np.uint8
        assert matte.alpha.shape == (HEIGHT, WIDTH)
        return matte.alpha / np.float32(255)

    def settle(self) -> None:
        """Wait until the network has answered all that it was asked and took."""
        until(lambda: self.network.finished == self.network.begun and not self.is_asked)
        answered_until(self.matting)

    @property
    def is_asked(self) -> bool:
        asked = self.matting._asked
        return asked is not None and asked.serial > self.matting._networks.taken


opened: dict[int, RedNetwork] = {}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def answered_until(matting: LiveMatting) -> None:
    """Wait until the last answer lies ready, or was taken already."""
    asked = matting._asked
    assert asked is not None
    until(lambda: matting._networks.answered >= asked.serial)


@pytest.fixture(autouse=True)
def red_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every network that a test opens is a RedNetwork, kept in `opened` by its size."""
    opened.clear()
    real = open_network

    def open_red(info: VideoInfo, choice: MattingChoice, longer: int) -> Network:
        model, backend = real(info, replace(choice, backend="null"), longer)
        opened[longer] = RedNetwork(backend.input_size)
        return Network(model, opened[longer])

    monkeypatch.setattr(networks_module, "open_network", open_red)
    yield
    opened.clear()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*levels: Level, choice: MattingChoice | None = None) -> Bench:
        made.append(Bench(levels, choice or MattingChoice()))
        until(lambda: len(made[-1].matting.available) == len(levels))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()


def step_until_it_fails(one: Bench, start: int) -> None:
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        one.alpha(frame_at(start, 100))
        start += 1
        time.sleep(0.002)


def error(alpha: np.ndarray | None, x: float | None) -> float:
    assert alpha is not None
    return float(np.abs(alpha - true_alpha(x)).mean())


def room_seen(alpha: np.ndarray, x: float | None) -> float:
    """How much of the room is seen beyond the margin around the subject, as a share of it."""
    around = np.ones((2 * MARGIN_PX + 1,) * 2)
    return float(alpha[cv2.dilate(true_alpha(x), around) == 0].sum() / alpha.size)


def enter(one: Bench, x: float = 100, frames: int = 8) -> int:
    """Let somebody stand at `x` until they are there; return the next frame's index."""
    for index in range(frames):
        one.alpha(frame_at(index, x))
        one.settle()
    assert one.matting.present
    return frames


def test_a_mask_is_of_the_very_frame(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS)
    start = enter(one)
    for index, x in enumerate((100, 112, 90, 200, 60, 261, 101), start):
        alpha = one.alpha(frame_at(index, x))
        assert error(alpha, x) < OWN_ERROR, (index, error(alpha, x))
        assert alpha is not None
        assert room_seen(alpha, x) == 0


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


def test_an_empty_room_is_empty_whatever_the_network_sees_in_it(
    bench: Callable[..., Bench],
) -> None:
    one = bench(SYNCHRONOUS)
    one.network.change = lambda probability: np.maximum(probability, 0.45)
    for index in range(5):
        alpha = one.alpha(frame_at(index, None))
        assert alpha is not None
        assert not alpha.any()
    seen = [one.alpha(frame_at(index, 150)) for index in range(5, 9)]
    assert [alpha is not None and alpha.max() == 1 for alpha in seen][1:] == [True] * 3
    for index in range(9, 9 + 2 * FPS):
        alpha = one.alpha(frame_at(index, None))
    assert alpha is not None
    assert not alpha.any()
    assert not one.matting.present


@pytest.mark.parametrize("choice", [MattingChoice(temporal=False), MattingChoice(refinement=False)])
def test_parts_can_be_switched_off(choice: MattingChoice, bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS, choice=choice)
    start = enter(one)
    assert error(one.alpha(frame_at(start, 120)), 120) < 2 * OWN_ERROR


def test_alpha_is_adjusted_as_asked(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS, choice=MattingChoice(adjust=lambda alpha: 255 - alpha))
    start = enter(one)
    alpha = one.alpha(frame_at(start, 120))
    assert alpha is not None
    assert error(1 - alpha, 120) < OWN_ERROR


def test_the_steady_state_survives_a_change_of_level(bench: Callable[..., Bench]) -> None:
    """A flickering network is as steady after the change of size as before it."""
    one = bench(SYNCHRONOUS, SMALL)
    start = enter(one)
    one.matting.level = 1
    one.network.change = lambda probability: np.asarray(np.clip(probability, 0.3, 1))
    alpha = one.alpha(frame_at(start, 100))
    assert alpha is not None
    raw = (0.3 - 0.2) / (0.75 - 0.2)
    assert float(alpha[:40, 250:].mean()) < 0.3 * raw, "the past of the larger network is lost"
    assert one.matting.description.startswith("live 256x128")


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


@pytest.mark.parametrize("level", [SYNCHRONOUS, CARRIED])
@pytest.mark.parametrize("failure", [BackendError("no memory"), RuntimeError("out of luck")])
def test_an_error_of_the_network_reaches_every_later_frame(
    level: Level, failure: Exception, bench: Callable[..., Bench]
) -> None:
    one = bench(level)
    start = enter(one)
    one.network.error = failure
    with pytest.raises(BackendError, match=str(failure)):
        step_until_it_fails(one, start)
    for _ in range(2):
        with pytest.raises(BackendError, match=str(failure)):
            one.alpha(frame_at(start + 10, 100))
    assert one.crew.join(END_S) == []
    assert one.network.closed


def test_nan_is_an_error(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS)
    one.network.change = lambda probability: probability * np.float32(np.nan)
    with pytest.raises(BackendError, match="NaN"):
        one.alpha(frame_at(0, 100))


@pytest.mark.parametrize("level", [SYNCHRONOUS, CARRIED])
def test_a_network_that_hangs_is_an_error_and_closing_does_not_wait(
    level: Level, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mattes_module, "HANGING_S", 0.05)
    one = bench(level)
    one.network.free.clear()
    with pytest.raises(BackendError, match="not answered"):
        step_until_it_fails(one, 0)
    start = time.monotonic()
    one.matting.close()
    assert time.monotonic() - start < 1
    assert one.crew.join(0.05) == ["vidmatte-infer"]
    one.network.free.set()
    assert one.crew.join(END_S) == []
    assert one.network.closed


def test_closing_ends_a_frame_that_waits(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS)
    one.network.free.clear()
    ended = []

    def wait() -> None:
        with pytest.raises(CancelledError):
            one.alpha(frame_at(0, 100))
        ended.append(True)

    one.crew.start("test", wait)
    until(lambda: one.network.begun == 1)
    one.matting.close()
    until(lambda: bool(ended))


def test_a_level_cannot_be_chosen_before_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    may_open, open_red = threading.Event(), networks_module.open_network

    def slow(info: VideoInfo, choice: MattingChoice, longer: int) -> Network:
        assert longer == SYNCHRONOUS.size or may_open.wait(END_S)
        return open_red(info, choice, longer)

    monkeypatch.setattr(networks_module, "open_network", slow)
    with Bench((SYNCHRONOUS, SMALL, CARRIED), MattingChoice()) as one:
        assert one.matting.available == {0, 2}
        with pytest.raises(ValueError, match="level 1"):
            one.matting.level = 1
        assert one.matting.level == 0
        may_open.set()
        until(lambda: one.matting.available == {0, 1, 2})
        one.matting.level = 1
    assert all(network.closed for network in opened.values())


def test_a_level_that_cannot_be_opened_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_red = networks_module.open_network

    def picky(info: VideoInfo, choice: MattingChoice, longer: int) -> Network:
        if longer == SMALL.size:
            raise BackendError("too small")
        return open_red(info, choice, longer)

    monkeypatch.setattr(networks_module, "open_network", picky)
    with caplog.at_level(logging.WARNING), Bench((SYNCHRONOUS, SMALL), MattingChoice()) as one:
        until(lambda: "256 px: too small" in caplog.text)
        assert one.matting.available == {0}
        enter(one)


def test_a_level_that_opens_after_the_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    may_open, open_red = threading.Event(), networks_module.open_network

    def slow(info: VideoInfo, choice: MattingChoice, longer: int) -> Network:
        network = open_red(info, choice, longer)
        assert longer == SYNCHRONOUS.size or may_open.wait(END_S)
        return network

    monkeypatch.setattr(networks_module, "open_network", slow)
    with Bench((SYNCHRONOUS, SMALL, Level(192)), MattingChoice()) as one:
        one.matting.close()
        may_open.set()
    assert set(opened) == {SYNCHRONOUS.size, SMALL.size}
    assert opened[SMALL.size].closed


def camera_picture(
    width: int, height: int, pix_fmt: str, colour_range: int = RANGE_LIMITED
) -> av.VideoFrame:
    """A white cross in the middle of blue, mid-grey in a circle, red at the far sides."""
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = (0, 0, 255)
    image[:, : width // 40] = image[:, -width // 40 :] = (255, 0, 0)
    image[height // 2 - 20 : height // 2 + 20, width // 2 - 20 : width // 2 + 20] = 128
    picture = av.VideoFrame.from_ndarray(image, format="rgb24")
    return picture.reformat(format=pix_fmt, dst_colorspace=1, dst_color_range=colour_range)


def rgb_of(picture: av.VideoFrame) -> np.ndarray:
    return picture.to_ndarray(
        format="rgb24", src_colorspace=1, src_color_range=RANGE_LIMITED, dst_color_range=RANGE_FULL
    )


@pytest.mark.parametrize("pix_fmt", ["yuyv422", "nv12", "yuvj422p", "rgb24", "bgr0", "yuv420p"])
@pytest.mark.parametrize("size", [(640, 384), (640, 480), (854, 480), (321, 241), (200, 400)])
def test_every_camera_picture_becomes_one_of_the_session(
    pix_fmt: str, size: tuple[int, int], bench: Callable[..., Bench]
) -> None:
    one = bench(SYNCHRONOUS)
    full = RANGE_FULL if pix_fmt == "yuvj422p" else RANGE_LIMITED
    frame = Frame(camera_picture(*size, pix_fmt, full), 3, 77, INFO.time_base)
    conformed = one.matting.conform(frame)
    picture = conformed.picture
    assert (picture.width, picture.height, picture.format.name) == (WIDTH, HEIGHT, "yuv420p")
    assert (conformed.index, conformed.pts) == (3, 77)
    rgb = rgb_of(picture).astype(int)
    assert np.abs(rgb[HEIGHT // 2, WIDTH // 2] - 128).max() <= 6
    assert np.abs(rgb[HEIGHT // 8, WIDTH // 2] - (0, 0, 255)).max() <= 12
    grey = np.abs(rgb - 128).max(axis=2) < 40
    down, across = grey[:, WIDTH // 2].sum(), grey[HEIGHT // 2].sum()
    assert abs(int(down) - int(across)) <= 3, "it is squeezed"
    seen_red = rgb[:, 1, 0].mean() > 200
    assert seen_red == (size[0] / size[1] < 1.7), "sides are cropped only where they are too much"


def test_a_picture_that_fits_passes_by_reference(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS)
    frame = frame_at(0, 100)
    assert one.matting.conform(frame) is frame


@pytest.mark.parametrize(("level", "bound"), [(Level(320), 0.008), (Level(320, 2), 0.012)])
def test_the_real_network_on_a_walking_person(
    level: Level, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks_module, "open_network", open_network)
    clip = SyntheticClip(width=640, height=360, frame_count=90, scenario="walk")
    info = replace(INFO, width=640, height=360)
    crew, errors = Crew(), []
    matting = LiveMatting(info, MattingChoice(device="cpu"), [level], crew)
    for index in range(16):
        rendered = clip.render(20 + index)
        picture = av.VideoFrame.from_ndarray(rendered.image, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=1, dst_color_range=RANGE_LIMITED
        )
        frame = Frame(picture, index, 1_000_000 * index // FPS, INFO.time_base)
        matte = matting.matte(matting.conform(frame))
        answered_until(matting)
        if index >= 4:
            assert matte is not None
            errors.append(np.abs(matte.alpha / 255 - rendered.alpha / 255).mean())
    matting.close()
    assert crew.join(END_S) == []
    assert np.mean(errors) < bound, np.mean(errors)
