"""Carry a map from one picture to another along dense optical flow, and say where to trust it.

The flow is DIS (Kroeger et al. 2016, arXiv:1603.03590) between small grey pictures. A carried
value is trusted only where the picture carried with it looks like the picture it is carried to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Picture = NDArray[np.uint8]

STILL = 2.0  # below it without any flow a pixel has not moved,
STILL_TRUST = 1.0  # and its own history holds, whatever the flow of a neighbour says
_SMALLEST_PX = 32  # a patch of the coarsest level; DIS crashes on less
CUT = 14.0  # mean difference after motion that no motion explains
LIGHT_STEP_PX = 4  # of the pixels whose median difference is the change of light
AROUND_PX = 5  # side of the square over which differences are averaged


class Tolerance(NamedTuple):
    """How alike pictures have to be, in mean absolute difference, levels of 255.

    Trusted fully up to `full`, not at all from `none`, after the best match within `slack_px`,
    so that a flow that is a little wrong costs no trust where the picture has structure.
    """

    slack_px: int
    full: float
    none: float


STRICT = Tolerance(0, 2.5, 6.0)  # in grey, for averaging with a map that is there anyway
# In colour, for a map that stands alone: of those tried the steadiest that shows no more of the
# room than fresh maps do (benchmarks/NOTES.md, Live mattes).
LOOSE = Tolerance(1, 5.0, 9.0)


@dataclass(frozen=True, slots=True)
class Moment:
    """A map 0..1, (h, w) float32, and the picture that it belongs to.

    `image` is uint8, (h, w) grey or (h, w, 3) RGB.
    """

    value: Floats
    image: Picture

    @property
    def grey(self) -> Picture:
        """The picture in grey, (h, w)."""
        return _grey(self.image)

    def at(self, shape: tuple[int, ...]) -> Moment:
        """Resample to `shape`, for when the network's size changes on the way."""
        import cv2

        if self.value.shape == shape:
            return self
        size = (shape[1], shape[0])
        return Moment(
            np.asarray(cv2.resize(self.value, size), np.float32),
            np.asarray(cv2.resize(self.image, size, interpolation=cv2.INTER_AREA), np.uint8),
        )


class Carried(NamedTuple):
    """A map brought to another picture, (h, w) each.

    `trust` is 0..1 and says how well the pictures agree; where `still` the picture did not change
    at all and the map is its own.
    """

    value: Floats
    trust: Floats
    still: NDArray[np.bool_]


def small_grey(image: Picture, shape: tuple[int, ...]) -> Picture:
    """Return the (H, W, 3) uint8 RGB `image` in grey at `shape`, (h, w) uint8."""
    import cv2

    small = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return _grey(np.asarray(small, np.uint8))


def carry(moment: Moment, now: Picture, tolerance: Tolerance = STRICT) -> Carried | None:
    """Bring a moment's map to the picture `now`, which has the form of the moment's own.

    The flow is of their grey. Colours take a tolerance with slack; of their channels the one that
    differs most decides. None where no motion explains the change: a cut.
    """
    import cv2

    at_x, at_y = _places(_grey(now), moment.grey)
    edge = cv2.BORDER_REPLICATE
    moved = cv2.remap(moment.image, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge)
    value = cv2.remap(moment.value, at_x, at_y, cv2.INTER_LINEAR, borderMode=edge)
    looks: Picture = np.asarray(moved, np.uint8)
    differ = _channel_difference if tolerance.slack_px else _difference
    error = differ(now, looks)
    if error.mean() > CUT:
        return None
    if tolerance.slack_px:
        error = _channel_difference(now, looks, tolerance.slack_px)
    height, width = now.shape[:2]
    inside = (at_x > -1) & (at_y > -1) & (at_x < width) & (at_y < height)
    trust = falling(error, tolerance.full, tolerance.none) * inside
    still = differ(now, moment.image) < STILL
    return Carried(
        np.where(still, moment.value, np.asarray(value, np.float32)),
        np.where(still, np.float32(STILL_TRUST), trust),
        still,
    )


def falling(value: Floats, full: float, none: float) -> Floats:
    """1 up to `full`, 0 from `none`, linear between."""
    return np.asarray(np.clip((none - value) / (none - full), 0, 1), np.float32)


def _places(now: Picture, then: Picture) -> tuple[Floats, Floats]:
    """Where each pixel of `now` was in `then`: (x, y) in pixels."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    height, width = now.shape
    below, right = max(0, _SMALLEST_PX - height), max(0, _SMALLEST_PX - width)
    if below or right:
        now, then = (
            np.asarray(cv2.copyMakeBorder(x, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)
            for x in (now, then)
        )
    motion = np.zeros((*now.shape, 2), np.float32)  # taken as a first guess
    flow.calc(now, then, motion)
    motion = motion[:height, :width]
    columns, rows = _grid((height, width))
    return columns + motion[..., 0], rows + motion[..., 1]


def _difference(left: Picture, right: Picture) -> Floats:
    """Mean absolute difference of grey around each pixel, after removing a change of light."""
    import cv2

    change = cv2.subtract(left, right, dtype=cv2.CV_32F)
    change -= np.median(change[::LIGHT_STEP_PX, ::LIGHT_STEP_PX])
    return np.asarray(cv2.blur(np.abs(change), (AROUND_PX, AROUND_PX)), np.float32)


def _channel_difference(left: Picture, right: Picture, slack_px: int = 0) -> Floats:
    """The same of the channel that differs most at each pixel, light rounded to whole levels.

    With `slack_px`: to the nearest of all values within that distance. All in 8 bits, for speed.
    """
    import cv2

    some = np.s_[::LIGHT_STEP_PX, ::LIGHT_STEP_PX]
    sample = cv2.subtract(left[some], right[some], dtype=cv2.CV_16S)
    light = np.zeros(4)  # as OpenCV's scalars are
    light[: 1 if left.ndim == 2 else 3] = np.median(sample, axis=(0, 1)).round()
    lit = cv2.add(right, light)
    if slack_px:
        around = np.ones((2 * slack_px + 1,) * 2, np.uint8)
        above = cv2.subtract(left, cv2.dilate(lit, around))
        below = cv2.subtract(cv2.erode(lit, around), left)
        apart = cv2.max(above, below)
    else:
        apart = cv2.absdiff(left, lit)
    most = reduce(cv2.max, cv2.split(apart))
    return np.asarray(cv2.boxFilter(most, cv2.CV_32F, (AROUND_PX, AROUND_PX)), np.float32)


def _grey(image: Picture) -> Picture:
    import cv2

    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    rows, columns = np.indices(shape, np.float32)
    return columns, rows
