"""Seeded damage to small files of every container, and what is done with each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from conftest import fill_picture, make_clip

FRAMES, SIZE = 8, (64, 48)
BITEXACT = {"fflags": "+bitexact"}  # no random identifiers: a seed means the same bytes
MAX_SIZE = "640x480"  # so that a lying header cannot ask for much memory or time
INPUT, BACKGROUND_INPUT = "input", "good.mp4"


# ---- the undamaged files ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """What `make_clip` is to write."""

    codec: str
    pix_fmt: str = "yuv420p"
    audio: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    muxer: tuple[tuple[str, str], ...] = ()
    chapters: int = 0

    def bytes(self, path: Path) -> bytes:
        """Write the clip to `path` and return what is in it."""
        make_clip(
            path, FRAMES, SIZE, self.pix_fmt, codec=self.codec, options=dict(self.options),
            audio=self.audio, chapters=self.chapters, metadata={"title": "base"}, gop=4,
            muxer=BITEXACT | dict(self.muxer),
        )  # fmt: skip
        return path.read_bytes()


ULTRAFAST = (("preset", "ultrafast"), ("threads", "1"))
X265 = (("x265-params", "log-level=none:pools=none:frame-threads=1"), ("preset", "ultrafast"))
CLIPS = {
    "h264_aac.mp4": Clip("libx264", audio="aac", options=ULTRAFAST, chapters=2),
    "hevc10_fragmented.mp4": Clip(
        "libx265", "yuv420p10le", "aac", X265, (("movflags", "frag_keyframe+empty_moov"),)
    ),
    "prores_alpha.mov": Clip("prores_ks", "yuva444p10le", "pcm_s16le"),
    "qtrle.mov": Clip("qtrle", "argb"),
    "ffv1_flac.mkv": Clip("ffv1", "yuv422p10le", "flac"),
    "h264_opus.mkv": Clip("libx264", audio="libopus", options=ULTRAFAST, chapters=1),
    "vp9_alpha.webm": Clip("libvpx-vp9", "yuva420p", "libopus", (("deadline", "realtime"),)),
    "mpeg2_mp2.ts": Clip("mpeg2video", audio="mp2"),
    "h264_aac.ts": Clip("libx264", audio="aac", options=ULTRAFAST),
    "mpeg2_mp2.mpg": Clip("mpeg2video", audio="mp2"),
    "flv1_mp3.flv": Clip("flv", audio="libmp3lame"),
    "mpeg4_pcm.avi": Clip("mpeg4", audio="pcm_s16le"),
    "mjpeg.avi": Clip("mjpeg", "yuvj422p"),
    "wmv2.asf": Clip("wmv2"),
    "vp8.ivf": Clip("libvpx", options=(("deadline", "realtime"),)),
    "frames.gif": Clip("gif", "rgb8"),
    "frames.apng": Clip("apng", "rgba"),
}
PICTURES = {
    "picture.png": ("png", "rgba"),
    "picture16.png": ("png", "rgb48be"),
    "picture.jpg": ("mjpeg", "yuvj420p"),
    "picture.webp": ("libwebp", "yuva420p"),
    "picture.tiff": ("tiff", "rgb24"),
    "picture.bmp": ("bmp", "bgr24"),
}


def y4m() -> bytes:
    """Uncompressed pictures behind a header of text."""
    width, height = SIZE
    noise = np.random.default_rng(1).integers(16, 235, width * height * 3 // 2, np.uint8).tobytes()
    head = f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n"
    return head.encode() + (b"FRAME\n" + noise) * FRAMES


def _picture(codec: str, pix_fmt: str) -> bytes:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = *SIZE, pix_fmt
    context.time_base = Fraction(1, 25)
    picture = av.VideoFrame(*SIZE, pix_fmt)
    fill_picture(picture, 0)
    picture.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(picture), *context.encode(None)])


def png() -> bytes:
    """An undamaged picture."""
    return _picture(*PICTURES["picture.png"])


def make_bases(folder: Path) -> None:
    """Write every undamaged file into `folder`."""
    bases = {name: clip.bytes(folder / name) for name, clip in CLIPS.items()}
    bases |= {name: _picture(*kind) for name, kind in PICTURES.items()} | {"raw.y4m": y4m()}
    for name, data in bases.items():
        (folder / name).write_bytes(data)


def load_bases(folder: Path) -> dict[str, bytes]:
    """Read what `make_bases` wrote, in an order that does not depend on the disk."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- the damage ---------------------------------------------------------------------------------

LIES = (0, 1, 7, 8, 0xFFFF, 0x7FFFFFF0, 0x80000000, 0xFFFFFFFF)
TEXT_LIES = (b"0", b"-1", b"1", b"65535", b"4294967296", b"99999999999999999999", b"", b"x")
# Matroska's Segment, Info, Tracks, TrackEntry, Cues, Cluster, SimpleBlock, BlockGroup, Video.
EBML_IDS = (
    b"\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\xae|\x1c\x53\xbb\x6b|\x1f\x43\xb6\x75"
    b"|\xa3|\xa0|\xe0"
)
CHUNKS = rb"RIFF|LIST|JUNK|avih|strh|strf|dmlh|00dc|01wb|idx1|VP8[ XL]|ALPH"
BOXES = (
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|stbl|stsd|stts|stss|stsc|stsz|stco"
    rb"|ctts|sgpd|sbgp|avc1|avcC|hev1|hvcC|ap4h|rle |esds|colr|pasp|udta|meta|mvex|trex|moof|mfhd"
    rb"|traf|tfhd|tfdt|trun|mdat|mfra|IHDR|PLTE|acTL|fcTL|fdAT|IDAT|IEND"
)


def _somewhere(rng: random.Random, size: int) -> int:
    """A place in the file; every second time near its start, where the headers are."""
    return rng.randrange(max(1, min(size, 512) if rng.random() < 0.5 else size))


def flip(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change single bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if out:
            at = _somewhere(rng, len(out))
            out[at] = rng.choice((out[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255))
    return bytes(out)


def cut(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Keep the beginning or, sometimes, the end."""
    at = _somewhere(rng, len(data))
    return data[at:] if rng.random() < 0.2 else data[:at]


def splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Join the beginning with the end of another file."""
    other = rng.choice(others)
    return data[: _somewhere(rng, len(data))] + other[rng.randrange(len(other)) :]


def blank(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Overwrite a range with zeros, ones or noise."""
    start = _somewhere(rng, len(data))
    end = min(len(data), start + rng.choice((4, 64, 512, 4096)))
    filler = rng.choice((bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)))
    return data[:start] + filler + data[end:]


def repeat(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Put a range in twice or more."""
    start = _somewhere(rng, len(data))
    piece = data[start : start + rng.choice((1, 16, 188, 1024, len(data)))]
    return data[:start] + piece * rng.choice((2, 2, 3, 9)) + data[start + len(piece) :]


def drop(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Leave a range out."""
    start = _somewhere(rng, len(data))
    return data[:start] + data[start + rng.choice((1, 4, 188, 1024)) :]


def lie(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change what a header says of a length, a size or a count."""
    if data.startswith(b"YUV4MPEG2"):
        return _lie_in_text(data, rng)
    places = _length_fields(data)
    if not places:
        places = [
            (_somewhere(rng, len(data)), rng.choice((1, 2, 4)), rng.choice(("big", "little")))
        ]
    at, width, order = rng.choice(places)
    old = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]
    new = rng.choice((*LIES, old + 1, max(0, old - 1), 2 * old, len(data), rng.getrandbits(32)))
    new &= (1 << 8 * width) - 1
    return data[:at] + new.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]


def _lie_in_text(data: bytes, rng: random.Random) -> bytes:
    head, newline, rest = data.partition(b"\n")
    numbers = list(re.finditer(rb"\d+", head)) or [re.match(rb"", head)]
    chosen = rng.choice(numbers)
    assert chosen is not None
    return head[: chosen.start()] + rng.choice(TEXT_LIES) + head[chosen.end() :] + newline + rest


def _length_fields(data: bytes) -> list[tuple[int, int, str]]:
    """Where boxes (MP4, PNG), chunks (RIFF) and elements (Matroska) keep lengths and counts."""
    if data.startswith(b"\x1aE\xdf\xa3"):
        return [(m.end(), 1, "big") for m in re.finditer(EBML_IDS, data)]
    if data.startswith(b"RIFF"):
        return [(m.end(), 4, "little") for m in re.finditer(CHUNKS, data)]
    boxes = [m.start() for m in re.finditer(BOXES, data)]
    # Behind a box's name are counts and sizes, such as IHDR's and tkhd's.
    return [(at + step, 4, "big") for at in boxes for step in (-4, -4, 4, 8, 12)]


Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
MUTATIONS: tuple[Mutation, ...] = (flip, flip, cut, splice, blank, repeat, drop, lie, lie)


def damage(
    data: bytes, rng: random.Random, others: Sequence[bytes]
) -> tuple[bytes, tuple[str, ...]]:
    """Return `data` after one to three mutations, and their names."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        data = mutation(data, rng, others)
        names.append(mutation.__name__)
    return data, tuple(names)


# ---- a case -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged file and what to do with it, in a folder of its own.

    `files` are written first; `arguments` are the command's; `stdin` names a file or is None;
    `outputs` are the names that exist after success and only then, the first holding the
    pictures that are reported.
    """

    seed: int
    base: str
    mutations: tuple[str, ...]
    files: dict[str, bytes]
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    stdin: str | None = None

    def __str__(self) -> str:
        done = "+".join(self.mutations)
        return f"seed {self.seed}: {done} of {self.base}; vidmatte {' '.join(self.arguments)}"


@dataclass(frozen=True, slots=True)
class Use:
    """A way to use the damaged file; INPUT stands for it."""

    output: str
    options: tuple[str, ...] = ()
    source: str = INPUT
    others: tuple[str, ...] = ()


USES = (
    Use("o.mp4"),
    Use("o.mp4"),
    Use("o.mkv"),
    Use("o.mkv", ("--codec", "ffv1", "--no-temporal")),
    Use("o.mov"),
    Use("o.webm", ("-b", "black")),
    Use("o.gif"),
    Use("f_%03d.png"),
    Use("o.mp4", ("--alpha", "a.mkv", "--foreground", "f.mov"), others=("a.mkv", "f.mov")),
    Use("o.mp4", ("-b", "blur")),
    Use("o.mkv", ("--start", "0.1", "--end", "0.25")),
    Use("o.png", ("--frame", "0.1")),
    Use("o.mp4", ("-b", INPUT), BACKGROUND_INPUT),
    Use("o.mkv", source="-"),
    Use("o.mp4", ("--strict",)),
)


def media_case(seed: int, bases: dict[str, bytes]) -> Case:
    """Damage one of the `bases` and choose what is done with it; the same for the same seed."""
    rng = random.Random(seed)
    base = rng.choice(sorted(bases))
    data, mutations = damage(bases[base], rng, [bases[name] for name in sorted(bases)])
    use = rng.choice(USES)
    # PNG becomes a sequence, not a video, whatever its pictures say.
    name = INPUT + Path(base).suffix
    named = {INPUT: name}
    arguments = ("run", named.get(use.source, use.source), use.output,
                 *(named.get(option, option) for option in use.options),
                 "--backend", "null", "--json", "--max-size", MAX_SIZE)  # fmt: skip
    files = {name: data, BACKGROUND_INPUT: bases["h264_aac.mp4"]}
    return Case(seed, base, mutations, files, arguments, (use.output, *use.others),
                name if use.source == "-" else None)  # fmt: skip


def write_case(case: Case, folder: Path) -> None:
    """Write the case's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
