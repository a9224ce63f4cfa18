"""Where a picture stands: stored or upright, and how a background is fitted to it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vidmatte.frames import Orientation

Scalar = TypeVar("Scalar", bound=np.generic)


def to_upright(stored: NDArray[Scalar], orientation: Orientation) -> NDArray[Scalar]:
    """View a stored picture, (H, W) or (H, W, C), upright: mirrored first, then turned."""
    mirrored = stored[:, ::-1] if orientation.mirror else stored
    return np.rot90(mirrored, -(orientation.rotate_cw // 90))


def to_stored(upright: NDArray[Scalar], orientation: Orientation) -> NDArray[Scalar]:
    """View an upright picture, (H, W) or (H, W, C), as it is stored: undo `to_upright`."""
    turned = np.rot90(upright, orientation.rotate_cw // 90)
    return turned[:, ::-1] if orientation.mirror else turned
