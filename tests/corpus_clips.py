"""Draw small clips with the corpus's bar code and patches, right ones and wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import ColorRange
from corpus_media import CODE_COLUMNS, EXACT, UPRIGHT, strip_height, turn_upright
from corpus_probe import Turn
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.container.core import Chapter

PATCHES = [[200, 40, 40], [40, 180, 60], [50, 60, 200], [220] * 3, [128] * 3, [30] * 3]
SOUND_RATE = 48000
_INVERSE_TURNS: dict[Turn, Turn] = {(0, 1, -1, 0): (0, -1, 1, 0), (0, -1, 1, 0): (0, 1, -1, 0)}


@dataclass(frozen=True, slots=True)
class Clip:
    """What to write. Sizes are upright; `turn` stores the picture turned, `matrix` tells so."""

    ids: tuple[int, ...] = tuple(range(8))
    times_ms: tuple[int, ...] | None = None
    fps: int = 25
    width: int = 192
    height: int = 144
    pix_fmt: str = "yuv420p"
    codec: str = "libx264"
    codec_options: dict[str, str] = field(default_factory=lambda: {"crf": "12"})
    colour_shift: tuple[int, int, int] = (0, 0, 0)
    lone_error: int = 0
    turn: Turn = UPRIGHT
    matrix: Turn = UPRIGHT
    sar: Fraction = Fraction(1)
    tag_matrix: int = 1
    tag_range: int = 1
    sound: str | None = "aac"
    sound_bit_rate: int = 64_000
    sound_start_s: float = 0.0
    sound_s: float = 0.32
    sound_hole_s: float = 0.0
    layout: str = "mono"
    language: str = "eng"
    title: str = "clip"
    chapters: int = 0
    transparent: bool = False


def draw_picture(
    number: int, width: int, height: int, shift: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """Draw upright RGB picture `number`: bar code, gradient with a moving block, patches."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    picture = np.stack([70 + 60 * x, 100 + 50 * y, 90 + 15 * (x + y)], axis=2)
    strip, left = strip_height(height), width // 4 + number % 20
    picture[height // 3 : 2 * height // 3, left : left + width // 4] = (215, 160, 130)
    bits = [int(bit) for bit in f"{number:012b}"]
    for column, bit in enumerate([1, 0, *bits, sum(bits) & 1, 0]):
        edges = [n * width // CODE_COLUMNS for n in (column, column + 1)]
        picture[:strip, edges[0] : edges[1]] = 235 if bit else 20
    for column, colour in enumerate(PATCHES):
        picture[-strip:, column * width // 6 : (column + 1) * width // 6] = colour
    return np.clip(picture + shift, 0, 255).astype(np.uint8)


def write_clip(path: Path, clip: Clip) -> Path:
    """Write the clip and return its path."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = clip.title
        video = _add_video(container, clip)
        sound: av.AudioStream | None = None
        if clip.sound is not None:
            added = container.add_stream(clip.sound, SOUND_RATE, layout=clip.layout)
            assert isinstance(added, av.AudioStream)
            sound = added
            sound.bit_rate = clip.sound_bit_rate
            sound.metadata["language"] = clip.language
        if clip.chapters:
            container.set_chapters([_chapter(index) for index in range(clip.chapters)])
        for index, number in enumerate(clip.ids):
            container.mux(video.encode(_frame(clip, index, number)))
        container.mux(video.encode())
        if sound is not None:
            _write_sound(container, sound, clip)
    return path


def _add_video(container: av.container.OutputContainer, clip: Clip) -> av.VideoStream:
    lying = bool(clip.turn[1])
    video = container.add_stream(clip.codec, rate=clip.fps, options=clip.codec_options)
    assert isinstance(video, av.VideoStream)
    video.width, video.height = (clip.height, clip.width) if lying else (clip.width, clip.height)
    video.pix_fmt = clip.pix_fmt
    context = video.codec_context
    context.time_base = Fraction(1, 1000) if clip.times_ms else Fraction(1, clip.fps)
    context.sample_aspect_ratio = clip.sar
    context.colorspace, context.color_range = clip.tag_matrix, clip.tag_range
    context.color_primaries = context.color_trc = clip.tag_matrix
    if clip.matrix != UPRIGHT:
        a, b, c, d = (65536 * n for n in clip.matrix)
        video.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    return video


def _frame(clip: Clip, index: int, number: int) -> av.VideoFrame:
    upright = draw_picture(number, clip.width, clip.height, clip.colour_shift)
    if clip.transparent:
        alpha = np.zeros(upright.shape[:2], np.uint8)
        strip = strip_height(clip.height)
        alpha[:strip], alpha[-strip:] = 255, 255
        upright = np.dstack([upright, alpha])
    stored = turn_upright(upright, _INVERSE_TURNS.get(clip.turn, clip.turn))
    rgb = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(stored), "rgba" if clip.transparent else "rgb24"
    )
    frame = rgb.reformat(
        format=clip.pix_fmt,
        dst_colorspace=clip.tag_matrix,
        dst_color_range=ColorRange(clip.tag_range),
        interpolation=EXACT,
    )
    if clip.lone_error:
        luma: NDArray[Any] = np.frombuffer(memoryview(frame.planes[0]), np.uint8)
        luma[7] = luma[7] + clip.lone_error
    frame.pts = clip.times_ms[index] if clip.times_ms else index
    frame.time_base = Fraction(1, 1000) if clip.times_ms else Fraction(1, clip.fps)
    return frame


def _write_sound(
    container: av.container.OutputContainer, sound: av.AudioStream, clip: Clip
) -> None:
    channels = sound.codec_context.channels
    total, chunk = int(clip.sound_s * SOUND_RATE), 1024
    for start in range(0, total, chunk):
        time = np.arange(start, min(start + chunk, total)) / SOUND_RATE
        wave = np.tile(np.sin(2 * np.pi * 440 * time).astype(np.float32) / 4, (channels, 1))
        frame = av.AudioFrame.from_ndarray(wave, "fltp", clip.layout)
        frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
        late_s = clip.sound_start_s + (clip.sound_hole_s if start >= total // 2 else 0)
        frame.pts = start + int(late_s * SOUND_RATE)
        container.mux(sound.encode(frame))
    container.mux(sound.encode())


def _chapter(index: int) -> Chapter:
    return {
        "id": index + 1,
        "start": index * 100,
        "end": index * 100 + 100,
        "time_base": Fraction(1, 1000),
        "metadata": {"title": f"part {index}"},
    }
