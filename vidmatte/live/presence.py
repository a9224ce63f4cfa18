"""Tell whether somebody is there, slowly enough not to flicker, so that an empty room is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Shares of the picture in one piece; chosen from six real clips (benchmarks/NOTES.md, Live): a
# small woman across a yard never has less than .0106 at any size, empty rooms below 448 px have 0.
_ENTERED = 0.004
_LEFT = 0.0015
_ENTER_UPDATES = 2  # in a row, so that one wild answer shows nothing
_LEAVE_S = 1.5  # an animal too near the lens was unsure for .45 s


def sure_share(probability: NDArray[np.float32], sure: float) -> float:
    """Return the share of the picture that its largest connected area of ≥ `sure` covers."""
    import cv2

    mask = np.asarray(probability >= np.float32(sure), np.uint8)
    if not mask.any():
        return 0.0
    _, _, areas, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return float(areas[1:, cv2.CC_STAT_AREA].max() / mask.size)


class Presence:
    """Hysteresis in value and time over `sure_share`; at first nobody is there."""

    def __init__(self) -> None:
        self.present = False
        self._entering = 0
        self._seen_s = 0.0

    def update(self, share: float, now_s: float) -> bool:
        """Take the share of a mask made at `now_s`, in seconds of any clock; return `present`."""
        self._entering = self._entering + 1 if share >= _ENTERED else 0
        if not self.present:
            self.present = self._entering >= _ENTER_UPDATES
            self._seen_s = now_s
        elif share >= _LEFT:
            self._seen_s = now_s
        else:
            self.present = now_s - self._seen_s < _LEAVE_S
        return self.present
