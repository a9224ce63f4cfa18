"""The pictures that gpu.py works on: frames of a given clip, else drawn ones; as an H.264 file too.

Drawn pictures are no photographs: good for speed, and said so where mattes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.frames import MATRIX_BT709, RANGE_LIMITED, VideoInfo
from vidmatte.sources.file import FileSource

RATE = 30
DISTINCT = 30  # pictures, played there and back
Picture = NDArray[np.uint8]


def pictures_of(clip: Path | None, size: tuple[int, int], count: int) -> list[av.VideoFrame]:
    """Return `count` pictures of (width, height) in yuv420p, spread over the clip, or drawn."""
    width, height = size
    if clip is None:
        images = [av.VideoFrame.from_ndarray(draw(width, height, i / count)) for i in range(count)]
    else:
        images = spread_over(clip, count)
    reformatter = VideoReformatter()
    return [
        reformatter.reformat(
            image,
            width,
            height,
            "yuv420p",
            dst_colorspace=MATRIX_BT709,
            dst_color_range=RANGE_LIMITED,
        )
        for image in images
    ]


def spread_over(clip: Path, count: int) -> list[av.VideoFrame]:
    """Return `count` consecutive pictures of a clip, from its middle."""
    with FileSource(clip) as source:
        total = sum(1 for _ in source)
    first = max(0, (total - count) // 2)
    with FileSource(clip) as source:
        pictures = [frame.picture for frame in islice(source, first, first + count)]
    return list(islice(cycle(pictures), count))


def draw(width: int, height: int, moment: float) -> Picture:
    """Draw a figure, a head on shoulders, that walks over noise; `moment` 0..1."""
    noise = np.random.default_rng(0).integers(40, 120, (height // 8 + 1, width // 8 + 1, 3))
    image = cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    x, unit = int(width * (0.3 + 0.4 * moment)), height // 20
    cv2.ellipse(image, (x, height), (5 * unit, 10 * unit), 0, 180, 360, (60, 70, 160), -1)
    cv2.circle(image, (x, 8 * unit), 3 * unit, (200, 160, 140), -1, cv2.LINE_AA)
    return np.asarray(image, np.uint8)


def write_h264(path: Path, pictures: Sequence[av.VideoFrame], count: int) -> None:
    """Write `count` frames, the pictures there and back, as a camera or an editor might."""
    forth_and_back = cycle([*pictures, *pictures[-2:0:-1]])
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_type = "AUTO"
        for index, picture in enumerate(islice(forth_and_back, count)):
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def info_of(size: tuple[int, int]) -> VideoInfo:
    """Describe pictures of (width, height) in 8-bit 4:2:0."""
    base = Fraction(1, RATE)
    return VideoInfo("clip", *size, "yuv420p", base, Fraction(RATE))


def network_images(
    pictures: Sequence[av.VideoFrame], sizes: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Picture]]:
    """Yield (N, H, W, 3) RGB of all pictures for every network size (height, width)."""
    first = pictures[0]
    for size in sizes:
        preparer = Preparer(info_of((first.width, first.height)), size)
        images = np.empty((len(pictures), *size, 3), np.uint8)
        for picture, image in zip(pictures, images, strict=True):
            preparer.prepare(picture, image)
        yield size, images
