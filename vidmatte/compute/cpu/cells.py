"""A picture seen as square cells: planes averaged into them, maps of cells interpolated back.

What is smooth is computed per cell; what must be sharp is computed block by block around the few
cells where something happens, so that no full-size float picture exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Samples

    Floats = NDArray[np.float32]

_STRIP_PX = 96  # rows of a block: a strip of floats stays in the second-level cache


class Area(NamedTuple):
    """A part of a plane, in its samples."""

    top: int
    bottom: int
    left: int
    right: int


def average(plane: Samples, step: tuple[int, int], peak: int) -> Floats:
    """Average `plane` over cells of `step` (x, y) samples; (h, w) float32, samples / `peak`.

    A cell that reaches beyond the edge repeats the edge.
    """
    import cv2

    step_x, step_y = step
    rows, columns = plane.shape
    h, w = -(-rows // step_y), -(-columns // step_x)
    if (h * step_y, w * step_x) != (rows, columns):
        below, right = h * step_y - rows, w * step_x - columns
        plane = cv2.copyMakeBorder(plane, 0, below, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    while step_x % 2 == 0 and step_y % 2 == 0:  # an exact 2:1 average is far faster than any other
        step_x, step_y = step_x // 2, step_y // 2
        plane = cv2.resize(plane, (w * step_x, h * step_y), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    small = cv2.resize(plane, (w, h), interpolation=cv2.INTER_AREA)
    return np.multiply(small, np.float32(1 / peak), dtype=np.float32)


def blocks(busy: NDArray[np.bool_], cell: int, width: int, height: int) -> Iterator[Area]:
    """Cut out blocks of the picture that hold every busy cell and its neighbours."""
    import cv2

    near = np.asarray(cv2.dilate(busy.astype(np.uint8), np.ones((3, 3), np.uint8)))
    step = max(1, _STRIP_PX // cell)
    for top in range(0, len(near), step):
        columns = near[top : top + step].any(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], columns, [0]))))
        for left, right in edges.reshape(-1, 2).tolist():
            yield Area(
                top * cell,
                min((top + step) * cell, height),
                left * cell,
                min(right * cell, width),
            )


def magnify(cells: Floats, step: tuple[int, int], area: Area) -> Floats:
    """Interpolate a map of cells, `step` (x, y) samples wide each, over `area` in samples."""
    import cv2

    h, w = cells.shape
    top, bottom = max(area.top // step[1] - 1, 0), min(-(-area.bottom // step[1]) + 1, h)
    left, right = max(area.left // step[0] - 1, 0), min(-(-area.right // step[0]) + 1, w)
    size = ((right - left) * step[0], (bottom - top) * step[1])
    fine = cv2.resize(cells[top:bottom, left:right], size)
    rows = slice(area.top - top * step[1], area.bottom - top * step[1])
    return np.asarray(fine[rows, area.left - left * step[0] : area.right - left * step[0]])
