"""Errors of a video's mattes against the truth: MAD, MSE, Grad, Conn and dtSSD.

Alpha counts as 0..1; the scales are those of Robust Video Matting (Lin et al. 2021, section 4.1):
MAD and MSE times 1e3, Grad and Conn divided by 1e3, dtSSD times 1e2. Unlike its script, no matte is
stretched to its own minimum and maximum before Grad, or a faint one would have no error, and the
first frame, which has no dtSSD, does not count as 0 in its mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import load_cv2

if TYPE_CHECKING:
    from vidmatte.frames import Samples

Map = NDArray[np.float32]
Metric = Literal["mad", "mse", "grad", "conn", "dtssd"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_GRAD_SIGMA = 1.4  # Rhemann et al. 2009, section 3
_CONN_THETA = 0.15  # Rhemann et al. 2009, section 3
_CONN_STEPS = 10  # thresholds .1 apart


@dataclass(frozen=True, slots=True)
class FrameErrors:
    """Errors of one frame, scaled; `conn` is None if not asked for, `dtssd` in the first frame."""

    mad: float
    mse: float
    grad: float
    conn: float | None
    dtssd: float | None


class Comparison:
    """Compares mattes with truths frame by frame, in order; holds one frame, whatever the length.

    `conn` asks for the connectivity error, which takes three times as long as all others.
    """

    def __init__(self, *, conn: bool = False) -> None:
        self._conn = conn
        self._last: Map | None = None

    def add(self, alpha: Samples, truth: Samples) -> FrameErrors:
        """Return the errors of the next frame.

        Both are (H, W), uint8 0..255 or uint16 0..65535, not necessarily the same one of the two.
        Raises ValueError where shapes differ.
        """
        if alpha.shape != truth.shape or alpha.ndim != 2:
            raise ValueError(f"alpha is {alpha.shape}, truth {truth.shape}, not the same (H, W)")
        a, t = _unit(alpha), _unit(truth)
        difference = a - t
        last, self._last = self._last, difference
        return FrameErrors(
            mad=mad(difference),
            mse=mse(difference),
            grad=grad(a, t),
            conn=conn(alpha, truth) if self._conn else None,
            dtssd=None if last is None else dtssd(difference, last),
        )


def means(errors: Iterable[FrameErrors]) -> dict[Metric, float]:
    """Return the mean of each metric over the frames that have it; a metric of none is left out."""
    columns = zip(METRICS, zip(*map(astuple, errors), strict=True), strict=False)
    known = {name: [v for v in column if v is not None] for name, column in columns}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def mad(difference: Map) -> float:
    """Mean absolute difference, times 1e3, of alpha minus truth (H, W) in -1..1."""
    return float(np.abs(difference).mean()) * 1e3


def mse(difference: Map) -> float:
    """Mean squared difference, times 1e3, of alpha minus truth (H, W) in -1..1."""
    return float(np.square(difference).mean()) * 1e3


def dtssd(difference: Map, last: Map) -> float:
    """Root mean square of how alpha minus truth (H, W) changed from the last frame, times 1e2.

    Erofeev et al. 2015, "Perceptually Motivated Benchmark for Video Matting", eq. 2, per frame.
    """
    return float(np.sqrt(np.square(difference - last).mean())) * 1e2


def grad(alpha: Map, truth: Map) -> float:
    """Sum of squared differences of the gradients' magnitudes, divided by 1e3, of (H, W) in 0..1.

    Rhemann et al. 2009, "A Perceptually Motivated Online Benchmark for Image Matting", section 3,
    q = 2: first-order Gaussian derivatives of sigma 1.4, kernels of unit norm that reach 3 sigma,
    the picture mirrored beyond its border.
    """
    return float(np.square(_gradient(alpha) - _gradient(truth)).sum()) / 1e3


def conn(alpha: Samples, truth: Samples) -> float:
    """Sum of absolute differences in connectedness, divided by 1e3, of (H, W) uint8 or uint16.

    Rhemann et al. 2009, section 3, with p = 1, theta = .15 and, as is usual since, lambda = 1 and
    thresholds .1 apart: a pixel is connected up to the last threshold until which it lies in the
    largest 4-connected region where both mattes reach the threshold, and its connectedness falls
    by what its alpha exceeds that, if by theta or more.
    """
    connected = _connected(np.minimum(_levels(alpha), _levels(truth)))
    difference = _detached(_unit(alpha), connected) - _detached(_unit(truth), connected)
    return float(np.abs(difference).sum()) / 1e3


def _connected(levels: NDArray[np.uint16]) -> Map:
    """Return the last threshold 0, .1 … 1 up to which a pixel is in the largest region, (H, W)."""
    connected = np.zeros(levels.shape, np.float32)
    first = _reached(levels, 1)
    left, top, width, height = load_cv2().boundingRect(first.view(np.uint8))
    box = np.s_[top : top + height, left : left + width]  # nothing outside is in any region
    inside, region = levels[box], np.ones((height, width), np.bool_)
    for step in range(1, _CONN_STEPS + 1):
        region &= _largest_region(_reached(inside, step))
        connected[box][region] = step / _CONN_STEPS
    return connected


def _reached(levels: NDArray[np.uint16], step: int) -> NDArray[np.bool_]:
    """Compare with a threshold in whole numbers: as float32, 51 / 255 is below .2."""
    return np.asarray(levels >= -(-65535 * step // _CONN_STEPS))


def _detached(alpha: Map, connected: Map) -> Map:
    excess = alpha - connected
    return np.where(excess >= _CONN_THETA, excess, np.float32(0))


def _largest_region(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest 4-connected region of `mask`; nothing of an empty one."""
    if not mask.any():
        return mask
    cv2 = load_cv2()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest)


def _unit(alpha: Samples) -> Map:
    return alpha * np.float32(1 / np.iinfo(alpha.dtype).max)


def _levels(alpha: Samples) -> NDArray[np.uint16]:
    """Return alpha as 0..65535, exactly: 255 times 257 is 65535."""
    return np.asarray(alpha.astype(np.uint16) * (257 if alpha.dtype == np.uint8 else 1), np.uint16)


def _gradient(alpha: Map) -> Map:
    """Return the gradient's magnitude by first-order Gaussian derivatives."""
    cv2 = load_cv2()
    radius = int(np.ceil(3 * _GRAD_SIGMA))
    x = np.arange(-radius, radius + 1, dtype=np.float32)
    smooth = np.exp(-np.square(x) / (2 * _GRAD_SIGMA**2))
    slope = -x * smooth
    smooth, slope = smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)
    across = cv2.sepFilter2D(alpha, cv2.CV_32F, slope, smooth)
    down = cv2.sepFilter2D(alpha, cv2.CV_32F, smooth, slope)
    return np.asarray(cv2.magnitude(across, down), np.float32)
