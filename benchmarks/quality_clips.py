"""The clips of quality.py: known soft alpha, filmed by a camera that blurs, shakes and compresses.

Subjects are scikit-image's astronaut and two drawn ones with hair. Each strand of hair is drawn
four times as fine as a pixel, so that its alpha is its exact area. Motion blur is the mean over
moments of the shutter, of the picture and of alpha alike: truth stays exact. Then come light,
sensor noise and a round trip through H.264; all that follows sees the decoded planes only.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vidmatte.frames import MATRIX_BT709, RANGE_LIMITED
from vidmatte.sources.synthetic import Scenario, Subject, SyntheticClip, subject_side_px

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]
Who = Literal["person", "teddy", "singer", "nobody"]

FRAME_RATE = Fraction(30)
_FINE = 4  # strands are drawn this many times larger
_GRASS_RGB = (0.62, 0.95, 0.42)  # the photograph is grey


@dataclass(frozen=True, slots=True)
class Clip:
    """How one clip is made; `shutter` is the open share of a frame, `light` the gain over time.

    `moments` are rendered per frame interval: enough that what is fast leaves no steps. `crf` None
    leaves out H.264.
    """

    name: str
    scenario: Scenario
    who: Who = "person"
    noise: float = 2.0
    crf: int | None = 23
    shutter: float = 0.5
    moments: int = 8
    speed: float = 1.0
    seed: int = 0
    grass: bool = False
    light: Callable[[float], float] = lambda progress: 1.0


def _lamp(progress: float) -> float:
    """A lamp that goes out within a few frames, flickers, and comes back."""
    dimmed = np.interp(progress, (0.3, 0.36, 0.7, 0.72), (1.0, 0.55, 0.55, 1.0))
    return float(dimmed) * (1 + 0.04 * math.sin(97 * progress))


CLIPS = (
    Clip("walk", "walk"),
    Clip("fast", "fast", moments=16),
    Clip("static", "static", noise=4, crf=28),
    Clip("cut", "cut"),
    Clip("empty", "empty", moments=16),
    Clip("handheld", "handheld", noise=4, crf=26),
    Clip("light", "walk", light=_lamp, seed=2),
    Clip("hair walk", "walk", "singer", seed=2),
    Clip("fur grass", "handheld", "teddy", noise=3, grass=True),
    Clip("fur fast", "walk", "teddy", speed=5, seed=2, shutter=0.75, moments=16),
    Clip("nobody", "walk", "nobody", seed=3),
)


class Rendered(NamedTuple):
    """A frame before light, noise and compression; straight `foreground`, all floats 0..255.

    image = foreground * alpha / 255 + background * (1 - alpha / 255), (H, W, 3); alpha is (H, W).
    """

    image: Floats
    alpha: Floats
    foreground: Floats


class Footage(NamedTuple):
    """A clip as a program gets it, and its truth.

    `pictures` are decoded yuv420p BT.709, `truths` (H, W) uint8, `foregrounds` (H, W, 3) uint8 RGB
    straight and in the light of their frame.
    """

    pictures: list[av.VideoFrame]
    truths: list[Picture]
    foregrounds: list[Picture]


def film(clip: Clip, width: int, height: int, frame_count: int) -> Footage:
    """Render and compress a clip; width and height must be even."""
    images, footage = [], Footage([], [], [])
    rng = np.random.default_rng((clip.seed, frame_count))
    for index, rendered in enumerate(render(clip, width, height, frame_count)):
        gain = np.float32(clip.light(index / frame_count))
        grain = rng.standard_normal(rendered.image.shape, np.float32) * np.float32(clip.noise)
        images.append(_eight_bits(rendered.image * gain + grain))
        footage.truths.append(_eight_bits(rendered.alpha))
        footage.foregrounds.append(_eight_bits(rendered.foreground * gain))
    pictures = converted(images) if clip.crf is None else compressed(images, clip.crf)
    footage.pictures.extend(pictures)
    return footage


def render(clip: Clip, width: int, height: int, frame_count: int) -> Iterator[Rendered]:
    """Yield every frame as the shutter gathers it, noiseless."""
    source = SyntheticClip(
        width=width,
        height=height,
        frame_rate=FRAME_RATE * clip.moments / Fraction(clip.speed),
        frame_count=frame_count * clip.moments,
        scenario=clip.scenario,
        seed=clip.seed,
        noise=0,
        photo=_grass() if clip.grass else None,
        subject=_subject(clip.who, subject_side_px(height)),
    )
    open_moments = max(1, round(clip.shutter * clip.moments))
    for index in range(frame_count):
        first = index * clip.moments
        yield _exposed(source, range(first, first + open_moments))


def _subject(who: Who, side: int) -> Subject | None:
    if who == "person":
        return None
    if who == "nobody":
        return Subject(np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8))
    return drawn_subject(who, side)


def _exposed(source: SyntheticClip, moments: Sequence[int]) -> Rendered:
    """Average moments; the foreground premultiplied, so that it stays the subject's own colour."""
    size = source.height, source.width
    image, light = np.zeros((*size, 3), np.float32), np.zeros((*size, 3), np.float32)
    alpha = np.zeros(size, np.float32)
    for moment in moments:
        rendered = source.render(moment)
        cv2.accumulate(rendered.image, image)
        cv2.accumulateProduct(rendered.foreground, cv2.merge([rendered.alpha] * 3), light)
        cv2.accumulate(rendered.alpha, alpha)
    weight = alpha[..., None]
    own = np.where(weight > 0, light / np.maximum(weight, 1e-6), rendered.foreground)
    share = np.float32(1 / len(moments))
    return Rendered(image * share, alpha * share, np.asarray(own, np.float32))


def _eight_bits(values: Floats) -> Picture:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def converted(images: Sequence[Picture]) -> Iterator[av.VideoFrame]:
    """Yield RGB pictures as BT.709 4:2:0."""
    reformatter = VideoReformatter()
    for index, image in enumerate(images):
        picture = reformatter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=MATRIX_BT709,
            dst_color_range=RANGE_LIMITED,
        )
        picture.pts = index
        yield picture


def compressed(images: Sequence[Picture], crf: int) -> list[av.VideoFrame]:
    """Send RGB pictures through H.264 (x264, medium) and back; tagged BT.709 4:2:0."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
        context = stream.codec_context
        context.thread_count = 1  # the same bits every time, however busy the machine
        context.colorspace = context.color_primaries = context.color_trc = MATRIX_BT709
        context.color_range = RANGE_LIMITED
        for picture in converted(images):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    memory.seek(0)
    with av.open(memory) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return list(container.decode(video=0))


def _grass() -> Picture:
    """scikit-image's photograph of a lawn, in green: sharp clutter behind hair."""
    import skimage.data

    grey = skimage.data.grass()
    return _eight_bits(grey[..., None] * np.asarray(_GRASS_RGB, np.float32))


class _Blob(NamedTuple):
    """An ellipse with hair: centre and radii in sides, colour, the hair's length and count."""

    x: float
    y: float
    rx: float
    ry: float
    rgb: tuple[int, int, int]
    hair: float = 0.0
    count: int = 0
    fall: float = 0.0  # how far gravity pulls a strand down, in its length


_FUR, _BELLY, _CREAM, _DARK = (196, 116, 48), (224, 168, 104), (236, 200, 150), (40, 26, 22)
_SKIN, _HAIR, _SHIRT = (224, 172, 140), (58, 36, 24), (40, 90, 170)
_DRAWN: dict[str, tuple[_Blob, ...]] = {
    "teddy": (
        _Blob(0.50, 0.86, 0.27, 0.30, _FUR, 0.07, 3000, 0.3),
        _Blob(0.35, 0.22, 0.08, 0.08, _FUR, 0.055, 700),
        _Blob(0.65, 0.22, 0.08, 0.08, _FUR, 0.055, 700),
        _Blob(0.50, 0.38, 0.21, 0.19, _FUR, 0.07, 2000, 0.2),
        _Blob(0.50, 0.88, 0.15, 0.18, _BELLY),
        _Blob(0.50, 0.45, 0.09, 0.07, _CREAM),
        _Blob(0.50, 0.42, 0.03, 0.02, _DARK),
        _Blob(0.42, 0.34, 0.022, 0.026, _DARK),
        _Blob(0.58, 0.34, 0.022, 0.026, _DARK),
    ),
    "singer": (
        _Blob(0.50, 0.42, 0.21, 0.27, _HAIR, 0.15, 6000, 0.9),
        _Blob(0.50, 0.98, 0.33, 0.30, _SHIRT),
        _Blob(0.50, 0.66, 0.07, 0.10, _SKIN),
        _Blob(0.50, 0.43, 0.13, 0.18, _SKIN),
        _Blob(0.45, 0.40, 0.018, 0.010, _DARK),
        _Blob(0.55, 0.40, 0.018, 0.010, _DARK),
        _Blob(0.50, 0.53, 0.045, 0.012, (170, 70, 70)),
    ),
}


@lru_cache(maxsize=4)
def drawn_subject(who: str, side: int) -> Subject:
    """Draw a subject of `_DRAWN`, `side` pixels wide and high; the same at every call."""
    large = side * _FINE
    alpha = np.zeros((large, large), np.uint8)
    colour = np.full((large, large, 3), _DRAWN[who][0].rgb, np.uint8)
    rng = np.random.default_rng(sum(map(ord, who)))
    for blob in _DRAWN[who]:
        centre, radii = _px(blob.x, blob.y, large), _px(blob.rx, blob.ry, large)
        for plane, value in ((alpha, 255), (colour, blob.rgb)):
            cv2.ellipse(plane, centre, radii, 0, 0, 360, value, cv2.FILLED)
        for _ in range(blob.count):
            _draw_strand(alpha, colour, blob, rng)
    colour = cv2.addWeighted(colour, 1.0, _texture(large, rng), 1.0, -128.0)
    small = [cv2.resize(a, (side, side), interpolation=cv2.INTER_AREA) for a in (colour, alpha)]
    return Subject(*(np.asarray(part, np.uint8) for part in small))


def _px(x: float, y: float, side: int) -> tuple[int, int]:
    return round(x * side), round(y * side)


def _texture(side: int, rng: np.random.Generator) -> Picture:
    """Cloth and skin are not flat: soft blotches about 128."""
    coarse = rng.normal(128, 9, (64, 64, 1)).astype(np.float32)
    large = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.dstack([np.clip(large, 0, 255)] * 3), np.uint8)


def _draw_strand(alpha: Picture, colour: Picture, blob: _Blob, rng: np.random.Generator) -> None:
    """A thinning, curling strand that starts within the blob and ends outside of it.

    Its colour is drawn wider than itself: the subject's own colour is known around it, too.
    """
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.0)
    length = blob.hair * rng.uniform(0.2, 1.0) ** 2  # dense at the root, a few fly away
    along = np.linspace(0, 1, 9)
    turn = angle + rng.normal(0, 0.5) + rng.normal(0, 0.6) * along
    reach = np.concatenate(([0], np.cumsum(np.full(8, length / 8))))
    x = blob.x + depth * blob.rx * math.cos(angle) + reach * np.cos(turn)
    y = blob.y + depth * blob.ry * math.sin(angle) + reach * np.sin(turn)
    y += blob.fall * length * along**2
    points = np.rint(np.stack([x, y], axis=1) * len(alpha)).astype(np.int32)
    rgb = tuple(int(v) for v in np.clip(np.array(blob.rgb) * rng.uniform(0.65, 1.3), 0, 255))
    width = rng.uniform(0.0012, 0.0024) * len(alpha)  # 1 to 2 pixels at 720 lines
    cv2.polylines(colour, [points], False, rgb, round(3 * width))
    for first, share in ((0, 1.0), (3, 0.7), (6, 0.4)):
        part = points[first : first + 4]
        cv2.polylines(alpha, [part], False, 255, max(1, round(width * share)))
