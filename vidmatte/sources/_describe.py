"""Read off a container, its stream and its first picture what a source says of itself."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, cast

from vidmatte.frames import Colour, Orientation, VideoInfo

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

SANE_RATES = (Fraction(1, 3600), Fraction(1000))  # pictures per second
STILL_BRANDS = frozenset({"avif", "heic", "heix", "mif1"})  # ISO/IEC 23008-12: no sequences
FRAME_DATA_EXIF = 31  # AV_FRAME_DATA_EXIF, which PyAV 18 has no name for
FIELD_ORDERS: dict[int, Literal["tff", "bff"]] = {2: "tff", 4: "tff", 3: "bff", 5: "bff"}


def describe(
    name: str, container: InputContainer, stream: av.VideoStream, first: av.VideoFrame
) -> VideoInfo:
    """Build the VideoInfo from the stream and its first decoded picture."""
    blocks = _side_data(first)
    matrix = _display_matrix(blocks)
    brand = container.metadata.get("major_brand", "")
    still = container.format.name.endswith("_pipe") or brand in STILL_BRANDS
    context = stream.codec_context
    interlaced = bool(first.interlaced_frame)
    return VideoInfo(
        name=name,
        width=first.width,
        height=first.height,
        pix_fmt=first.format.name,
        time_base=stream.time_base or Fraction(1, 1000),
        frame_rate=frame_rate(stream),
        frame_count=stream.frames or None,
        duration_s=_duration_s(container, stream),
        sample_aspect_ratio=stream.sample_aspect_ratio or Fraction(1),
        orientation=_orientation(matrix, first.rotation),
        display_matrix=matrix,
        colour=_colour(first),
        field_order=_field_order(context) if interlaced else "progressive",
        mastering_display=_mastering_display(blocks),
        content_light=_content_light(blocks),
        codec=context.name,
        container=container.format.name,
        is_still=still,
    )


def _field_order(context: av.VideoCodecContext) -> Literal["tff", "bff"]:
    """Read the order of fields; DV says nothing and is always bottom field first (IEC 61834)."""
    return FIELD_ORDERS.get(context.field_order, "bff" if context.name == "dvvideo" else "tff")


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Choose a believable nominal rate; headers give 60000 for DV and nothing for raw streams."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and SANE_RATES[0] <= rate <= SANE_RATES[1]:
            return Fraction(rate)
    return Fraction(25)


def stated_end_s(container: InputContainer, stream: av.VideoStream) -> float | None:
    """When the pictures end by the file's own words: Matroska has a tag for it, else for all."""
    tag = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    if tag is None:
        return _duration_s(container, stream)
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])


def _duration_s(container: InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


def _colour(picture: av.VideoFrame) -> Colour:
    name = picture.format.name
    # FFmpeg takes gray for full range whatever the file says nothing about (swscale's rule).
    full = name.startswith("yuvj") or (name.startswith(("gray", "ya")) and not picture.color_range)
    return Colour(
        matrix=int(picture.colorspace),
        range=2 if full else int(picture.color_range),
        primaries=int(picture.color_primaries),
        transfer=int(picture.color_trc),
    )


def orientation_of(picture: av.VideoFrame) -> Orientation:
    """Read off a picture how it has to be turned."""
    return _orientation(_display_matrix(_side_data(picture)), picture.rotation)


def _side_data(picture: av.VideoFrame) -> dict[str, bytes]:
    """Return the picture's side data blocks by PyAV's names.

    Not by `picture.side_data`: picture and container would hold each other until the garbage
    collector comes, which can be long in a live session (PyAV 18.1).
    """
    from av.sidedata.sidedata import SideDataContainer

    try:
        blocks: list[Any] = list(SideDataContainer(picture))  # type: ignore[call-arg] # not in the stub
    except ValueError:  # PyAV cannot list the blocks of pictures with EXIF
        try:
            blocks = list(SideDataContainer(_without_exif(picture)))  # type: ignore[call-arg]
        except ValueError:
            return {}
    return {block.type.name: bytes(block) for block in blocks}


def _without_exif(picture: av.VideoFrame) -> av.VideoFrame:
    """Reference the same planes without the EXIF block; FFmpeg made a matrix of its turn."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1, 25),
    )
    drop = graph.add("sidedata", f"mode=delete:type={FRAME_DATA_EXIF}")
    sink = graph.add("buffersink")
    graph.link_nodes(source, drop, sink).configure()
    source.push(picture)
    return cast("av.VideoFrame", sink.pull())


def _display_matrix(blocks: dict[str, bytes]) -> tuple[int, ...] | None:
    data = blocks.get("DISPLAYMATRIX")
    return None if data is None or len(data) != 36 else struct.unpack("=9i", data)


def _orientation(matrix: tuple[int, ...] | None, rotation: int) -> Orientation:
    """Turn a display matrix into mirror and clockwise turn.

    The matrix maps stored (x, y) to shown (a x + c y, b x + d y), y downwards (ISO/IEC 14496-12
    section 8.3.2); a negative determinant mirrors. Matrices that are not quarter turns are
    rounded to the nearest.
    """
    if matrix is None:
        return Orientation(_quarter(-rotation % 360), False)
    a, b, _, c, d = matrix[:5]
    mirror = a * d - b * c < 0
    if mirror:
        a, b = -a, -b
    if abs(a) >= abs(b):
        return Orientation(0 if a >= 0 else 180, mirror)
    return Orientation(90 if b > 0 else 270, mirror)


def _quarter(degrees: int) -> Literal[0, 90, 180, 270]:
    turns: tuple[Literal[0, 90, 180, 270], ...] = (0, 90, 180, 270)
    return turns[round(degrees / 90) % 4]


def _mastering_display(blocks: dict[str, bytes]) -> str | None:
    """Mastering display in x265's notation, from AVMasteringDisplayMetadata's 10 rationals."""
    data = blocks.get("MASTERING_DISPLAY_METADATA")
    if data is None or len(data) < 88:
        return None
    values = struct.unpack("=22i", data[:88])
    if not (values[20] and values[21]):
        return None
    rational = [
        Fraction(n, d) if d else Fraction(0)
        for n, d in zip(values[0:20:2], values[1:20:2], strict=True)
    ]
    red, green, blue, white = (rational[i : i + 2] for i in (0, 2, 4, 6))
    low, high = rational[8:10]
    points = (("G", green), ("B", blue), ("R", red), ("WP", white))
    text = "".join(f"{n}({round(x * 50000)},{round(y * 50000)})" for n, (x, y) in points)
    return f"{text}L({round(high * 10000)},{round(low * 10000)})"


def _content_light(blocks: dict[str, bytes]) -> str | None:
    data = blocks.get("CONTENT_LIGHT_LEVEL")
    if data is None or len(data) < 8:
        return None
    max_cll, max_fall = struct.unpack("=2I", data[:8])
    return f"{max_cll},{max_fall}"
