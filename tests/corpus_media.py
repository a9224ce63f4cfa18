"""Read back what a media file holds: every picture's bar code, time and colour, and its streams.

Pictures and sound are decoded with PyAV; what the container and bitstream say (tags, sample
aspect ratio, display matrix, HDR metadata) is read with ffprobe, so that two programs have to
agree. The bar code and patches are those of the corpus generator: the top eighth holds 16
columns (white, black, 12 bits from the highest, even parity, black), the bottom eighth 6 colours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from corpus_probe import (
    Turn,
    colour_tags,
    display_turn,
    field_order,
    hdr_values,
    probe,
    ratio,
    sample_aspect,
    stream_counts,
    stream_of,
)
from numpy.typing import NDArray

THUMB = 16
PCM_BYTES = 1024
CODE_COLUMNS = 16
PATCH_COUNT = 6
UPRIGHT = (1, 0, 0, 1)
# The fast paths of swscale 8.1 leave the last columns unwritten where the width is no multiple of
# 16 (yuv420p to rgba, 180 px wide: 4 columns); these flags take the exact path.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
Colours = NDArray[np.float64]
_MATRICES = {"bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 5, "smpte240m": 7, "bt2020nc": 9}


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture, upright.

    `colour` is (16, 16, 3), block means of R, G, B in 0..255; `opaque` and `clear` are (16, 16),
    true where every sample of the block has alpha 1 or 0. `planes` maps a component (Y, U, V, G,
    B, R, A) to its stored samples, or is empty if they were not asked for.
    """

    time_s: float | None
    frame_id: int | None
    width: int
    height: int
    colour: Colours
    opaque: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    patches: tuple[tuple[float, ...], ...]
    planes: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sound:
    """One decoded sound track.

    `start_s` and `end_s` are times of the first and after the last sample, `duration_s` counts
    samples; `packets` are the digests of its compressed packets.
    """

    codec: str
    channels: int
    rate: int
    start_s: float
    end_s: float
    duration_s: float
    packets: tuple[str, ...]
    language: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class Media:
    """What a file holds. `turn` is (a, b, c, d) of the display matrix, as signs."""

    container: str
    codec: str
    width: int
    height: int
    pix_fmt: str
    sar: Fraction
    turn: Turn
    time_base: Fraction
    average_rate: Fraction
    colour_tags: dict[str, str]
    hdr: dict[str, tuple[str, ...]]
    field_order: str
    pictures: list[Picture]
    sounds: list[Sound]
    counts: dict[str, int]
    tags: dict[str, str]

    @property
    def times_s(self) -> list[float]:
        """The times of the pictures that have one, in output order."""
        return [p.time_s for p in self.pictures if p.time_s is not None]

    @property
    def ids(self) -> list[int | None]:
        """The bar code of every picture, None where unreadable."""
        return [p.frame_id for p in self.pictures]


def strip_height(height: int) -> int:
    """Height of the bar code strip and of the patch strip."""
    return max(4, height // 8)


def read_bar_code(luma: NDArray[Any]) -> int | None:
    """Read the frame number from an upright (H, W) picture of any depth; None: unreadable."""
    height, width = luma.shape
    if width < 64 or height < 32:
        return None
    strip = strip_height(height)
    rows = luma[max(1, strip // 4) : strip - max(1, strip // 4)]
    levels = [float(rows[:, columns].mean()) for columns in _inner_columns(width, CODE_COLUMNS)]
    white, black = levels[:2]
    if white - black < 0.15 * max(1.0, abs(white)):
        return None
    bits = [level > (white + black) / 2 for level in levels]
    value = int("".join(str(int(bit)) for bit in bits[2:14]), 2)
    parity_ok = (sum(bits[2:14]) & 1) == bits[14]
    return value if bits[0] and not bits[1] and not bits[15] and parity_ok else None


def read_patches(rgb: NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    """Read the mean colours of the six patches from an upright (H, W, 3) picture."""
    height, width = rgb.shape[:2]
    strip = strip_height(height)
    margin = max(1, strip // 4)
    rows = rgb[height - strip + margin : height - margin]
    if rows.size == 0 or width < 4 * PATCH_COUNT:
        return ()
    return tuple(
        tuple(float(c) for c in rows[:, columns].reshape(-1, 3).mean(axis=0))
        for columns in _inner_columns(width, PATCH_COUNT)
    )


def turn_upright(picture: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """Apply a display matrix (x' = a·x + c·y, y' = b·x + d·y, up to shifts) to (H, W, …)."""
    a, b, c, d = turn
    if b or c:
        picture = picture.swapaxes(0, 1)
        a, d = c, b
    if a < 0:
        picture = picture[:, ::-1]
    return picture[::-1] if d < 0 else picture


def inspect(path: Path, *, turn: Turn | None = None, planes: bool = False) -> Media:
    """Decode a whole file.

    `turn` replaces the file's own orientation (ffprobe does not read EXIF); `planes` keeps the
    samples. Raises ValueError if the file has no picture stream, and av.FFmpegError if it
    cannot be opened.
    """
    report = probe(path)
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        video = _main_video(container)
        if video is None:
            raise ValueError(f"no picture stream in {path.name!a}")
        stream = stream_of(report, video.index)
        frame: dict[str, Any] = next(
            (f for f in report.get("frames", []) if f.get("stream_index") == video.index), {}
        )
        if turn is None:
            turn = display_turn(stream) or display_turn(frame) or _first_frame_turn(path)
        reader = _Reader(container, video, turn, planes, colour_tags(stream, frame))
        reader.read()
        return Media(
            container=container.format.name,
            codec=str(stream.get("codec_name")),
            width=video.width,
            height=video.height,
            pix_fmt=str(reader.pix_fmt),
            sar=sample_aspect(stream, frame),
            turn=turn,
            time_base=Fraction(video.time_base or 0),
            average_rate=ratio(stream.get("avg_frame_rate", ""), Fraction(0)),
            colour_tags=reader.tags,
            hdr=hdr_values(frame, stream),
            field_order=field_order(frame),
            pictures=reader.pictures,
            sounds=[track.sound(report) for track in reader.tracks.values()],
            counts=stream_counts(report),
            tags={k.lower(): v for k, v in report.get("format", {}).get("tags", {}).items()},
        )


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()[:12]


class _Track:
    """Collects one sound track while the file is read."""

    def __init__(self, stream: av.AudioStream) -> None:
        self.stream = stream
        self.start_s: float | None = None
        self.end_s = 0.0
        self.samples = 0
        self.digests: list[str] = []
        self._uncompressed = b""

    def add_packet(self, data: bytes) -> None:
        if not self.stream.codec_context.name.startswith("pcm_"):
            self.digests.append(_digest(data))
            return
        self._uncompressed += data  # every container cuts PCM as it likes
        while len(self._uncompressed) >= PCM_BYTES:
            self.digests.append(_digest(self._uncompressed[:PCM_BYTES]))
            self._uncompressed = self._uncompressed[PCM_BYTES:]

    def add(self, frame: av.AudioFrame) -> None:
        self.samples += frame.samples
        if frame.pts is None or frame.time_base is None:
            return
        time_s = float(frame.pts * frame.time_base)
        self.start_s = time_s if self.start_s is None else self.start_s
        self.end_s = time_s + frame.samples / (frame.sample_rate or 1)

    def sound(self, report: dict[str, Any]) -> Sound:
        probed = stream_of(report, self.stream.index)
        return Sound(
            codec=str(probed.get("codec_name")),
            channels=self.stream.codec_context.channels,
            rate=self.stream.codec_context.sample_rate,
            start_s=self.start_s or 0.0,
            end_s=self.end_s,
            duration_s=self.samples / (self.stream.codec_context.sample_rate or 1),
            packets=tuple(self.digests),
            language=str(probed.get("tags", {}).get("language", "und")),
            is_default=bool(probed.get("disposition", {}).get("default")),
        )


class _Reader:
    """Decodes the main picture stream and all sound of an open file, skipping bad packets."""

    def __init__(
        self,
        container: av.container.InputContainer,
        video: av.VideoStream,
        turn: Turn,
        planes: bool,
        tags: dict[str, str],
    ) -> None:
        self.container, self.video, self.turn, self.keep_planes = container, video, turn, planes
        self.tags = tags
        self.reformatter = VideoReformatter()
        self.pictures: list[Picture] = []
        self.pix_fmt: str | None = None
        self.tracks = {
            s.index: _Track(s) for s in container.streams.audio if s.codec_context is not None
        }
        self.decoder = _alpha_decoder(video)

    def read(self) -> None:
        wanted = [self.video, *(track.stream for track in self.tracks.values())]
        packets = self.container.demux(wanted)
        for packet in _surviving(packets):
            track = self.tracks.get(packet.stream.index)
            if track is not None and packet.size:
                track.add_packet(bytes(packet))
            for frame in self._decode(packet):
                if track is not None:
                    track.add(frame)
                else:
                    self.pictures.append(self._picture(frame))

    def _decode(self, packet: av.Packet[Any]) -> list[Any]:
        is_video = packet.stream.index == self.video.index
        try:
            if is_video and self.decoder is not None:
                return list(self.decoder.decode(packet if packet.size else None))
            return list(packet.decode())
        except av.FFmpegError:
            return []

    def _picture(self, frame: av.VideoFrame) -> Picture:
        self.pix_fmt = self.pix_fmt or frame.format.name
        rgba = turn_upright(self._rgba(frame), self.turn)
        rgb, alpha = rgba[..., :3], rgba[..., 3]
        base = frame.time_base or self.video.time_base
        return Picture(
            time_s=None if frame.pts is None or base is None else float(frame.pts * base),
            frame_id=read_bar_code(rgb[..., 1]),
            width=frame.width,
            height=frame.height,
            colour=_blocks(rgb),
            opaque=_blocks(alpha == 255) == 1,
            clear=_blocks(alpha == 0) == 1,
            patches=read_patches(rgb),
            planes=component_planes(frame) if self.keep_planes else {},
        )

    def _rgba(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        # Untagged: what players assume, 601 below 720 lines and 709 from there.
        assumed = "smpte170m" if frame.height < 720 else "bt709"
        matrix = _MATRICES.get(self.tags["matrix"], _MATRICES[assumed])
        full = self.tags["range"] == "pc" or frame.format.name.startswith("yuvj")
        converted = self.reformatter.reformat(
            frame,
            format="rgba",
            src_colorspace=None if frame.format.is_rgb else matrix,
            src_color_range=ColorRange.JPEG if full or frame.format.is_rgb else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=EXACT,
        )
        rgba = converted.to_ndarray().astype(np.uint8, copy=False)
        if frame.format.name.startswith("gray") and self.tags["range"] == "tv":
            rgba = rgba.copy()  # swscale takes gray for full range, whatever it is told
            rgba[..., :3] = np.clip((rgba[..., :3].astype(np.float32) - 16) * 255 / 219, 0, 255)
        return rgba


def component_planes(frame: av.VideoFrame) -> dict[str, NDArray[Any]]:
    """Copy the stored samples of a frame by component, packed formats as their planar sibling.

    Keys are Y, U, V or G, B, R, and A; arrays are (H, W) uint8, or uint16 above 8 bits.
    """
    if frame.format.name == "rgb555le":  # straight to gbrp swscale leaves the low bits zero
        frame = frame.reformat(format="rgb24", interpolation=EXACT)
    planar = _PLANAR_SIBLINGS.get(frame.format.name)
    if planar is not None:
        frame = frame.reformat(format=planar, interpolation=EXACT)
    names = "GBRA" if frame.format.is_rgb else "YUVA"
    if len(frame.format.components) == 2:
        names = "YA"
    samples = {}
    for name, plane in zip(names, frame.planes, strict=False):
        sample = np.dtype(np.uint8 if frame.format.components[0].bits <= 8 else "<u2")
        rows = np.frombuffer(memoryview(plane), np.uint8).view(sample)
        rows = rows.reshape(plane.height, plane.line_size // sample.itemsize)
        samples[name] = rows[:, : plane.width].copy()
    return samples


_PLANAR_SIBLINGS = {
    "nv12": "yuv420p",
    "uyvy422": "yuv422p",
    "yuyv422": "yuv422p",
    "p010le": "yuv420p10le",
    **dict.fromkeys(["rgb24", "bgr24", "rgb0", "bgr0", "0rgb"], "gbrp"),
    **dict.fromkeys(["rgba", "bgra", "argb", "abgr", "pal8"], "gbrap"),
    "rgb48le": "gbrp16le",
    "rgba64le": "gbrap16le",
}


def _surviving(packets: Iterator[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    """Yield packets, passing over the ones that cannot be demuxed, within a bound."""
    for _ in range(100_000):
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            continue
        if packet is None:
            return
        yield packet


def _alpha_decoder(video: av.VideoStream) -> av.VideoCodecContext | None:
    """FFmpeg's own VP8 and VP9 decoders drop alpha; libvpx keeps it."""
    name = video.codec_context.name
    if name not in ("vp8", "vp9") or not video.metadata.get("alpha_mode"):
        return None
    decoder = av.CodecContext.create(f"libvpx-{name}" if name == "vp9" else "libvpx", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    return decoder


def _main_video(container: av.container.InputContainer) -> av.VideoStream | None:
    cover = av.stream.Disposition.attached_pic
    pictures = [s for s in container.streams.video if not s.disposition & cover]
    chosen = [s for s in pictures if s.disposition & av.stream.Disposition.default]
    return next(iter(chosen or pictures), None)


def _blocks(picture: NDArray[Any]) -> Colours:
    """Mean over a 16 by 16 grid of blocks; sides below 16 repeat samples."""
    height, width = picture.shape[:2]
    if height < THUMB or width < THUMB:
        rows = np.arange(max(height, THUMB)) * height // max(height, THUMB)
        columns = np.arange(max(width, THUMB)) * width // max(width, THUMB)
        picture = picture[rows][:, columns]
        height, width = picture.shape[:2]
    row_edges = np.arange(THUMB) * height // THUMB
    column_edges = np.arange(THUMB) * width // THUMB
    sums = np.add.reduceat(picture, row_edges, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, column_edges, axis=1)
    area = np.outer(np.diff([*row_edges, height]), np.diff([*column_edges, width]))
    means: Colours = sums / (area[..., None] if picture.ndim == 3 else area)
    return means


def _inner_columns(width: int, count: int) -> Iterator[slice]:
    for column in range(count):
        left, right = column * width // count, (column + 1) * width // count
        margin = max(1, (right - left) // 4)
        yield slice(left + margin, right - margin)


def _first_frame_turn(path: Path) -> Turn:
    """Ask PyAV, whose FFmpeg is younger: ffprobe before 6 knows no rotation in Matroska."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        video = _main_video(container)
        assert video is not None
        try:
            frame = next(container.decode(video))
        except (StopIteration, av.FFmpegError):
            return UPRIGHT
        side_data: Mapping[Any, Any] = frame.side_data
        side = side_data.get(SideDataType.DISPLAYMATRIX)
        if side is None:
            return UPRIGHT
        matrix = np.frombuffer(memoryview(side), "<i4")
        a, b, c, d = (int(n) for n in np.sign(matrix[[0, 1, 3, 4]]))
        return a, b, c, d
