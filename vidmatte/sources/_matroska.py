"""Follow the chain of a Matroska file's elements to where it is broken."""

from __future__ import annotations

import os
from typing import NamedTuple

from vidmatte import ebml

PEEK_BYTES = ebml.HEAD_BYTES + 8  # a block begins with the number of its track
MOST_TRACKS_BYTES = 1 << 20
MOST_BREAKS = 1000  # a file that is broken more often is not worth more time
FIRST_SEARCH_BYTES, MOST_SEARCH_BYTES = 1 << 12, 1 << 20


def _ids(*names: str) -> frozenset[bytes]:
    return frozenset({ebml.VOID, ebml.CRC, *map(bytes.fromhex, names)})


FILE, ADDITIONS, ADDITION = b"", bytes.fromhex("75a1"), bytes.fromhex("a6")
# What may lie in what: RFC 9559, section 5.1 and annex A (what old files have).
CHILDREN = {
    FILE: frozenset({ebml.VOID, ebml.CRC, ebml.EBML, ebml.SEGMENT}),
    ebml.SEGMENT: _ids(
        "114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1941a469", "1043a770",
        "1254c367", "1b538667",
    ),
    ebml.CLUSTER: _ids("e7", "5854", "a7", "ab", "a3", "a0", "af"),
    ebml.BLOCK_GROUP: _ids(
        "a1", "a2", "75a1", "9b", "fa", "fb", "fd", "a4", "75a2", "8e", "c8",
    ),
    ADDITIONS: _ids("a6"),
    ADDITION: _ids("a5", "ee"),
}  # fmt: skip
_OUTER = frozenset({ebml.SEGMENT})
_BLOCKS = frozenset({ebml.SIMPLE_BLOCK, ebml.BLOCK})
_NONE: frozenset[int] = frozenset()
_UNSIZED = frozenset({ebml.SEGMENT, ebml.CLUSTER})  # RFC 9559: these alone may leave it open


class Chain(NamedTuple):
    """What a file's chain of elements tells.

    `broken` is where it is so first and last, in bytes; `blocks` counts the blocks of a track;
    `skipped` is how many bytes lie between breaks and the clusters that follow them.
    """

    broken: tuple[int, int] | None = None
    blocks: int = 0
    skipped: int = 0


def follow_chain(descriptor: int, video: int, *, thorough: bool) -> Chain:
    """Follow the chain of a regular Matroska file's elements; for other files it is whole.

    A demuxer goes on at the next cluster that it finds by searching, and tells nobody. Follows
    the outer elements; if `thorough` the blocks in the clusters too, which touches most of the
    file, and counts those of its track of pictures number `video`, from 0. What lies behind the
    segment's end is none of its pictures; a recording without a length may end in an element.
    """
    try:
        if not os.pread(descriptor, 4, 0).startswith(ebml.EBML):
            return Chain()
        follower = _Follower(descriptor, video, thorough=thorough)
        return Chain(follower.broken(), follower.blocks, follower.skipped)
    except OSError:
        return Chain()


class _BreakError(Exception):
    """The chain is broken at a place."""

    def __init__(self, position: int) -> None:
        self.position = position


class _Follower:
    def __init__(self, descriptor: int, video: int, *, thorough: bool) -> None:
        self.blocks = self.skipped = 0
        self._descriptor = descriptor
        self._video = video
        self._track: int | None = None
        self._end = os.fstat(descriptor).st_size  # of the segment
        self._is_segment_known = False
        self._ends_open = False
        self._is_among_clusters = False
        self._tracks = _NONE
        self._entered = frozenset(CHILDREN) if thorough else _OUTER

    def broken(self) -> tuple[int, int] | None:
        places: list[int] = []
        start: int | None = 0
        parent = FILE
        for _ in range(MOST_BREAKS):
            if start is None:
                break
            try:
                self._follow(start, self._end, parent)
                break
            except _BreakError as broken:
                places = [*places[:1], broken.position]
                start, parent = self._next_cluster(broken.position + 1), ebml.SEGMENT
                if self._is_among_clusters and start is not None:
                    self.skipped += start - broken.position
        return (places[0], places[-1]) if places else None

    def _follow(self, position: int, end: int, parent: bytes, *, is_open: bool = False) -> int:
        """Go from child to child of `parent`; return where they end."""
        while position < end:
            head = os.pread(self._descriptor, PEEK_BYTES, position)
            child = ebml.element(head)
            if child is None or child.identity not in CHILDREN[parent]:
                if is_open and child is not None and child.identity in CHILDREN[ebml.SEGMENT]:
                    return position
                if self._is_behind_all(child, parent) or self._is_cut(end, child, head):
                    return end
                raise _BreakError(position)
            inside = position + child.head
            position = self._pass(child, position, end, head[child.head :])
            if child.identity in self._entered or child.size is None:
                position = self._follow(
                    inside, position, child.identity, is_open=child.size is None
                )
        return end

    def _pass(self, child: ebml.Element, position: int, end: int, contents: bytes) -> int:
        """Return where the child ends, which has to lie within its parent."""
        inside = position + child.head
        if child.identity == ebml.SEGMENT:
            self._is_segment_known = True
            self._ends_open = child.size is None
        if child.size is None:
            if child.identity not in _UNSIZED:
                raise _BreakError(position)
            return end
        last = inside + child.size
        if child.identity == ebml.SEGMENT:
            self._end = last = min(last, self._end)
        elif last > end:
            if self._ends_open and end == self._end:
                return end  # cut
            raise _BreakError(position)
        elif child.identity == ebml.TRACKS:
            self._read_tracks(inside, child.size)
        elif child.identity == ebml.CLUSTER:
            self._is_among_clusters = True
        elif child.identity in _BLOCKS:
            self._count(ebml.number(contents), position)
        return last

    def _count(self, track: int | None, position: int) -> None:
        if self._tracks and track not in self._tracks:
            raise _BreakError(position)
        self.blocks += track is not None and track == self._track

    def _is_behind_all(self, child: ebml.Element | None, parent: bytes) -> bool:
        """Whether the segment is over: what follows it is not read."""
        is_inner = child is not None and child.identity in CHILDREN[ebml.SEGMENT]
        return parent == FILE and self._is_segment_known and not is_inner

    def _is_cut(self, end: int, child: ebml.Element | None, head: bytes) -> bool:
        """Whether a recording that states no length ends within the head of an element."""
        is_last = self._ends_open and end == self._end and len(head) < ebml.HEAD_BYTES
        return is_last and child is None and any(head)

    def _read_tracks(self, position: int, size: int) -> None:
        """Learn the tracks' numbers, unless one of them cannot be told."""
        data = os.pread(self._descriptor, min(size, MOST_TRACKS_BYTES), position)
        entries = [dict(ebml.children(c)) for i, c in ebml.children(data) if i == ebml.TRACK_ENTRY]
        numbers = [int.from_bytes(e.get(ebml.TRACK_NUMBER, b""), "big") for e in entries]
        self._tracks = frozenset(numbers) if all(numbers) else _NONE
        kinds = [int.from_bytes(e.get(ebml.TRACK_TYPE, b""), "big") for e in entries]
        videos = [n for n, kind in zip(numbers, kinds, strict=True) if kind == ebml.TYPE_VIDEO]
        self._track = videos[self._video] if self._video < len(videos) else None

    def _next_cluster(self, position: int) -> int | None:
        """Search for a cluster as a demuxer does, in pieces that grow."""
        piece = FIRST_SEARCH_BYTES
        while position < self._end:
            data = os.pread(self._descriptor, min(piece, self._end - position), position)
            found = data.find(ebml.CLUSTER)
            if found >= 0:
                return position + found
            if len(data) < len(ebml.CLUSTER):
                break
            position += len(data) - len(ebml.CLUSTER) + 1
            piece = min(2 * piece, MOST_SEARCH_BYTES)
        return None
