"""Clips whose report is known: a textured disc moves over a textured room, with its exact matte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Times = Callable[[int], int | None]

WIDTH, HEIGHT, FRAMES, RATE = 320, 180, 30, 25
RADIUS = 44
# By the shape of a pixel: what arrays are, and what FFV1 keeps of it.
KINDS = {(): ("gray", "gray"), (3,): ("rgb24", "bgr0"), (4,): ("rgba", "bgra")}
MARGIN = 64  # of the textures around the picture


def _texture(seed: int) -> Picture:
    noise = np.random.default_rng(seed).normal(128, 700, (HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN))
    return np.asarray(np.clip(cv2.GaussianBlur(noise, (0, 0), 4), 20, 235), np.uint8)


ROOMS, DISC = (_texture(1), _texture(2)), _texture(3)


def place(index: int, speed: float = 2.0) -> tuple[float, float]:
    """Where the disc's centre is, (x, y) in pixels."""
    return 90 + speed * index, 90 + 12 * np.sin(index / 6)


def matte(x: float, y: float, radius: float = RADIUS) -> Picture:
    """A disc with an edge of one pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray(255 * np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1), np.uint8)


def picture(index: int, room: int = 0) -> Picture:
    """What the camera sees, grey in RGB: the disc's texture moves with it."""
    x, y = place(index)
    shift = np.array([[1, 0, x - 90 - MARGIN], [0, 1, y - 90 - MARGIN]], np.float32)
    disc = cv2.warpAffine(DISC, shift, (WIDTH, HEIGHT))
    alpha = matte(x, y) / 255
    behind = ROOMS[room][MARGIN : MARGIN + HEIGHT, MARGIN : MARGIN + WIDTH]
    grey = np.asarray(np.rint(disc * alpha + behind * (1 - alpha)), np.uint8)
    return np.dstack([grey // 2 + 60, grey, 255 - grey])


def mattes(change: Callable[[int, Picture], Picture] = lambda index, matte: matte) -> list[Picture]:
    """The true mattes, each changed by `change`."""
    return [change(index, matte(*place(index))) for index in range(FRAMES)]


def pictures(cut_at: int = FRAMES) -> Iterator[Picture]:
    """The pictures; from `cut_at` on in another room."""
    return (picture(index, int(index >= cut_at)) for index in range(FRAMES))


def write_video(
    path: Path,
    frames: Iterable[Picture],
    *,
    codec: str = "ffv1",
    pix_fmt: str | None = None,
    time: Times = lambda index: index,
    base: Fraction = Fraction(1, RATE),
    tags: dict[str, str] | None = None,
) -> Path:
    """Write pictures (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; `time` None leaves one out."""
    with av.open(f"file:{path}", "w") as container:
        container.metadata.update(tags or {})
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.codec_context.time_base = WIDTH, HEIGHT, base
        for index, array in enumerate(frames):
            pts = time(index)
            if pts is None:
                continue
            kind, stored = KINDS[array.shape[2:]]
            if index == 0:
                stream.pix_fmt = pix_fmt or stored
            frame = av.VideoFrame.from_ndarray(array, kind).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = pts, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
