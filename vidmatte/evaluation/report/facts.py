"""Put in words what a file is: picture, codec, colours, sound, tags."""

from __future__ import annotations

from dataclasses import dataclass

from vidmatte.frames import Colour, VideoInfo
from vidmatte.sources import Source
from vidmatte.sources.file import FileSource

MOST_TAGS, MOST_LETTERS = 24, 200
# ISO/IEC 23091-2, tables 2 to 4.
MATRICES = {0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M",
            8: "YCgCo", 9: "BT.2020", 10: "BT.2020 constant luminance"}  # fmt: skip
PRIMARIES = {1: "BT.709", 4: "BT.470 M", 5: "BT.601 625", 6: "BT.601 525", 7: "SMPTE 240M",
             9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # fmt: skip
TRANSFERS = {1: "BT.709", 4: "gamma 2.2", 5: "gamma 2.8", 6: "BT.601", 8: "linear", 13: "sRGB",
             14: "BT.2020", 15: "BT.2020", 16: "PQ", 18: "HLG"}  # fmt: skip
RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What one file is, in words of its own and ours; nothing of it is escaped.

    `sound` names its sound tracks.
    """

    name: str
    rows: list[tuple[str, str]]
    tags: list[tuple[str, str]]
    sound: list[str]


def facts_of(name: str, source: Source) -> Facts:
    """Describe a source that is open."""
    info = source.info
    sound = _sound(source)
    rows = [
        ("Picture", _picture(info)),
        ("Codec", f"{info.codec}, {info.pix_fmt}, in {info.container}"),
        ("Rate", f"{float(info.frame_rate):.6g} per second by its header"),
        ("Colours", _colours(info.colour)),
        ("Sound", "; ".join(sound) or "none"),
    ]
    return Facts(name, rows, _tags(source), sound)


def _picture(info: VideoInfo) -> str:
    parts = [f"{info.width}x{info.height}"]
    if info.orientation.rotate_cw:
        parts.append(f"shown turned by {info.orientation.rotate_cw}°")
    if info.orientation.mirror:
        parts.append("mirrored")
    if info.sample_aspect_ratio != 1:
        parts.append(f"pixels of {info.sample_aspect_ratio}")
    if info.field_order != "progressive":
        parts.append(f"interlaced, {info.field_order}")
    return ", ".join(parts)


def _colours(colour: Colour) -> str:
    known = [
        (MATRICES.get(colour.matrix), "matrix"),
        (PRIMARIES.get(colour.primaries), "primaries"),
        (TRANSFERS.get(colour.transfer), "transfer"),
        (RANGES.get(colour.range), "range"),
    ]
    return ", ".join(f"{value} {what}" for value, what in known if value) or "not tagged"


def _sound(source: Source) -> list[str]:
    if not isinstance(source, FileSource):
        return []
    tracks = []
    for stream in source.container.streams.audio:
        context = stream.codec_context
        name = "unknown codec" if context is None else f"{context.name}, {context.sample_rate} Hz"
        tracks.append(name)
    return tracks


def _tags(source: Source) -> list[tuple[str, str]]:
    """The container's and the picture's tags, as long as one can read them."""
    if not isinstance(source, FileSource):
        return []
    tags = dict(source.container.metadata) | source.video_metadata
    return [(_cut(name), _cut(value)) for name, value in list(tags.items())[:MOST_TAGS]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
