"""What stands behind the subject: a colour, a picture, a video or the blurred source itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vidmatte.compute.cpu.colour import colour_samples, effective_colour

if TYPE_CHECKING:
    from vidmatte.frames import Frame, Layout, Samples, VideoInfo


class Background(Protocol):
    """Gives the planes that a frame is blended over. Belongs to one thread."""

    @property
    def constant(self) -> tuple[int, ...] | None:
        """The sample of each colour plane where all frames have one colour, else None."""

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        """Return the colour planes for a frame, in the working layout and the stored orientation.

        `alpha` is the frame's matte, (H, W), uint8 or uint16. The planes may be reused: they are
        valid until the next call and read-only for the caller.
        """


@dataclass(frozen=True, slots=True)
class _ColourBackground:
    constant: tuple[int, ...]

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        raise AssertionError("a constant background has no planes")


def colour_background(rgb: tuple[int, int, int], info: VideoInfo, layout: Layout) -> Background:
    """Make a background of one sRGB colour (red, green, blue, each 0..255).

    `info` tells the source's colour, `layout` is the working layout of the composite.
    """
    return _ColourBackground(colour_samples(rgb, effective_colour(info, layout), layout))
