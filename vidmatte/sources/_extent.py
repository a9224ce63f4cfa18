"""Read off a file's first bytes how long it should be."""

from __future__ import annotations

import os

HEAD_BYTES = 4096
SEGMENT = bytes.fromhex("18538067")  # RFC 9559, section 5.1
EBML = bytes.fromhex("1a45dfa3")  # RFC 8794, section 11.2
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


def _segment_end(head: bytes) -> int | None:
    """Walk the outermost elements to the segment, which holds all the rest."""
    position = 0
    while position < len(head):
        identity = head[position : position + _width(head[position])]
        start = position + len(identity)
        if start >= len(head):
            return None
        width = _width(head[start])
        mask = (1 << 7 * width) - 1
        size = int.from_bytes(head[start : start + width], "big") & mask
        if size == mask:  # unknown: RFC 8794, section 6.2
            return None
        position = start + width + size
        if identity == SEGMENT:
            return position
    return None


def _width(first: int) -> int:
    """Length in bytes of an EBML variable-size integer: its leading zero bits, plus one."""
    return 9 - first.bit_length()
