"""Write the shape of a Matroska file's pixels into its header, which PyAV cannot.

FFmpeg's muxer takes it from a field of the stream that PyAV never fills; with FFV1 or VP9, whose
own data say nothing of it or too late, every pixel is then square. So the track gets a name that
ends in blanks, and in the header that was written these give way to what RFC 9559, sections
5.1.4.1.28.14 to 16, has for the shape.
"""

from __future__ import annotations

import os
from fractions import Fraction
from zlib import crc32

from vidmatte import ebml

ROOM = " " * 32  # at the end of the track's name
HEADER_BYTES = 1 << 20
NAME, VIDEO = bytes.fromhex("536e"), bytes.fromhex("e0")
DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT = map(bytes.fromhex, ("54b0", "54ba", "54b2"))
UNIT_RATIO = 3  # of DisplayUnit; 0, which is pixels, need not be said
CRC_HEAD = ebml.CRC + b"\x84"

Span = tuple[int, int]  # first byte, and the one behind the last


def write_aspect(descriptor: int, size: tuple[int, int], aspect: Fraction) -> None:
    """Give the first track of a file whose header is written pixels of `aspect`.

    `size` is (width, height) as stored. The track's name has to end in `ROOM`, unless this was
    done before. The file keeps its length. Raises OSError.
    """
    header = bytearray(os.pread(descriptor, HEADER_BYTES, 0))
    segment = _child(header, (0, len(header)), ebml.SEGMENT)
    start, end = _child(header, segment, ebml.TRACKS)
    first, last = _child(header, (start, end), ebml.TRACK_ENTRY)
    header[first:last] = _entry(bytes(header[first:last]), _shape(size, aspect))
    if header.startswith(CRC_HEAD, start):  # of all that follows: RFC 8794, section 11.3.1
        checked = start + len(CRC_HEAD) + 4
        header[checked - 4 : checked] = crc32(header[checked:end]).to_bytes(4, "little")
    os.pwrite(descriptor, header[start:end], start)


def _child(data: bytearray, span: Span, identity: bytes) -> Span:
    """Return where the contents of the first such child lie."""
    position, end = span
    while True:
        found = ebml.element(bytes(data[position : position + ebml.HEAD_BYTES]))
        assert found is not None, f"no element {identity.hex()}"
        position += found.head
        size = end - position if found.size is None else found.size
        if found.identity == identity:
            return position, min(position + size, end)
        position += size


def _entry(contents: bytes, shape: bytes) -> bytes:
    """Return as many bytes, in which the shape has taken room from the name."""
    parts = []
    for identity, value in ebml.children(contents):
        if identity == NAME:
            value = value.removesuffix(ROOM.encode())
        elif identity == VIDEO:
            value = _without_shape(value) + shape
        if identity != ebml.VOID and not (identity == NAME and not value):
            parts.append(_element(identity, value))
    changed = b"".join(parts)
    left = len(contents) - len(changed)
    assert 2 <= left < 0x7F, "no room for the shape of the pixels"
    return changed + _element(ebml.VOID, bytes(left - 2))


def _without_shape(contents: bytes) -> bytes:
    own = (DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT)
    return b"".join(_element(i, value) for i, value in ebml.children(contents) if i not in own)


def _shape(size: tuple[int, int], aspect: Fraction) -> bytes:
    """Say how wide and high it is shown: in pixels if that is exact, else as a ratio."""
    width, height, unit = size[0] * aspect, Fraction(size[1]), b""
    if width.denominator != 1:
        width, height = map(Fraction, (width / height).as_integer_ratio())
        unit = _number(DISPLAY_UNIT, UNIT_RATIO)
    return unit + _number(DISPLAY_WIDTH, int(width)) + _number(DISPLAY_HEIGHT, int(height))


def _number(identity: bytes, number: int) -> bytes:
    return _element(identity, number.to_bytes(-(-number.bit_length() // 8), "big"))


def _element(identity: bytes, contents: bytes) -> bytes:
    """Make an element; its size takes as few bytes as it can: RFC 8794, section 4."""
    length = next(n for n in range(1, 9) if len(contents) < (1 << 7 * n) - 1)
    size = len(contents) | 1 << 7 * length
    return identity + size.to_bytes(length, "big") + contents
