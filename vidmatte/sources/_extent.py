"""Read off a file itself how long it should be."""

from __future__ import annotations

import os

from vidmatte import ebml

HEAD_BYTES = 4096
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
    if head.startswith(ebml.EBML):
        return _segment_end(head)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size < UNFINISHED_RIFF else None
    return None


def _segment_end(head: bytes) -> int | None:
    """Walk the outermost elements to the segment, which holds all the rest."""
    position = 0
    while (found := ebml.element(head[position : position + ebml.HEAD_BYTES])) is not None:
        if found.size is None:
            return None
        position += found.head + found.size
        if found.identity == ebml.SEGMENT:
            return position
    return None
