"""Live mattes: of the very frame, levels that open later, networks that die."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from live_red import (
    CARRIED,
    END_S,
    FPS,
    HEIGHT,
    INFO,
    OWN_ERROR,
    SMALL,
    SYNCHRONOUS,
    WIDTH,
    Bench,
    answered_until,
    benches,
    enter,
    error,
    frame_at,
    opened,
    room_seen,
    step_until_it_fails,
    until,
)

from vidmatte.errors import BackendError, CancelledError
from vidmatte.frames import RANGE_FULL, RANGE_LIMITED, Frame, VideoInfo, layout_of
from vidmatte.live import mattes as mattes_module
from vidmatte.live import networks as networks_module
from vidmatte.live.governor import Level
from vidmatte.live.mattes import LiveMatting
from vidmatte.matting import Matting, MattingChoice, Network, open_network
from vidmatte.pipeline import Crew
from vidmatte.sources.synthetic import SyntheticClip


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    with benches(monkeypatch) as make:
        yield make


def test_a_mask_is_of_the_very_frame(bench: Callable[..., Bench]) -> None:
    one = bench(SYNCHRONOUS)
    start = enter(one)
    for index, x in enumerate((100, 112, 90, 200, 60, 261, 101), start):
        alpha = one.alpha(frame_at(index, x))
        assert error(alpha, x) < OWN_ERROR, (index, error(alpha, x))
        assert alpha is not None
        assert room_seen(alpha, x) == 0


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


def walking(count: int) -> list[tuple[Frame, Any]]:
    """Frames of a walking person, and how they were rendered."""
    clip = SyntheticClip(width=640, height=360, frame_count=90, scenario="walk")
    found = []
    for index in range(count):
        rendered = clip.render(20 + index)
        picture = av.VideoFrame.from_ndarray(rendered.image, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=1, dst_color_range=RANGE_LIMITED
        )
        frame = Frame(picture, index, 1_000_000 * index // FPS, INFO.time_base)
        found.append((frame, rendered.alpha / 255))
    return found


@pytest.mark.parametrize(("level", "bound"), [(Level(320), 0.0085), (Level(320, 2), 0.012)])
def test_the_real_network_on_a_walking_person(
    level: Level, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As good as the same network on a file, own masks and carried ones alike."""
    monkeypatch.setattr(networks_module, "open_network", open_network)
    info = replace(INFO, width=640, height=360)
    choice = MattingChoice(device="cpu")
    frames = walking(16)
    layout = layout_of("yuv420p")
    assert layout is not None
    file = Matting(info, layout, open_network(info, choice), lookahead=0)
    mattes = list(file.process(frame for frame, _ in frames))
    file.close()
    wanted = [np.abs(m.alpha / 255 - t).mean() for m, (_, t) in zip(mattes, frames, strict=True)]
    crew, errors = Crew(), []
    matting = LiveMatting(info, choice, [level], crew)
    for frame, truth in frames:
        matte = matting.matte(matting.conform(frame))
        answered_until(matting)
        if frame.index >= 4:
            assert matte is not None
            errors.append(np.abs(matte.alpha / 255 - truth).mean())
    matting.close()
    assert crew.join(END_S) == []
    assert np.mean(errors) < 1.05 * np.mean(wanted[4:])
    assert np.mean(errors) < bound


@pytest.mark.parametrize("refinement", [True, False])
def test_refining_where_the_network_is_changes_nothing(
    refinement: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One level: sums in another order."""
    monkeypatch.setattr(networks_module, "open_network", open_network)
    info = replace(INFO, width=640, height=360)
    choice = MattingChoice("live", backend="torch", device="cpu", refinement=refinement)
    results = []
    for on_device in (True, False):
        crew = Crew()
        matting = LiveMatting(info, choice, [Level(320)], crew)
        assert matting._on_device is not None
        if not on_device:
            matting._on_device = None
        mattes = [matting.matte(matting.conform(frame)) for frame, _ in walking(3)]
        results.append(np.stack([matte.alpha.astype(int) for matte in mattes if matte]))
        matting.close()
        assert crew.join(END_S) == []
    assert results[0].shape == (3, 360, 640)
    assert results[0].max() == 255
    assert np.abs(results[0] - results[1]).max() <= 1
