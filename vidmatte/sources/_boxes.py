"""Find MP4 indexes that claim more than the file can hold, before FFmpeg makes room for it all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from vidmatte.errors import InputError

# An entry of FFmpeg's index takes 36 bytes of memory (measured); so many are allowed to any file,
# and to a larger one as many as it has bytes: PCM may have one sample in each.
FREE_SAMPLES = 1 << 20
# Boxes that hold boxes (ISO/IEC 14496-12, table 1). FFmpeg looks for any box in any of them.
PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"mvex",
                     b"udta", b"moof", b"traf", b"sinf", b"wave"})  # fmt: skip
PER_SAMPLE_FLAGS = 0xF00  # of `trun`: duration, size, flags and offset of each sample follow
DEEPEST = 10  # FFmpeg's own limit


class _Box(NamedTuple):
    kind: bytes
    start: int
    end: int


def refuse_false_index(descriptor: int, name: str) -> None:
    """Raise InputError for an MP4 or MOV whose index could not be true of so small a file.

    Sample tables and fragments may claim 2**32 samples in 20 bytes, for which FFmpeg takes
    gigabytes and minutes before it gives the first packet. Other files, and pipes, pass.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return
    believable = max(FREE_SAMPLES, status.st_size)
    claimed = 0
    for count in _claims(descriptor, _Box(b"", 0, status.st_size)):
        claimed += count
        if claimed > believable:
            raise InputError(
                f"{name}: its index claims {claimed} samples in {status.st_size} bytes; "
                "it is damaged or made to do harm",
                hint="copy or download it again, from where you trust",
            )


def _claims(descriptor: int, box: _Box, depth: int = 0, *, sound: bool = False) -> Iterator[int]:
    """Yield how many samples each fragment and each table of equal samples claims."""
    equal_samples, one_tick_each = 0, False
    for child in _children(descriptor, box):
        if child.kind in PARENTS and depth < DEEPEST:
            yield from _claims(descriptor, child, depth + 1, sound=sound)
        elif child.kind == b"hdlr":
            handler = os.pread(descriptor, 4, child.start + 8)
            sound = handler == b"soun" or (sound and handler != b"vide")
        elif child.kind == b"trun":
            flags, count = _numbers(descriptor, child, 2)
            fields = (flags & PER_SAMPLE_FLAGS).bit_count()
            backed = fields and 4 * fields * count <= child.end - child.start
            yield 0 if backed else count
        elif child.kind == b"stsz":
            _, size, count = _numbers(descriptor, child, 3)
            equal_samples += count if size else 0
        elif child.kind == b"stz2":  # its sizes take half a byte each, or one, or two
            _, _, count = _numbers(descriptor, child, 3)
            yield count
        elif child.kind == b"stts":
            _, entries, _, ticks = _numbers(descriptor, child, 4)
            one_tick_each = entries == ticks == 1
    if not (sound and one_tick_each):  # PCM is taken by the chunk
        yield equal_samples


def _children(descriptor: int, box: _Box) -> Iterator[_Box]:
    """Walk what a box holds, as FFmpeg does: what is longer than its parent is cut there."""
    start = box.start
    while start + 8 <= box.end:
        header = os.pread(descriptor, 16, start)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        body = start + 8
        if size == 1 and body + 8 <= box.end:
            size, body = int.from_bytes(header[8:16], "big"), body + 8
        if size == 0:
            size = box.end - start
        if len(header) < 8 or size < body - start:
            return
        start = min(start + size, box.end)
        yield _Box(kind, body, start)


def _numbers(descriptor: int, box: _Box, count: int) -> tuple[int, ...]:
    data = os.pread(descriptor, 4 * count, box.start).ljust(4 * count, b"\0")
    return tuple(int.from_bytes(data[i : i + 4], "big") for i in range(0, 4 * count, 4))
