"""What stands behind the subject: a colour, a picture, a video or the blurred source itself."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu.blur import DEFAULT_STRENGTH, BlurBackground
from vidmatte.compute.cpu.colour import colour_samples, effective_colour, planes_from_rgb
from vidmatte.compute.cpu.fitting import Fit, Picture, fit_rgb
from vidmatte.compute.cpu.looping import OpenPictures, VideoBackground

if TYPE_CHECKING:
    from vidmatte.frames import Frame, Layout, Samples, VideoInfo


class Background(Protocol):
    """Gives the planes that a frame is blended over. Belongs to one thread."""

    @property
    def constant(self) -> tuple[int, ...] | None:
        """The sample of each colour plane where all frames have one colour, else None."""

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        """Return the colour planes for a frame, in the working layout and the stored orientation.

        `frame` is in the working layout, `alpha` its matte, (H, W), uint8 or uint16. The planes
        may be reused: they are valid until the next call and read-only for the caller.
        """

    def close(self) -> None:
        """Close what the background reads. May be called twice."""


@dataclass(frozen=True, slots=True)
class _StillBackground:
    """The same planes for every frame, and their samples where they are of one colour."""

    constant: tuple[int, ...] | None
    still: tuple[Samples, ...] = ()

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        assert self.constant is None, "a background of one colour has no planes"
        return list(self.still)

    def close(self) -> None:
        """Nothing to close."""


def colour_background(rgb: tuple[int, int, int], info: VideoInfo, layout: Layout) -> Background:
    """Make a background of one sRGB colour (red, green, blue, each 0..255).

    `info` tells the source's colour, `layout` is the working layout of the composite.
    """
    return _StillBackground(colour_samples(rgb, effective_colour(info, layout), layout))


def picture_background(image: Picture, fit: Fit, info: VideoInfo, layout: Layout) -> Background:
    """Make a background of a still picture.

    `image` is (H, W, 3) or (H, W, 4) RGB or RGBA, sRGB, uint8 or uint16 over the full range,
    upright, with square pixels. Where it is transparent, and where `contain` leaves room, black
    shows. The planes are made once, here.
    """
    rgb = fit_rgb(_over_black(image), Fraction(1), fit, info)
    planes = planes_from_rgb(rgb, effective_colour(info, layout), layout)
    return _StillBackground(None, tuple(planes))


def video_background(
    open_pictures: OpenPictures, fit: Fit, info: VideoInfo, layout: Layout
) -> Background:
    """Make a background of a looped video with its own timing.

    `open_pictures` returns a fresh source, not yet entered; it is called at the first frame and
    for every loop. The first frame shows the video's first picture; from there the frames' times
    choose. Errors of the source, and InputError for a video without pictures, rise from `planes`.
    """
    return VideoBackground(open_pictures, fit, info, layout)


def blur_background(strength: float | None, info: VideoInfo, layout: Layout) -> Background:
    """Make a background of the source itself, blurred, with the subject left out.

    `strength` is sigma in percent of the longer displayed side, None for the default.

    Raises:
        UsageError: the strength is not above 0 and at most 25.

    """
    return BlurBackground(DEFAULT_STRENGTH if strength is None else strength, info, layout)


def _over_black(image: Picture) -> Picture:
    """Drop an alpha channel by compositing over black, correctly rounded."""
    if image.shape[2] == 3:
        return image
    full = int(np.iinfo(image.dtype).max)
    product: NDArray[np.uint32] = image[..., :3].astype(np.uint32) * image[..., 3:]
    over = np.empty((*image.shape[:2], 3), image.dtype)
    np.floor_divide(product + np.uint32(full // 2), np.uint32(full), out=over, casting="unsafe")
    return over
