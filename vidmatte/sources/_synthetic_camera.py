"""A camera that needs none: a drawn person who sways before a room, each picture numbered.

The number stands as a bar code on the person's chest, where a matte is opaque, so that whoever
sees the picture at the far end can tell which one it is.
"""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np

from vidmatte.frames import (
    MATRIX_BT709,
    RANGE_LIMITED,
    Colour,
    Frame,
    VideoInfo,
    plane_views,
)
from vidmatte.sources._live import TIME_BASE, Stamper, Waiter

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

    Plane = NDArray[np.uint8]
    Floats = NDArray[np.float32]
    Yuv = tuple[int, int, int]

SIZE = (1280, 720)
RATE = Fraction(30)
BUFFERS = 4  # what a driver queues for a slow reader; older ones are lost, as with a camera
POSES = 24  # half a sway, walked there and back
SWAY_S = 4.0
SWAY = 0.05  # of the height, to each side
CODE_COLUMNS, CODE_ROWS, INDEX_BITS = 8, 4, 24
CODE_CENTRE = (0.5, 0.80)  # of width and height: on the chest in every pose
CELL = 1 / 45  # of the height
DARK, LIGHT = 50, 200  # luma of the code's cells

SHIRT: Yuv = (72, 150, 112)
SKIN: Yuv = (168, 110, 150)
HAIR: Yuv = (38, 126, 132)
# Top, right, bottom, left of what stands in the room, of height and width; then its colour.
FURNITURE: tuple[tuple[tuple[float, float, float, float], Yuv], ...] = (
    ((0.78, 1.0, 1.0, 0.0), (96, 112, 138)),  # floor
    ((0.08, 0.30, 0.52, 0.06), (205, 134, 122)),  # window
    ((0.08, 0.185, 0.52, 0.175), (140, 128, 128)),  # its bar
    ((0.12, 0.97, 0.78, 0.80), (84, 110, 146)),  # shelf
    ((0.18, 0.95, 0.32, 0.82), (120, 100, 160)),  # books
    ((0.40, 0.92, 0.54, 0.82), (100, 150, 110)),
    ((0.60, 0.28, 0.80, 0.05), (110, 118, 134)),  # table
)


class SyntheticCamera:
    """Delivers `width` by `height` yuv420p (BT.709, limited) at `rate` by the clock.

    Pictures are stamped with the time of the tick they belong to
    and carry their index (`code_of`). A reader that is late gets up to
    `BUFFERS` old ticks at once; older ones are skipped. Sizes must be even and at least 32.
    """

    def __init__(self, size: tuple[int, int] | None = None, rate: Fraction | None = None) -> None:
        width, height = size or SIZE
        self._rate = rate or RATE
        self.info = VideoInfo(
            name="synthetic",
            width=width,
            height=height,
            pix_fmt="yuv420p",
            time_base=TIME_BASE,
            frame_rate=self._rate,
            colour=Colour(MATRIX_BT709, RANGE_LIMITED, MATRIX_BT709, MATRIX_BT709),
            codec="synthetic",
            is_live=True,
        )
        self._poses = _draw_poses(width, height)
        self._waiter = Waiter("synthetic")
        self._stamper = Stamper()
        self._start_s: float | None = None
        self._tick = self._index = 0

    def read(self) -> Frame:
        """Wait for the next tick; the picture is fresh. Raises CameraLostError once closed."""
        now_s = time.monotonic()
        if self._start_s is None:
            self._start_s = now_s
        self._tick = max(self._tick, int((now_s - self._start_s) * self._rate) - BUFFERS + 1)
        due_s = self._start_s + float(self._tick / self._rate)
        picture = self._picture(self._tick, self._index)
        self._waiter.until(due_s)
        self._tick += 1
        self._index += 1
        return self._stamper.frame(picture, due_s, float(1 / self._rate))

    def close(self) -> None:
        """End a `read` that waits."""
        self._waiter.close()

    def _picture(self, tick: int, index: int) -> av.VideoFrame:
        import av

        picture = av.VideoFrame(self.info.width, self.info.height, "yuv420p")
        planes = plane_views(picture, writable=True)
        phase = 2 * math.pi * float(tick / self._rate) / SWAY_S
        pose = self._poses[round((math.sin(phase) + 1) / 2 * (POSES - 1))]
        for plane, drawn in zip(planes, pose, strict=True):
            plane[...] = drawn
        _write_code(cast("Plane", planes[0]), index)
        picture.colorspace, picture.color_range = MATRIX_BT709, RANGE_LIMITED
        picture.color_primaries = picture.color_trc = MATRIX_BT709
        return picture


def code_of(luma: Plane) -> int | None:
    """Read the index (modulo 2**24) off a picture's luma (H, W), or None if none is there."""
    cells = _code_cells(luma)
    rows, columns = cells.shape[1] // 4, cells.shape[3] // 4
    middles = cells[:, rows : rows * 3 + 1, :, columns : columns * 3 + 1].mean(axis=(1, 3))
    bits = (middles > (DARK + LIGHT) / 2).ravel()
    number = int(sum(1 << int(place) for place in np.flatnonzero(bits)))
    index, check = number & ((1 << INDEX_BITS) - 1), number >> INDEX_BITS
    return index if check == _check(index) else None


def _write_code(luma: Plane, index: int) -> None:
    index &= (1 << INDEX_BITS) - 1
    number = index | _check(index) << INDEX_BITS
    bits = np.array([number >> place & 1 for place in range(CODE_ROWS * CODE_COLUMNS)], bool)
    levels = np.where(bits, LIGHT, DARK).astype(np.uint8).reshape(CODE_ROWS, 1, CODE_COLUMNS, 1)
    _code_cells(luma)[...] = levels


def _check(index: int) -> int:
    """Eight bits over the other 24; never all dark or all light with them."""
    return (0xA5 ^ index ^ index >> 8 ^ index >> 16) * 29 & 0xFF


def _code_cells(luma: Plane) -> Plane:
    """View the code's place as (rows, cell height, columns, cell width)."""
    height, width = luma.shape
    cell = max(2, round(height * CELL))
    tall, wide = CODE_ROWS * cell, CODE_COLUMNS * cell
    top = round(height * CODE_CENTRE[1] - tall / 2)
    left = round(width * CODE_CENTRE[0] - wide / 2)
    strides = luma.strides
    return np.lib.stride_tricks.as_strided(
        luma[top:, left:],
        (CODE_ROWS, cell, CODE_COLUMNS, cell),
        (strides[0] * cell, strides[0], strides[1] * cell, strides[1]),
    )


def _draw_poses(width: int, height: int) -> list[tuple[Plane, Plane, Plane]]:
    """Draw the room once and the person over it in every pose; planes Y, U, V."""
    room = _draw_room(width, height)
    colours, alpha = _draw_person(width, height)
    poses = []
    for place in np.linspace(-1, 1, POSES):
        shift = 2 * round(float(place) * SWAY * height / 2)
        poses.append(_over(room, colours, np.roll(alpha, shift, axis=1), shift))
    return poses


def _draw_room(width: int, height: int) -> list[Floats]:
    """A wall that darkens to one side, with furniture and grain: Y, U, V at full size."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [160 - 40 * x / width - 20 * y / height, 122 + 0 * x, 132 + 0 * x]
    for (top, right, bottom, left), colour in FURNITURE:
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        for plane, level in zip(planes, colour, strict=True):
            plane[rows, columns] = level
    planes[0] += np.random.default_rng(0).standard_normal((height, width), np.float32) * 2
    return planes


def _draw_person(width: int, height: int) -> tuple[list[Floats], Floats]:
    """The person's Y, U, V, premultiplied, and alpha (0 to 1), in the middle of the picture."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - width / 2) / height, y / height
    soft = height / 2
    shapes: list[tuple[Floats, Yuv]] = [
        (_ellipse(x, y, (0.0, 0.27), (0.150, 0.185), soft), HAIR),
        (_ellipse(x, y, (0.0, 1.02), (0.40, 0.46), soft), SHIRT),
        (_ellipse(x, y, (0.0, 0.50), (0.075, 0.14), soft), SKIN),
        (_ellipse(x, y, (0.0, 0.33), (0.118, 0.165), soft), SKIN),
        (_ellipse(x, y, (-0.045, 0.30), (0.020, 0.011), soft), HAIR),
        (_ellipse(x, y, (0.045, 0.30), (0.020, 0.011), soft), HAIR),
        (_ellipse(x, y, (0.0, 0.41), (0.040, 0.010), soft), (120, 115, 170)),
    ]
    colours = [np.zeros((height, width), np.float32) for _ in range(3)]
    alpha = np.zeros((height, width), np.float32)
    shade = 14 * np.cos(8 * x) - 10 * y
    for cover, colour in shapes:
        for plane, level in zip(colours, colour, strict=True):
            plane += (level - plane) * cover
        alpha += (1 - alpha) * cover
    colours[0] += shade * alpha
    return colours, alpha


def _ellipse(
    x: Floats, y: Floats, centre: tuple[float, float], radii: tuple[float, float], soft: float
) -> Floats:
    """How much of each sample an ellipse covers; its edge is two or three samples wide."""
    distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
    cover: Floats = np.clip((1 - distance) * min(radii) * soft + 0.5, 0, 1, dtype=np.float32)
    return cover


def _over(
    room: list[Floats], colours: list[Floats], alpha: Floats, shift: int
) -> tuple[Plane, Plane, Plane]:
    planes = [
        np.roll(before, shift, axis=1) + behind * (1 - alpha)
        for behind, before in zip(room, colours, strict=True)
    ]
    luma, *chroma = (np.clip(np.rint(plane), 16, 240).astype(np.uint8) for plane in planes)
    u, v = (np.ascontiguousarray(plane[::2, ::2]) for plane in chroma)
    return luma, u, v
