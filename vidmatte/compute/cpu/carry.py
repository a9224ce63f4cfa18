"""Carry a map from one picture to another along dense optical flow, and say where to trust it.

The flow is DIS (Kroeger et al. 2016, arXiv:1603.03590) between small grey pictures. A carried
value is trusted only where the picture carried with it looks like the picture it is carried to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Grey = NDArray[np.uint8]

_STILL = 2.0  # below it without any flow a pixel has not moved,
_STILL_TRUST = 1.0  # and its own history holds, whatever the flow of a neighbour says
_CUT = 14.0  # mean difference after motion that no motion explains


class Tolerance(NamedTuple):
    """How alike pictures have to be, in mean absolute grey difference, levels of 255.

    Trusted fully up to `full`, not at all from `none`, after the best match within `slack_px`,
    so that a flow that is a little wrong costs no trust where the picture has structure.
    """

    slack_px: int
    full: float
    none: float


STRICT = Tolerance(0, 2.5, 6.0)  # for averaging with a map that is there anyway
# For a map that stands alone: of those tried the steadiest that shows no more of the room than
# fresh maps do (benchmarks/NOTES.md, Live).
LOOSE = Tolerance(1, 4.0, 9.0)


@dataclass(frozen=True, slots=True)
class Moment:
    """A map 0..1, float32, and the grey picture that it belongs to, uint8; (h, w) both."""

    value: Floats
    grey: Grey

    def at(self, shape: tuple[int, ...]) -> Moment:
        """Resample to `shape`, for when the network's size changes on the way."""
        import cv2

        if self.value.shape == shape:
            return self
        size = (shape[1], shape[0])
        return Moment(
            np.asarray(cv2.resize(self.value, size), np.float32),
            np.asarray(cv2.resize(self.grey, size, interpolation=cv2.INTER_AREA), np.uint8),
        )


class Carried(NamedTuple):
    """A map brought to another picture, (h, w) each.

    `trust` is 0..1 and says how well the pictures agree; where `still` the picture did not change
    at all and the map is its own.
    """

    value: Floats
    trust: Floats
    still: NDArray[np.bool_]


def small_grey(image: Grey, shape: tuple[int, ...]) -> Grey:
    """Return the (H, W, 3) uint8 RGB `image` in grey at `shape`, (h, w) uint8."""
    import cv2

    small = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def carry(moment: Moment, now: Grey, tolerance: Tolerance = STRICT) -> Carried | None:
    """Bring a moment's map to the picture `now`, of the same shape.

    None where no motion explains the change: a cut.
    """
    import cv2

    at_x, at_y = _places(now, moment.grey)
    edge = cv2.BORDER_REPLICATE
    moved = cv2.remap(moment.grey, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge)
    value = cv2.remap(moment.value, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge)
    looks: Grey = np.asarray(moved, np.uint8)
    error = _difference(now, looks)
    if error.mean() > _CUT:
        return None
    if tolerance.slack_px:
        error = _difference(now, looks, tolerance.slack_px)
    height, width = now.shape
    inside = (at_x > -1) & (at_y > -1) & (at_x < width) & (at_y < height)
    trust = falling(error, tolerance.full, tolerance.none) * inside
    still = _difference(now, moment.grey) < _STILL
    return Carried(
        np.where(still, moment.value, np.asarray(value, np.float32)),
        np.where(still, np.float32(_STILL_TRUST), trust),
        still,
    )


def falling(value: Floats, full: float, none: float) -> Floats:
    """1 up to `full`, 0 from `none`, linear between."""
    return np.asarray(np.clip((none - value) / (none - full), 0, 1), np.float32)


def _places(now: Grey, then: Grey) -> tuple[Floats, Floats]:
    """Where each pixel of `now` was in `then`: (x, y) in pixels."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    motion = np.zeros((*now.shape, 2), np.float32)  # taken as a first guess
    flow.calc(now, then, motion)
    columns, rows = _grid(now.shape)
    return columns + motion[..., 0], rows + motion[..., 1]


def _difference(left: Grey, right: Grey, slack_px: int = 0) -> Floats:
    """Mean absolute difference around each pixel, after removing a change of light.

    With `slack_px`: to the nearest of all values within that distance.
    """
    import cv2

    change = cv2.subtract(left, right, dtype=cv2.CV_32F)
    light = np.median(change[::4, ::4])
    change -= light
    apart = np.abs(change)
    if slack_px:
        around = np.ones((2 * slack_px + 1,) * 2, np.uint8)
        above = cv2.subtract(left, cv2.dilate(right, around), dtype=cv2.CV_32F) - light
        below = cv2.subtract(cv2.erode(right, around), left, dtype=cv2.CV_32F) + light
        apart = np.maximum(np.maximum(above, below), 0)
    return np.asarray(cv2.blur(apart, (5, 5)), np.float32)


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    rows, columns = np.indices(shape, np.float32)
    return columns, rows
