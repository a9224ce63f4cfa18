"""The source itself, blurred, as a background; a twin of `compute.cpu.blur`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.compute.cpu import blur as cpu
from vidmatte.compute.cuda.composite import block_mean

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.frames import Layout, VideoInfo


class BlurBackground:
    """Blurs a source's own planes, leaving out the subject.

    The method and its numbers are those of the CPU form. At the small size the Gaussian is a
    product with two dense matrices, which hold the mirrored edges too.

    Raises:
        UsageError: the strength is not above 0 and at most 25.

    """

    def __init__(
        self, strength: float, info: VideoInfo, layout: Layout, device: torch.device
    ) -> None:
        twin = cpu.BlurBackground(strength, info, layout)
        self.halvings, self._layout = twin.halvings, layout
        small = [-(-n >> self.halvings) for n in (info.width, info.height)]
        self._columns, self._rows = (
            _gaussian_weights(length, sigma, device)
            for length, sigma in zip(small, twin.sigma, strict=True)
        )
        chroma = -(-info.height >> layout.shift_y), -(-info.width >> layout.shift_x)
        neutral = torch.full(chroma, 1 << (layout.bits - 1), dtype=torch.int32, device=device)
        self._neutral = neutral.to(torch.uint8 if layout.bits <= 8 else torch.uint16)

    def planes(self, planes: Sequence[Tensor], alpha: Tensor) -> list[Tensor]:
        """Return the blurred colour planes of a frame, in the working layout.

        `planes` are the frame's own; `alpha` is its matte, (H, W), uint8 or uint16.
        """
        sources = planes[:3]
        slope = cpu.SUBJECT_SLOPE / (255 if alpha.dtype == torch.uint8 else 65535)
        weight = 1 - self._small(alpha, 0, 0) * slope
        weight = weight.clamp_(min=cpu.SUBJECT_WEIGHT)
        small = [self._small(plane, *self._shifts(i)) for i, plane in enumerate(sources)]
        stack = torch.stack([*(plane * weight for plane in small), weight])
        blurred = self._rows @ stack @ self._columns.T
        samples = (blurred[:-1] / blurred[-1]).round_()
        results = [
            self._enlarged(samples[i], source, *self._shifts(i)) for i, source in enumerate(sources)
        ]
        if self._layout.model == "yuv" and len(results) == 1:
            results += [self._neutral] * 2
        return results

    def _shifts(self, index: int) -> tuple[int, int]:
        return (self._layout.shift_x, self._layout.shift_y) if index else (0, 0)

    def _small(self, plane: Tensor, shift_x: int, shift_y: int) -> Tensor:
        """Shrink a plane, already subsampled by its shifts, to the small grid, rounding often."""
        values = plane.to(torch.float32)
        left_x, left_y = self.halvings - shift_x, self.halvings - shift_y
        while left_x or left_y:
            values = block_mean(values, 2 if left_x else 1, 2 if left_y else 1)
            left_x, left_y = max(left_x - 1, 0), max(left_y - 1, 0)
        return values

    def _enlarged(self, samples: Tensor, like: Tensor, shift_x: int, shift_y: int) -> Tensor:
        """Enlarge from the small grid to a plane's size; the grid may reach over its edges."""
        height, width = samples.shape
        size = height << (self.halvings - shift_y), width << (self.halvings - shift_x)
        whole = F.interpolate(samples[None, None], size=size, mode="bicubic", align_corners=False)
        part = whole[0, 0, : like.shape[0], : like.shape[1]].round_()
        return part.clamp_(0, self._layout.peak).to(like.dtype)


def _gaussian_weights(length: int, sigma: float, device: torch.device) -> Tensor:
    """Return the (length, length) matrix that blurs a line as cv2.GaussianBlur does in float32.

    The kernel reaches four sigma to each side; the line is mirrored around its last samples.
    """
    reach = (round(sigma * 8 + 1) | 1) // 2
    taps = np.arange(-reach, reach + 1)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    weights = np.zeros((length, length))
    period = max(2 * length - 2, 1)
    for tap, weight in zip(taps, kernel / kernel.sum(), strict=True):
        at = (np.arange(length) + tap) % period
        np.add.at(weights, (np.arange(length), np.minimum(at, period - at)), weight)
    return torch.from_numpy(weights).to(device, torch.float32)
