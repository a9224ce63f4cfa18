"""Live mattes over networks that find what is red, stepped by hand: for their tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from vidmatte.frames import RANGE_LIMITED, Colour, Frame, VideoInfo, plane_views
from vidmatte.live import networks as networks_module
from vidmatte.live.governor import Level
from vidmatte.live.mattes import LiveMatting
from vidmatte.matting import MattingChoice, Network, open_network
from vidmatte.pipeline import Crew

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
RED_AS_GREY = 11.5  # luma that a grey room needs to look, in grey, as bright as the disc's red does
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


def frame_at(
    index: int, x: float | None, *, room: np.ndarray = ROOM, skin: np.ndarray = SKIN
) -> Frame:
    """A red patterned disc about `x`, or nobody, in a grey room, `index` frames after the start."""
    alpha = true_alpha(x)
    skin = np.roll(skin, round(x or 0), axis=1)
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


def open_red(info: VideoInfo, choice: MattingChoice, longer: int) -> Network:
    """Open a RedNetwork, kept in `opened` by its size, in place of a real network."""
    model, backend = open_network(info, replace(choice, backend="null"), longer)
    opened[longer] = RedNetwork(backend.input_size)
    return Network(model, opened[longer])


@contextmanager
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """What makes a Bench of some levels, and ends it; every network is a RedNetwork."""
    opened.clear()
    monkeypatch.setattr(networks_module, "open_network", open_red)
    made: list[Bench] = []

    def make(*levels: Level, choice: MattingChoice | None = None) -> Bench:
        made.append(Bench(levels, choice or MattingChoice()))
        until(lambda: len(made[-1].matting.available) == len(levels))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()
    opened.clear()


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
