"""What an engine must show before it is used: the mattes of torch, within a hundredth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vidmatte.errors import BackendError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Probability = NDArray[np.float32]

TOLERANCE = 0.01
"""Largest mean |Δα| of any one picture against torch in float32."""
_LEAST_SHARE = 0.01  # of the pixels that must be subject, and that must be background


def difference(got_NHW: Probability, expected_NHW: Probability) -> float:
    """Return mean |Δα| of the worst picture."""
    return float(np.abs(got_NHW - expected_NHW).mean(axis=(1, 2)).max())


def why_not(got_NHW: Probability, expected_NHW: Probability) -> str | None:
    """Say what is wrong with an engine's answers, or None if nothing is."""
    if got_NHW.shape != expected_NHW.shape:
        return f"answers of shape {got_NHW.shape}, not {expected_NHW.shape}"
    if not np.isfinite(got_NHW).all():
        return "NaN among its answers"
    worst = difference(got_NHW, expected_NHW)
    if not worst <= TOLERANCE:
        return f"its mattes are {worst:.4f} from torch's (mean |Δα|), and {TOLERANCE} is allowed"
    return None


def refuse_blank(expected_NHW: Probability) -> None:
    """Raise BackendError where pictures hold no subject or no background to compare by."""
    subject = float((expected_NHW > 0.5).mean())
    if not _LEAST_SHARE <= subject <= 1 - _LEAST_SHARE:
        raise BackendError(
            f"the pictures prove nothing: {subject:.1%} of them is subject",
            hint="name a video of a person with --clip, or check the weights",
        )
