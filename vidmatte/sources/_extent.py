"""Read off a file itself how long it should be, and whether it hangs together."""

from __future__ import annotations

import os
from typing import NamedTuple

HEAD_BYTES = 4096
SEGMENT = bytes.fromhex("18538067")  # RFC 9559, section 5.1
EBML = bytes.fromhex("1a45dfa3")  # RFC 8794, section 11.2
# What may lie in or before the segment, and in a cluster: RFC 9559, section 5.1; RFC 8794, 11.3.
CLUSTER = bytes.fromhex("1f43b675")
_ANYWHERE = (bytes.fromhex("ec"), bytes.fromhex("bf"))
OUTER = frozenset({EBML, SEGMENT, CLUSTER, *_ANYWHERE, *map(bytes.fromhex, (
    "114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1941a469", "1043a770", "1254c367",
))})  # fmt: skip
IN_CLUSTER = frozenset({*_ANYWHERE, *map(bytes.fromhex, (
    "e7", "5854", "a7", "ab", "a3", "a0", "af",
))})  # fmt: skip
UNFINISHED_RIFF = 0x7FFFFFFF  # from here up, a size that was to be filled in at the end


def promised_bytes(descriptor: int) -> int | None:
    """Return the length that a regular Matroska, WebM or AVI file's own header states.

    None for other formats, for a recording whose length was not filled in, and for what is no
    regular file.
    """
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError:
        return None
    if head.startswith(EBML):
        return _segment_end(head)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size < UNFINISHED_RIFF else None
    return None


def is_broken_matroska(descriptor: int, *, thorough: bool) -> bool:
    """Whether the chain of a regular Matroska file's elements is broken on the way.

    A demuxer finds the next one by searching and tells nobody. Follows the outer elements; if
    `thorough` the blocks in the clusters too, which touches most of the file. False where the
    chain cannot be followed: a live recording's clusters have no size.
    """
    try:
        if not os.pread(descriptor, 4, 0).startswith(EBML):
            return False
        return _is_broken(descriptor, 0, os.fstat(descriptor).st_size, OUTER, thorough)
    except OSError:
        return False


def _is_broken(
    descriptor: int, position: int, end: int, allowed: frozenset[bytes], thorough: bool
) -> bool:
    while position < end:
        element = _element(os.pread(descriptor, 12, position))
        if element is None:
            return False
        if element.identity not in allowed:
            return True
        position += element.head
        if element.identity == SEGMENT:
            continue
        if element.size is None:
            return False
        last = position + element.size
        enter = thorough and element.identity == CLUSTER and last <= end
        if enter and _is_broken(descriptor, position, last, IN_CLUSTER, thorough):
            return True
        position = last
    return False


class _Element(NamedTuple):
    """The head of an EBML element: identity, bytes of the head, bytes of the rest if known."""

    identity: bytes
    head: int
    size: int | None


def _element(head: bytes) -> _Element | None:
    """Parse an element's head, or return None where it is cut."""
    if not head:
        return None
    identity = head[: _width(head[0])]
    rest = head[len(identity) :]
    if not rest or len(rest) < (width := _width(rest[0])):
        return None
    mask = (1 << 7 * width) - 1
    size = int.from_bytes(rest[:width], "big") & mask
    known = None if size == mask else size  # all ones: unknown, RFC 8794, section 6.2
    return _Element(identity, len(identity) + width, known)


def _segment_end(head: bytes) -> int | None:
    """Walk the outermost elements to the segment, which holds all the rest."""
    position = 0
    while (element := _element(head[position : position + 12])) is not None:
        if element.size is None:
            return None
        position += element.head + element.size
        if element.identity == SEGMENT:
            return position
    return None


def _width(first: int) -> int:
    """Length in bytes of an EBML variable-size integer: its leading zero bits, plus one."""
    return 9 - first.bit_length()
