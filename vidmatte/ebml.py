"""Read the elements that Matroska and WebM files are made of (EBML: RFC 8794, RFC 9559)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

HEAD_BYTES = 12  # an identity of up to 4 bytes, a size of up to 8
EBML = bytes.fromhex("1a45dfa3")  # RFC 8794, section 11.2
SEGMENT = bytes.fromhex("18538067")  # RFC 9559, section 5.1, as all that follow
TRACKS = bytes.fromhex("1654ae6b")
TRACK_ENTRY = bytes.fromhex("ae")
TRACK_NUMBER = bytes.fromhex("d7")
TRACK_TYPE, TYPE_VIDEO = bytes.fromhex("83"), 1
CLUSTER = bytes.fromhex("1f43b675")
SIMPLE_BLOCK = bytes.fromhex("a3")
BLOCK_GROUP = bytes.fromhex("a0")
BLOCK = bytes.fromhex("a1")
CRC = bytes.fromhex("bf")  # RFC 8794, section 11.3
VOID = bytes.fromhex("ec")


class Element(NamedTuple):
    """The head of an element: its identity, the bytes of the head and of the rest if known."""

    identity: bytes
    head: int
    size: int | None


def element(data: bytes) -> Element | None:
    """Parse the head of the element that `data` begins with; None where there is none, or part."""
    identity_width = width(data[:1])
    if not 1 <= identity_width <= 4:
        return None
    rest = data[identity_width : identity_width + 8]
    size_width = width(rest[:1])
    if not 1 <= size_width <= len(rest):
        return None
    mask = (1 << 7 * size_width) - 1
    size = int.from_bytes(rest[:size_width], "big") & mask
    known = None if size == mask else size  # all ones: unknown, RFC 8794, section 6.2
    return Element(data[:identity_width], identity_width + size_width, known)


def width(first: bytes) -> int:
    """Length of the variable-size integer that begins with this byte; 0 where it is none.

    Its leading zero bits, plus one: RFC 8794, section 4.1.
    """
    return 9 - first[0].bit_length() if first and first[0] else 0


def number(data: bytes) -> int | None:
    """Read the variable-size integer that `data` begins with, such as a block's track."""
    length = width(data[:1])
    if not 1 <= length <= len(data):
        return None
    return int.from_bytes(data[:length], "big") & (1 << 7 * length) - 1


def children(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (identity, contents) of the elements that `data` is made of, up to one that is none."""
    position = 0
    while (found := element(data[position : position + HEAD_BYTES])) is not None:
        if found.size is None:
            return
        position += found.head
        yield found.identity, data[position : position + found.size]
        position += found.size
