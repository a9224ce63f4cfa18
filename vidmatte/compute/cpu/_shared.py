"""What the CPU modules share: OpenCV, loaded when first needed, bands of rows, box means."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.errors import VidmatteError, is_out_of_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Samples

_BAND_ROWS = 64  # a multiple of every chroma step


def load_cv2() -> ModuleType:
    """Import OpenCV and return it.

    Raises:
        VidmatteError: it cannot be loaded; on slim images the desktop build misses libGL.

    """
    try:
        import cv2
    except ImportError as exc:
        if is_out_of_memory(exc):
            raise MemoryError("no memory to load OpenCV") from exc
        raise VidmatteError(
            f"OpenCV cannot be loaded: {exc}",
            hint="pip install --force-reinstall opencv-python-headless",
        ) from exc
    module: ModuleType = cv2
    return module


def row_bands(height: int) -> Iterator[slice]:
    """Divide a picture into bands of rows whose temporaries stay in cache.

    Fresh arrays of 4 MB and more cost more in page faults than the arithmetic on them.
    """
    for top in range(0, height, _BAND_ROWS):
        yield slice(top, top + _BAND_ROWS)


def box_mean(plane: Samples, step_x: int, step_y: int) -> Samples:
    """Average boxes of `step_x` by `step_y` samples, halves rounded up.

    Boxes cut by the right and lower edge are smaller. Returns the plane's type in a size divided
    by the steps and rounded up.
    """
    height, width = plane.shape
    whole_x, whole_y = width // step_x * step_x, height // step_y * step_y
    mean = np.empty((-(-height // step_y), -(-width // step_x)), plane.dtype)
    for rows, out_rows, box_y in (
        (slice(0, whole_y), slice(0, whole_y // step_y), step_y),
        (slice(whole_y, height), slice(whole_y // step_y, None), height - whole_y),
    ):
        for columns, out_columns, box_x in (
            (slice(0, whole_x), slice(0, whole_x // step_x), step_x),
            (slice(whole_x, width), slice(whole_x // step_x, None), width - whole_x),
        ):
            part = plane[rows, columns]
            if part.size:
                mean[out_rows, out_columns] = _whole_box_mean(part, box_x, box_y)
    return mean


def _whole_box_mean(plane: Samples, step_x: int, step_y: int) -> Samples:
    if (step_x, step_y) == (2, 2):  # the one case that OpenCV has a fast and exact path for
        size = plane.shape[1] // 2, plane.shape[0] // 2
        mean: Samples = load_cv2().resize(plane, size, interpolation=load_cv2().INTER_AREA)
        return mean
    if (step_x, step_y) == (2, 1):
        return _pair_mean(plane)
    wide = np.uint16 if plane.dtype == np.uint8 else np.uint32
    count = step_x * step_y
    total: NDArray[Any] = np.full(
        (plane.shape[0] // step_y, plane.shape[1] // step_x), count // 2, wide
    )
    for dy in range(step_y):
        for dx in range(step_x):
            total += plane[dy::step_y, dx::step_x]
    small = np.empty(total.shape, plane.dtype)
    np.floor_divide(total, wide(count), out=small, casting="unsafe")
    return small


def _pair_mean(plane: Samples) -> Samples:
    """Average neighbours in a row, read as one wide number each: four times as fast as slices."""
    digits = plane.itemsize * 8
    wide: type[np.uint16 | np.uint32] = np.uint16 if digits == 8 else np.uint32
    small = np.empty((plane.shape[0], plane.shape[1] // 2), plane.dtype)
    for band in row_bands(len(plane)):
        pairs: NDArray[Any] = np.ascontiguousarray(plane[band]).view(wide)
        total = pairs & wide((1 << digits) - 1)
        total += pairs >> wide(digits)
        total += wide(1)
        total >>= wide(1)
        small[band] = total
    return small
