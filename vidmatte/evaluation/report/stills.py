"""Make the small pictures that a report shows of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.evaluation.report.mattes import Holds, SmallMatteReader
from vidmatte.frames import Frame, VideoInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

LONGER_SIDE = 480
QUALITY = 82  # of JPEG
CHECKER_PX = 12
CHECKER = (96, 168)  # levels: dark hair and white shirts both stand out


@dataclass(frozen=True, slots=True)
class Shot:
    """The pictures of one moment as they were decoded.

    `shown` is the output's own picture, `matte` and `before` hold its matte and the one before.
    """

    source: Frame
    shown: Frame
    matte: Frame
    before: Frame | None


@dataclass(frozen=True, slots=True)
class Stills:
    """The same as JPEG files, all of one size: `width` by `height` pixels."""

    width: int
    height: int
    source: bytes
    before: bytes | None
    matte: bytes
    composite: bytes


class Developer:
    """Turns shots of one video into stills. Belongs to one thread.

    `holds` says what the output's own pictures are: the composite shows them as they are, or over
    a checkerboard, or, where they are mattes, the source over it.
    """

    def __init__(self, source: VideoInfo, shown: VideoInfo, matte: VideoInfo, holds: Holds) -> None:
        self._size = _still_size(source)
        self._holds = holds
        self._source = Preparer(source, self._size)
        self._shown = Preparer(shown, self._size)
        self._mattes = SmallMatteReader(matte, self._size)

    def develop(self, shot: Shot) -> Stills:
        """Scale and encode one shot."""
        height, width = self._size
        source = self._rgb(self._source, shot.source)
        matte = self._matte(shot.matte)
        composite = source if self._holds == "matte" else self._rgb(self._shown, shot.shown)
        if self._holds != "opaque":
            composite = _over_checker(composite, matte)
        return Stills(
            width,
            height,
            _jpeg(source[..., ::-1]),
            None if shot.before is None else _jpeg(self._matte(shot.before)),
            _jpeg(matte),
            _jpeg(composite[..., ::-1]),
        )

    def _rgb(self, preparer: Preparer, frame: Frame) -> Picture:
        rgb = np.empty((*self._size, 3), np.uint8)
        preparer.prepare(frame.picture, rgb)
        return rgb

    def _matte(self, frame: Frame) -> Picture:
        alpha = self._mattes.read(frame.picture)
        assert alpha is not None, "the measuring reader has taken it for a matte"
        return np.asarray(np.rint(alpha * 255), np.uint8)


def _still_size(info: VideoInfo) -> tuple[int, int]:
    """The (height, width) of a still, with square pixels."""
    width, height = info.width * float(info.sample_aspect_ratio), float(info.height)
    if info.orientation.swaps_sides:
        width, height = height, width
    scale = min(1.0, LONGER_SIDE / max(width, height))
    return max(2, round(height * scale)), max(2, round(width * scale))


def _over_checker(rgb: Picture, matte: Picture) -> Picture:
    rows, columns = (np.arange(side) // CHECKER_PX for side in matte.shape)
    board = np.where((rows[:, None] + columns) % 2, *CHECKER).astype(np.float32)[..., None]
    alpha = matte[..., None] * np.float32(1 / 255)
    return np.asarray(np.rint(rgb * alpha + board * (1 - alpha)), np.uint8)


def _jpeg(picture: Picture) -> bytes:
    """Encode (H, W, 3) BGR or (H, W) grey."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, "OpenCV has its own JPEG encoder"
    return data.tobytes()
