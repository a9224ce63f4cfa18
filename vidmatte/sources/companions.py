"""The streams that travel beside the picture: sound, subtitles, attachments, data."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vidmatte.sources import _shared

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.stream import Stream

    Packet = av.Packet[Stream]

SIDE_BYTES = 64 << 20  # sound waiting for its picture when the input can be read only once


class Companions:
    """A second reader of an input file that yields the packets of everything but the picture.

    `packets_until(time_s)` yields, time-corrected like the picture's, the packets that start up
    to that time; each packet once. Used by the output thread.
    """

    def __init__(
        self, path: str, *, start_s: float | None = None, end_s: float | None = None
    ) -> None:
        self._path = path
        self._start_s = start_s
        self._length_s = None if end_s is None else end_s - (start_s or 0.0)
        self._pending: Packet | None = None
        self.stop_s: float | None = self._length_s

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            descriptor = _shared.open_descriptor(self._path)
            opened.callback(os.close, descriptor)
            self.container: InputContainer = _shared.open_container(descriptor, self._path)
            opened.callback(self.container.close)
            self.streams = _shared.companions_of(self.container)
            self._timeline = _shared.timeline_for(self.container, self._start_s)
            self._discard_pictures()
            if self._start_s:
                _shared.seek_near(self.container, self._start_s)
            self._packets = self._read()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._opened.close()

    def _discard_pictures(self) -> None:
        from av.stream import Discard

        if self.container.format.name in _shared.RELATIVE_FORMATS:
            return  # the time line needs to see every stream
        for stream in self.container.streams.video:
            stream.discard = Discard.all

    def _read(self) -> Iterator[Packet]:
        import av

        packets = self.container.demux()
        errors = 0
        while errors < 100:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # the latter as in FileSource
                return
            except (av.FFmpegError, OSError):
                errors += 1
                continue
            if packet.size == 0:
                continue
            self._timeline.correct(packet)
            if packet.stream.type != "video" and packet.dts is not None:
                yield packet

    def packets_until(self, time_s: float | None) -> Iterator[Packet]:
        """Yield the packets that start at or before `time_s`, or all the rest for None."""
        limit = _earliest(time_s, self.stop_s)
        while (packet := self._next()) is not None:
            if limit is not None and _start_of(packet) > limit:
                self._pending = packet
                return
            if not self._start_s or _start_of(packet) >= 0:
                yield packet

    def _next(self) -> Packet | None:
        packet, self._pending = self._pending, None
        return packet if packet is not None else next(self._packets, None)

    @property
    def metadata(self) -> dict[str, str]:
        """The container's metadata."""
        return dict(self.container.metadata)

    @property
    def chapters(self) -> list[dict[str, Any]]:
        """The container's chapters as PyAV gives them."""
        return [dict(c) for c in self.container.chapters()]


class SideChannel:
    """The same for an input that can be read only once: filled by the source, read by the sink.

    Never blocks the picture: past `SIDE_BYTES` the oldest packets are dropped and counted.
    """

    def __init__(self) -> None:
        self._waiting: deque[Packet] = deque()
        self._bytes = 0
        self._lock = Lock()
        self.dropped = 0
        self.stop_s: float | None = None
        self.streams: list[Stream] = []
        self.metadata: dict[str, str] = {}
        self.chapters: list[dict[str, Any]] = []

    def describe(self, container: InputContainer) -> None:
        """Take streams, metadata and chapters from the container that the source reads."""
        self.streams = _shared.companions_of(container)
        self.metadata = dict(container.metadata)
        self.chapters = [dict(c) for c in container.chapters()]

    def put(self, packet: Packet) -> None:
        """Take a packet on the decoding thread."""
        if packet.dts is None:
            return
        with self._lock:
            self._waiting.append(packet)
            self._bytes += packet.size
            while self._bytes > SIDE_BYTES:
                self._bytes -= self._waiting.popleft().size
                self.dropped += 1

    def packets_until(self, time_s: float | None) -> Iterator[Packet]:
        """Yield the waiting packets that start at or before `time_s`, or all for None."""
        limit = _earliest(time_s, self.stop_s)
        while True:
            with self._lock:
                if not self._waiting:
                    return
                if limit is not None and _start_of(self._waiting[0]) > limit:
                    return
                packet = self._waiting.popleft()
                self._bytes -= packet.size
            yield packet


def _earliest(a: float | None, b: float | None) -> float | None:
    times = [t for t in (a, b) if t is not None]
    return min(times) if times else None


def _start_of(packet: Packet) -> Fraction:
    stamp = packet.pts if packet.pts is not None else packet.dts
    assert stamp is not None
    assert packet.time_base is not None
    return stamp * packet.time_base
