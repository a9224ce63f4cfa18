"""The source itself, blurred, as a background: the room without the person in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import box_mean, load_cv2
from vidmatte.errors import UsageError
from vidmatte.frames import plane_views

if TYPE_CHECKING:
    from vidmatte.frames import Frame, Layout, Samples, VideoInfo

DEFAULT_STRENGTH = 2.0  # sigma in percent of the longer side
MAX_STRENGTH = 25.0

# Halving stops where the blur that is left has a sigma of 2 to 4 samples: a Gaussian of that
# size survives cubic enlargement unseen, and costs next to nothing.
_SMALLEST_SIGMA = 2.0

# Weight left to the subject, so that the blur has a value everywhere: 1/1000 next to any
# background. Cells with an eighth of subject or more count as subject.
SUBJECT_WEIGHT, SUBJECT_SLOPE = 1e-3, 8.0


class BlurBackground:
    """Blurs the source's own planes, leaving out the subject.

    A normalised convolution (Knutsson and Westin, CVPR 1993): planes weighted by 1 - alpha are
    blurred and divided by the blurred weight, so that no glow of the subject surrounds it.
    Works at a small size in the working layout. Belongs to one thread.
    """

    constant = None

    def __init__(self, strength: float, info: VideoInfo, layout: Layout) -> None:
        if not 0 < strength <= MAX_STRENGTH:
            raise UsageError(
                f"blur strength {strength:g} is not between 0 and {MAX_STRENGTH:g}",
                hint=f"it is sigma in percent of the longer side; the default is "
                f"{DEFAULT_STRENGTH:g}",
            )
        self.strength = strength
        aspect = float(info.sample_aspect_ratio)
        sigma = max(info.width * aspect, info.height) * strength / 100
        halvings = int(np.log2(max(min(sigma, sigma / aspect) / _SMALLEST_SIGMA, 1)))
        self.halvings = max(halvings, layout.shift_x, layout.shift_y)
        self.sigma = sigma / aspect / (1 << self.halvings), sigma / (1 << self.halvings)
        self._layout = layout

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        """Return the blurred colour planes of a frame."""
        cv2 = load_cv2()
        sources = plane_views(frame.picture)[:3]
        small = [self._small(plane, *self._shifts(i)) for i, plane in enumerate(sources)]
        weight = 1 - self._small(alpha, 0, 0) * np.float32(
            SUBJECT_SLOPE / np.iinfo(alpha.dtype).max
        )
        np.maximum(weight, np.float32(SUBJECT_WEIGHT), out=weight)
        stack = cv2.merge([plane * weight for plane in small] + [weight])
        across, down = self.sigma
        soft = cv2.GaussianBlur(stack, (0, 0), sigmaX=across, sigmaY=down)
        *blurred, weights = cv2.split(soft)
        planes = [
            self._enlarged(plane / weights, source, *self._shifts(i))
            for i, (plane, source) in enumerate(zip(blurred, sources, strict=True))
        ]
        if self._layout.model == "yuv" and len(planes) == 1:
            planes += [self._neutral(planes[0])] * 2
        return planes

    def _neutral(self, luma: Samples) -> Samples:
        """Make the chroma plane of a gray source that is composited in a YUV layout."""
        height, width = luma.shape
        size = -(-height >> self._layout.shift_y), -(-width >> self._layout.shift_x)
        return np.full(size, 1 << (self._layout.bits - 1), luma.dtype)

    def close(self) -> None:
        """Nothing to close."""

    def _shifts(self, index: int) -> tuple[int, int]:
        return (self._layout.shift_x, self._layout.shift_y) if index else (0, 0)

    def _small(self, plane: Samples, shift_x: int, shift_y: int) -> NDArray[np.float32]:
        """Shrink a plane, already subsampled by its shifts, to the small grid."""
        left_x, left_y = self.halvings - shift_x, self.halvings - shift_y
        while left_x or left_y:
            plane = box_mean(plane, 2 if left_x else 1, 2 if left_y else 1)
            left_x, left_y = max(left_x - 1, 0), max(left_y - 1, 0)
        return plane.astype(np.float32)

    def _enlarged(
        self, small: NDArray[np.float32], like: Samples, shift_x: int, shift_y: int
    ) -> Samples:
        """Enlarge from the small grid to a plane's size; the grid may reach over its edges."""
        cv2 = load_cv2()
        samples = np.rint(small).astype(like.dtype)
        height, width = small.shape
        size = width << (self.halvings - shift_x), height << (self.halvings - shift_y)
        whole: Samples = cv2.resize(samples, size, interpolation=cv2.INTER_CUBIC)
        np.minimum(whole, self._layout.peak, out=whole)  # the curve may swing beyond 10 bits
        return whole[: like.shape[0], : like.shape[1]]
