"""Frames to mattes: what an error lets through, whatever the engine, batch and look-ahead."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from conftest import fill_picture
from numpy.typing import NDArray

from vidmatte.backends import Request, null, open_backend
from vidmatte.compute.cuda.engine import DeviceMatting
from vidmatte.errors import BackendError, InputError
from vidmatte.frames import Frame, VideoInfo, layout_of
from vidmatte.matting import Matting, Network
from vidmatte.models.registry import resolve_model

INFO = VideoInfo("clip", 64, 48, "yuv420p", Fraction(1, 25), Fraction(25))


def frames_of(count: int) -> Iterator[Frame]:
    for index in range(count):
        picture = av.VideoFrame(INFO.width, INFO.height, INFO.pix_fmt)
        fill_picture(picture, index)
        yield Frame(picture, index, index, INFO.time_base)


@pytest.fixture(params=["cpu", "torch"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def matting_of(engine: str, batch: int, lookahead: int = 1) -> Matting | DeviceMatting:
    """The engine of the CPU, or that of a GPU on the CPU, behind the disc."""
    model = resolve_model("live")
    layout = layout_of(INFO.pix_fmt)
    assert layout is not None
    if engine == "torch":
        request = Request(model, "cpu", (256, 320), batch, "auto", 1)
        device = null.DeviceNullBackend(request, "disc")
        return DeviceMatting(INFO, layout, device, model.row.curve, lookahead=lookahead)
    opened = open_backend(model, size=(256, 320), backend="null:disc", batch=batch)
    return Matting(INFO, layout, Network(model, opened), lookahead=lookahead)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("good", [0, 3, 4])
def test_a_frame_that_cannot_be_made_ready_lets_those_before_it_through(
    engine: str, batch: int, lookahead: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matting = matting_of(engine, batch, lookahead)
    conform = matting.conformer.conform

    def fail_at(frame: Frame) -> Frame:
        if frame.index == good:
            raise InputError("this picture cannot be read")
        return conform(frame)

    monkeypatch.setattr(matting.conformer, "conform", fail_at)
    seen: list[int] = []
    with pytest.raises(InputError, match="cannot be read"):
        seen.extend(matte.frame.index for matte in matting.process(frames_of(6)))
    assert seen == list(range(good))


@pytest.mark.parametrize("batch", [2, 4])
def test_batches_change_no_matte(batch: int) -> None:
    single = [matte.alpha for matte in matting_of("cpu", 1).process(frames_of(7))]
    batched = [matte.alpha for matte in matting_of("cpu", batch).process(frames_of(7))]
    np.testing.assert_array_equal(single, batched)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("good", [0, 3, 4, 5])
def test_a_frame_that_the_network_fails_at_lets_those_before_it_through(
    engine: str, batch: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at(matte_HW: NDArray[np.float32], index: int) -> None:
        if index == good:
            raise BackendError("the network broke")
        matte_HW[:] = 1

    monkeypatch.setitem(null.FORMULAS, "disc", fail_at)
    seen: list[int] = []
    with pytest.raises(BackendError, match="the network broke"):
        seen.extend(matte.frame.index for matte in matting_of(engine, batch).process(frames_of(6)))
    assert seen == list(range(good))


def test_an_error_of_a_batch_alone_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames pass one by one, the error behind them."""
    infer = null.NullBackend.infer

    def fail_batches(self: null.NullBackend, image_NHW3: NDArray[np.uint8]) -> Any:
        if len(image_NHW3) > 1:
            raise BackendError("out of its memory")
        return infer(self, image_NHW3)

    monkeypatch.setattr(null.NullBackend, "infer", fail_batches)
    seen: list[int] = []
    with pytest.raises(BackendError, match="out of its memory"):
        seen.extend(matte.frame.index for matte in matting_of("cpu", 4).process(frames_of(6)))
    assert seen == [0, 1, 2, 3]
