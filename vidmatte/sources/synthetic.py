"""A clip of real photographs in motion whose true alpha is known: for demo, tests and quality.

A person, cut out once from scikit-image's `astronaut` (NASA portrait, public domain; the soft
alpha is `astronaut_alpha.png` beside this file), moves over scikit-image's `coffee`, `rocket` and
`chelsea`. Alpha and colour go through the same sub-pixel warp, so the alpha is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from vidmatte.errors import UsageError, VidmatteError
from vidmatte.frames import MATRIX_BT709, RANGE_FULL, RANGE_LIMITED

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame, VideoStream
    from av.container import OutputContainer
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    Floats = NDArray[np.float32]

Scenario = Literal["walk", "fast", "static", "cut", "empty", "handheld"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

# Name and crop (left, top, right, bottom) in fractions: a launch site at dusk, a table, a room out
# of focus, rough wood. The cup and the cat themselves would be subjects in their own right.
_PHOTOS = (
    ("rocket.jpg", (0.0, 0.0, 1.0, 1.0)),
    ("coffee.png", (0.72, 0.0, 1.0, 0.35)),
    ("chelsea.png", (0.72, 0.1, 1.0, 0.6)),
    ("coffee.png", (0.6, 0.75, 1.0, 1.0)),
)
_SUBJECT_PX = 512
_SHOWN_PX = 480.0  # rows of the cut-out above the lower edge of a frame; hides where it was cropped
_BACKGROUND_MARGIN = 1.35  # how much larger than the frame the background is, for pan and zoom
_NOISE_MARGIN_PX = 64
_BLUR = 0.004  # standard deviation of the background's defocus, in heights
_SOUND_RATE = 48000


class Subject(NamedTuple):
    """Who moves: straight `colour` (S, S, 3) RGB everywhere, and `alpha` (S, S), both uint8.

    It stands on row .9375 of S; what is below is hidden by the lower edge of the frame.
    """

    colour: Picture
    alpha: Picture


class SyntheticFrame(NamedTuple):
    """One rendered frame with its truth.

    `image` (H, W, 3) uint8 RGB; `alpha` (H, W) uint8, 0 is background; `foreground` (H, W, 3)
    uint8 RGB is the subject's own colour everywhere (straight, before sensor noise).
    """

    image: Picture
    alpha: Picture
    foreground: Picture


@dataclass(frozen=True, slots=True)
class _Pose:
    """Where subject and camera are; lengths are fractions of the frame's height."""

    x: float = 0.0
    lift: float = 0.0
    scale: float = 1.0
    angle_deg: float = 0.0
    visible: bool = True
    mirror: bool = False
    photo: int = 0
    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 1.0
    roll_deg: float = 0.0
    gain: float = 1.0


class SyntheticClip:
    """Render a deterministic clip of a person over a moving background, frame by frame.

    `scenario`: `walk` moves smoothly; `fast` stands still, starts suddenly, stops and returns;
    `static` has only sensor noise and drifting light; `cut` changes shot at each third; `empty`
    has nobody from .3 to .7 of the clip; `handheld` shakes. `noise` is the sensor noise's standard
    deviation in levels. `background_rgb` replaces the photographs by one colour (green screen),
    `photo` (any size, uint8 RGB, shown in focus) by another; `subject` replaces the person.
    Any frame can be rendered in any order. Raises `VidmatteError` without scikit-image.
    """

    def __init__(
        self,
        *,
        width: int = 1280,
        height: int = 720,
        frame_rate: Fraction = Fraction(30),
        frame_count: int = 90,
        seed: int = 0,
        scenario: Scenario = "walk",
        noise: float = 2.0,
        background_rgb: tuple[int, int, int] | None = None,
        photo: Picture | None = None,
        subject: Subject | None = None,
    ) -> None:
        if scenario not in SCENARIOS:
            raise UsageError(f"no such scenario: {scenario}", hint=f"one of {', '.join(SCENARIOS)}")
        self.width, self.height = width, height
        self.frame_rate, self.frame_count = frame_rate, frame_count
        self.seed, self.scenario, self.noise = seed, scenario, noise
        self._colour, self._alpha = _scaled_subject(height) if subject is None else subject
        self._backgrounds = _backgrounds(width, height, background_rgb)
        if photo is not None:
            self._backgrounds = [_enlarged(photo, width, height)]
        self._grain = _grain(width, height, noise, seed)

    def render(self, index: int) -> SyntheticFrame:
        """Render frame `index` (0 <= index < frame_count); arrays are fresh and the caller's."""
        if not 0 <= index < self.frame_count:
            raise IndexError(index)
        pose = self.pose(index)
        background = _gain(self._warped_background(pose), pose.gain)
        if not pose.visible:
            nobody = np.zeros((self.height, self.width), np.uint8)
            return SyntheticFrame(self._expose(background, index), nobody, background)
        colour, alpha = self._warped_subject(pose)
        foreground = _gain(colour, pose.gain)
        composite = _over(foreground, alpha, background)
        return SyntheticFrame(self._expose(composite, index), alpha, foreground)

    def pose(self, index: int) -> _Pose:
        """Where subject and camera are in frame `index`."""
        time_s = index / float(self.frame_rate)
        pose = _MOTIONS[self.scenario](time_s, index / self.frame_count)
        phase = self.seed * 1.7
        return replace(
            pose,
            photo=(pose.photo + self.seed) % len(_PHOTOS),
            mirror=pose.mirror ^ bool(self.seed % 2),
            gain=1 + 0.05 * math.sin(2.1 * time_s + phase),
        )

    def _warped_subject(self, pose: _Pose) -> tuple[Picture, Picture]:
        import cv2

        side = self._alpha.shape[0]
        shown = side * _SHOWN_PX / _SUBJECT_PX
        centre = (self.width / 2 + pose.x * self.height, self.height * (1 - pose.lift))
        to_frame = _similarity((side / 2, shown), centre, pose.scale, pose.angle_deg, pose.mirror)
        matrix = (self._camera(pose) @ to_frame)[:2]
        size = (self.width, self.height)
        colour = cv2.warpAffine(self._colour, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(self._alpha, matrix, size)
        return np.asarray(colour, np.uint8), np.asarray(alpha, np.uint8)

    def _warped_background(self, pose: _Pose) -> Picture:
        import cv2

        photo = self._backgrounds[pose.photo % len(self._backgrounds)]
        middle = (photo.shape[1] / 2, photo.shape[0] / 2)
        centre = (self.width / 2 + pose.pan_x * self.height, (0.5 + pose.pan_y) * self.height)
        matrix = (self._camera(pose) @ _similarity(middle, centre, pose.zoom, 0.0, False))[:2]
        size = (self.width, self.height)
        warped = cv2.warpAffine(photo, matrix, size, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(warped, np.uint8)

    def _camera(self, pose: _Pose) -> NDArray[np.float64]:
        middle = (self.width / 2, self.height / 2)
        return _similarity(middle, middle, 1.0, pose.roll_deg, False)

    def _expose(self, picture: Picture, index: int) -> Picture:
        """Add the noise of frame `index`."""
        import cv2

        if self.noise <= 0:
            return picture
        shift = np.random.default_rng((self.seed, index)).integers(0, _NOISE_MARGIN_PX, 2)
        rows = slice(shift[0], shift[0] + self.height)
        columns = slice(shift[1], shift[1] + self.width)
        exposed = cv2.addWeighted(picture, 1.0, self._grain[rows, columns], 1.0, -128.0)
        return np.asarray(exposed, np.uint8)


def write_clip(
    path: Path | str,
    clip: SyntheticClip,
    *,
    sound: bool = False,
    alpha_path: Path | str | None = None,
    crf: int = 16,
    before_frame: Callable[[], None] = lambda: None,
) -> None:
    """Write `clip` as tagged BT.709 H.264 4:2:0; the extension of `path` chooses the container.

    `sound` adds a 440 Hz tone (AAC). `alpha_path` (.mkv) receives the true alpha as lossless gray
    FFV1. Existing files are overwritten. Width and height must be even. What `before_frame`
    raises ends the writing.
    """
    import av
    from av.video.reformatter import VideoReformatter

    with ExitStack() as files:
        container = files.enter_context(av.open(f"file:{path}", "w"))
        video = _video_stream(container, clip, "libx264", "yuv420p")
        video.options = {"crf": str(crf), "preset": "veryfast"}
        tone = container.add_stream("aac", rate=_SOUND_RATE, layout="mono") if sound else None
        truth = truth_video = None
        if alpha_path is not None:
            truth = files.enter_context(av.open(f"file:{alpha_path}", "w"))
            truth_video = _video_stream(truth, clip, "ffv1", "gray")
        reformatter = VideoReformatter()
        for index in range(clip.frame_count):
            before_frame()
            rendered = clip.render(index)
            container.mux(video.encode(_yuv420(rendered.image, index, reformatter)))
            if tone is not None:
                container.mux(tone.encode(_tone(clip, index)))
            if truth is not None and truth_video is not None:
                matte = av.VideoFrame.from_ndarray(rendered.alpha, format="gray")
                matte.pts = index
                truth.mux(truth_video.encode(matte))
        for stream in (video, tone):
            if stream is not None:
                container.mux(stream.encode(None))
        if truth is not None and truth_video is not None:
            truth.mux(truth_video.encode(None))


def _video_stream(
    container: OutputContainer,
    clip: SyntheticClip,
    codec: Literal["libx264", "ffv1"],
    pix_fmt: Literal["yuv420p", "gray"],
) -> VideoStream:
    stream: VideoStream = container.add_stream(codec, rate=clip.frame_rate)
    stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, pix_fmt
    context = stream.codec_context
    context.time_base = 1 / clip.frame_rate
    context.colorspace = context.color_primaries = context.color_trc = MATRIX_BT709
    context.color_range = RANGE_LIMITED if pix_fmt == "yuv420p" else RANGE_FULL
    return stream


def _yuv420(image: Picture, index: int, reformatter: VideoReformatter) -> VideoFrame:
    from av import VideoFrame

    rgb = VideoFrame.from_ndarray(image, format="rgb24")
    picture = reformatter.reformat(
        rgb, format="yuv420p", dst_colorspace=MATRIX_BT709, dst_color_range=RANGE_LIMITED
    )
    picture.pts = index
    return picture


def _tone(clip: SyntheticClip, index: int) -> AudioFrame:
    """The sound under frame `index`, cut so that no sample is lost or doubled."""
    from av import AudioFrame

    start, stop = (int(i * _SOUND_RATE / clip.frame_rate) for i in (index, index + 1))
    angle = 2 * np.pi * 440 / _SOUND_RATE * np.arange(start, stop)
    samples = (0.2 * np.sin(angle)).astype(np.float32)[None]
    frame = AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = _SOUND_RATE, start, Fraction(1, _SOUND_RATE)
    return frame


def _walk(time_s: float, _: float) -> _Pose:
    return _Pose(
        x=0.28 * math.sin(1.3 * time_s),
        lift=0.012 * math.sin(5.2 * time_s) - 0.015,
        scale=0.86 + 0.05 * math.sin(0.9 * time_s),
        angle_deg=2.0 * math.sin(1.7 * time_s),
        pan_x=0.12 * math.sin(0.8 * time_s),
        pan_y=0.06 * math.sin(0.6 * time_s),
        zoom=1.0 + 0.04 * math.sin(0.7 * time_s),
    )


def _fast(_: float, progress: float) -> _Pose:
    """Still, then at full speed from one frame to the next, still again, and back."""
    ramp = np.interp(progress, (0.0, 0.3, 0.5, 0.7, 0.9, 1.0), (0.0, 0.0, 1.0, 1.0, 0.0, 0.0))
    return _Pose(x=0.75 * float(ramp) - 0.4, scale=0.85)


def _static(_: float, __: float) -> _Pose:
    return _Pose(x=0.1, scale=0.9)


def _cut(time_s: float, progress: float) -> _Pose:
    shot = min(int(progress * 3), 2)
    pose = _walk(time_s + 1.9 * shot, progress)
    return replace(pose, photo=shot, mirror=shot == 1, scale=pose.scale * (1.0, 0.85, 1.1)[shot])


def _empty(time_s: float, progress: float) -> _Pose:
    """Walk out to the left, leave the room alone, come back from the right."""
    pose = _walk(time_s, progress)
    x = np.interp(progress, (0.0, 0.3, 0.7, 1.0), (0.1, -1.5, 1.5, -0.1))
    return replace(pose, x=float(x), visible=not 0.3 <= progress <= 0.7, photo=1)


def _handheld(time_s: float, _: float) -> _Pose:
    """A still person before a camera that shakes with several unrelated frequencies."""
    shake_x = 0.010 * math.sin(11.0 * time_s) + 0.006 * math.sin(27.0 * time_s + 1)
    shake_y = 0.008 * math.sin(13.0 * time_s + 2) + 0.005 * math.sin(31.0 * time_s)
    return _Pose(
        x=0.05 + shake_x,
        lift=-0.03 - shake_y,
        scale=0.9,
        pan_x=shake_x,
        pan_y=shake_y,
        roll_deg=0.6 * math.sin(9.0 * time_s + 0.5),
    )


_MOTIONS: dict[Scenario, Callable[[float, float], _Pose]] = {
    "walk": _walk,
    "fast": _fast,
    "static": _static,
    "cut": _cut,
    "empty": _empty,
    "handheld": _handheld,
}


def _similarity(
    anchor: tuple[float, float],
    target: tuple[float, float],
    scale: float,
    angle_deg: float,
    mirror: bool,
) -> NDArray[np.float64]:
    """The 3x3 matrix that turns and scales about `anchor` and carries it to `target`, (x, y) px."""
    angle = math.radians(angle_deg)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    flip = -1.0 if mirror else 1.0
    matrix = np.array([[a * flip, -b, 0.0], [b * flip, a, 0.0], [0.0, 0.0, 1.0]])
    matrix[:2, 2] = np.subtract(target, matrix[:2, :2] @ np.asarray(anchor))
    return matrix


def _over(foreground: Picture, alpha: Picture, background: Picture) -> Picture:
    """Blend in the encoded (gamma) space, as every compositor of 8-bit video does."""
    import cv2

    weight = cv2.merge([alpha] * 3)
    blended = cv2.add(
        cv2.multiply(foreground, weight, scale=1 / 255),
        cv2.multiply(background, cv2.bitwise_not(weight), scale=1 / 255),
    )
    return np.asarray(blended, np.uint8)


def _gain(picture: Picture, gain: float) -> Picture:
    import cv2

    return np.asarray(cv2.convertScaleAbs(picture, alpha=gain), np.uint8)


def subject_side_px(height: int) -> int:
    """Return the S of a `Subject` that poses warp about 1:1 in frames of `height`."""
    return round(height * _SUBJECT_PX / _SHOWN_PX)


@lru_cache(maxsize=2)
def _scaled_subject(height: int) -> Subject:
    """The person, cut out."""
    import cv2

    alpha = _read_rgb(Path(__file__).with_name("astronaut_alpha.png"))[..., 0]
    colour = _without_background(_photo("astronaut.png"), alpha)
    side = subject_side_px(height)
    how = cv2.INTER_AREA if side < _SUBJECT_PX else cv2.INTER_CUBIC
    colour, alpha = (
        np.asarray(cv2.resize(part, (side, side), interpolation=how), np.uint8)
        for part in (colour, alpha)
    )
    return Subject(colour, alpha)


def _without_background(image: Picture, alpha: Picture) -> Picture:
    """Replace colour where alpha < .9 by the nearest inside colour (push-pull pyramid)."""
    opacity = alpha[..., None].astype(np.float32) / 255
    weight = np.clip((opacity - 0.9) * 10, 0, 1, dtype=np.float32)
    filled = _push_pull(np.multiply(image, weight, dtype=np.float32), weight)
    return np.asarray(np.rint(image * weight + filled * (1 - weight)), np.uint8)


def _push_pull(colour: Floats, weight: Floats) -> Floats:
    """Fill where `weight` is 0 from coarser levels (Gortler 1996, The Lumigraph, section 3.4)."""
    import cv2

    mean = np.asarray(colour / np.maximum(weight, 1e-6), np.float32)
    if min(colour.shape[:2]) <= 2:
        return mean
    coarse_colour = np.asarray(cv2.pyrDown(colour), np.float32)
    coarse_weight = np.asarray(cv2.pyrDown(weight), np.float32)[..., None]
    coarse = _push_pull(coarse_colour, coarse_weight)
    fill = cv2.pyrUp(coarse, dstsize=(colour.shape[1], colour.shape[0]))
    trust = np.minimum(4 * weight, 1)
    return np.asarray(mean * trust + fill * (1 - trust), np.float32)


@lru_cache(maxsize=2)
def _backgrounds(width: int, height: int, rgb: tuple[int, int, int] | None) -> list[Picture]:
    """The photographs, larger than the frame and out of focus like behind a portrait."""
    import cv2

    if rgb is not None:
        return [np.full((height, width, 3), rgb, np.uint8)]
    enlarged: list[Picture] = []
    for name, (left, top, right, bottom) in _PHOTOS:
        rows, columns, _ = (photo := _photo(name)).shape
        photo = photo[
            int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)
        ]
        large = _enlarged(photo, width, height)
        enlarged.append(np.asarray(cv2.GaussianBlur(large, (0, 0), _BLUR * height), np.uint8))
    return enlarged


def _enlarged(photo: Picture, width: int, height: int) -> Picture:
    """Scale a photograph so that it is larger than the frame, for pan and zoom."""
    import cv2

    factor = _BACKGROUND_MARGIN * max(width / photo.shape[1], height / photo.shape[0])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(photo, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def _grain(width: int, height: int, noise: float, seed: int) -> Picture:
    """Noise about 128, larger than a frame: each frame looks at it through its own window."""
    shape = (height + _NOISE_MARGIN_PX, width + _NOISE_MARGIN_PX, 3)
    normal = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.asarray(np.clip(np.rint(128 + noise * normal), 0, 255), np.uint8)


def _photo(name: str) -> Picture:
    """Read a photograph out of scikit-image's wheel; nothing is downloaded."""
    found = find_spec("skimage")
    root = found and found.submodule_search_locations
    path = Path(root[0]) / "data" / name if root else None
    if path is None or not path.is_file():
        raise VidmatteError(
            f"scikit-image's photograph {name} is not installed",
            hint='pip install "vidmatte[demo]"',
        )
    return _read_rgb(path)


def _read_rgb(path: Path) -> Picture:
    import cv2

    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, path
    rgb: Picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
    return rgb
