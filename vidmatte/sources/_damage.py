"""What was lost or mended while a file was read."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from vidmatte.sources._extent import promised_bytes
from vidmatte.sources._matroska import Chain, follow_chain

if TYPE_CHECKING:
    import av

    Packet = av.Packet[av.stream.Stream]

GAP_FRAMES = 1.75  # from here up, a step in time is a hole
MOST_GAPS = 0.1  # of all steps; with more holes than that the rate simply varies
HIDING = frozenset({"vp8", "vp9", "av1", "libdav1d"})  # have pictures that are never shown
LATEST_PACKETS = 64  # more than a decoder's threads and reordering hold back
EVEN_FRAMES = 0.75, 1.25  # a step of an even rhythm; two of them where a picture is missing


class DamageReport:
    """Count what was lost or mended while reading, one line per cause.

    Items have times that begin at `start_s` seconds of the source; lines tell the source's own.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._start_s = start_s
        self.unstamped = 0
        self.not_later = 0
        self.pictures = 0
        self._shown: int | None = None
        self._step = 1
        self._latest_stamps: deque[int | None] = deque(maxlen=LATEST_PACKETS)
        self.damaged = False
        self._lost: list[float | None] = []
        self._damaged: list[float | None] = []
        self._hidden: list[float | None] = []
        self._latest: int | None = None
        self._packets = 0
        self._read = 0
        self._missing = 0
        self._cut: tuple[int, int] | None = None
        self._read_errors = 0
        self._end_s: float | None = None
        self._jumps = 0
        self._encrypted = False
        self._chain = Chain()
        self._undelivered = 0
        self._first_byte: int | None = None
        self._last_byte = 0
        self._is_even = True
        self._steps = 0
        self._gaps = 0
        self._absent = 0
        self._widest = 0
        self._before = 0.0
        self._began_byte = 0
        self._ends_missing = 0
        self._is_read_whole = False
        self._hides = False
        self._gap_s: float | None = None
        self.late_stream = False

    def saw(self, packet: Packet) -> None:
        """Count a packet of the picture."""
        if not packet.is_discard:
            self._packets += 1
            self._latest_stamps.append(packet.pts)
        self._read += 1
        if packet.pos is not None:
            self._first_byte = packet.pos if self._first_byte is None else self._first_byte
            self._last_byte = packet.pos
        if self._is_hidden(packet):
            self._hidden.append(self._time_near(packet))
        self._end_s = self._time_near(packet)
        if packet.has_sidedata("encryption_info"):
            self._encrypted = True

    def _is_hidden(self, packet: Packet) -> bool:
        """Whether the mp4 demuxer hides a picture since its fragment goes back in time.

        It marks such pictures like those outside an edit list, whose time stamps go forward.
        """
        if packet.dts is None:
            return False
        goes_back = self._latest is not None and packet.dts <= self._latest
        self._latest = packet.dts if self._latest is None else max(self._latest, packet.dts)
        return packet.is_discard and goes_back

    def undecodable(self, packet: Packet) -> None:
        """Count a packet that gave no picture."""
        self.damaged = True
        self._lost.append(self._time_near(packet))

    def decoded(self, picture: av.VideoFrame) -> None:
        """Count a picture that came out."""
        self.pictures += 1
        if picture.pts is not None:
            self._shown = picture.pts if self._shown is None else max(self._shown, picture.pts)
        if picture.is_corrupt:
            self.corrupt(picture)

    def drained(self) -> None:
        """Count the last packets that gave no picture: a decoder with threads may not say so."""
        if self._shown is None:
            return
        until = self._shown + EVEN_FRAMES[0] * self._step  # the second field of a picture is half
        behind = sum(stamp is not None and stamp >= until for stamp in self._latest_stamps)
        silent = min(behind, self._packets - self.pictures - len(self._lost))
        self._lost += [self._end_s] * max(0, silent)

    def corrupt(self, picture: av.VideoFrame) -> None:
        """Count a picture that the decoder patched up."""
        self.damaged = True
        self._damaged.append(self._time_near(picture))

    def _time_near(self, item: Packet | av.VideoFrame) -> float | None:
        """Return its time, or where it has none, as at the end of a stream, that of the last."""
        time_s = _time_of(item)
        return self._end_s if time_s is None else time_s + self._start_s

    def unreadable(self) -> None:
        """Count a failed read."""
        self._read_errors += 1

    def began(self, pts: int, step: int) -> None:
        """Hear the first picture's time and the nominal distance of pictures."""
        self._before, self._step = pts / step, step
        self._began_byte = self._last_byte

    def stepped(self, frames: float, last_s: float) -> None:
        """Hear how many frames of the nominal rate lie between a picture and the next."""
        self._steps += 1
        self._is_even &= EVEN_FRAMES[0] <= frames <= EVEN_FRAMES[1]
        if frames >= GAP_FRAMES:
            self._gaps += 1
            self._absent += round(frames) - 1
            self._widest = max(self._widest, round(frames) - 1)
            self._gap_s = last_s + self._start_s if self._gap_s is None else self._gap_s

    def finished(self, stream: av.VideoStream, descriptor: int, jumps: int) -> None:
        """Look at the end whether the index promised more than the file holds."""
        self._jumps = jumps
        self._is_read_whole = not self._start_s
        self._hides = stream.codec_context.name in HIDING
        size = os.fstat(descriptor).st_size
        if stream.frames > self._read and size:
            self._missing = sum(e.pos + e.size > size for e in stream.index_entries)
        promised = promised_bytes(descriptor)
        if promised is not None and promised > size > 0:
            self._cut = promised - size, promised

    def look_closer(self, descriptor: int, behind: float | None, video: int) -> None:
        """Look, once all pictures are out, whether what is missing was wrecked in silence.

        `behind` is how many frames of the nominal rate the file states behind the last picture,
        None where it states no end, and 0 where the user ends it earlier. `video` counts the
        file's tracks of pictures from 0.
        """
        if self._cut is not None:
            return
        ends = max(self._before, 0 if behind is None else behind)
        is_whole = self._is_even and behind is not None and ends < EVEN_FRAMES[0]
        self._chain = follow_chain(descriptor, video, thorough=not is_whole)
        if self._is_read_whole:
            self._undelivered = self._count_undelivered(self._chain.blocks)
        if self._chain.broken is None:
            return
        first, last = self._chain.broken
        if first < self._began_byte:
            self._ends_missing += max(0, round(self._before))
        if last > self._last_byte or self.pictures < self._packets:
            self._ends_missing += max(0, round(behind or 0))
        if last > self._last_byte and behind is None:
            self._ends_missing += max(1, self._pictures_in(os.fstat(descriptor).st_size - last))

    def _count_undelivered(self, blocks: int) -> int:
        """How many of so many blocks were dropped by the demuxer, or by the decoder in a hole."""
        unread = blocks - self._read
        hidden = 0 if self._hides else blocks - self.pictures - self._undecoded()
        return max(unread, min(hidden, self._absent))

    def _pictures_in(self, size: int) -> int:
        """Estimate how many pictures lay in so many bytes, as in those that were read."""
        held = self._last_byte - (self._first_byte or 0)
        return round(size * (self._read - 1) / max(1, held))

    def why_nothing(self) -> str:
        """Say why no picture came out at all."""
        if self._encrypted:
            return "is encrypted; no picture can be decoded"
        if self._read == 0:
            return "holds no pictures"
        return f"none of its {self._read} pictures can be decoded (damaged, encrypted or too large)"

    def lines(self) -> list[str]:
        """One line per cause, with count and first time."""
        causes = []
        if self._cut is not None:
            missing, promised = self._cut
            causes.append(
                f"the file ends early: {missing} of {promised} bytes are missing"
                f"{_at([self._end_s], 'after')}"
            )
        elif self._missing:
            causes.append(
                f"the file ends early: {_pictures(self._missing)} missing"
                f"{_at([self._end_s], 'after')}"
            )
        elif self._lost:
            causes.append(f"{_pictures(self._undecoded())} could not be decoded{_at(self._lost)}")
        if self._damaged:
            count = _pictures(len(self._damaged))
            causes.append(f"{count} decoded with damage{_at(self._damaged)}")
        if self._hidden:
            count = _pictures(len(self._hidden))
            causes.append(f"{count} left out, dated back before others{_at(self._hidden)}")
        if self._read_errors:
            causes.append(f"{self._read_errors} read errors{_at([self._end_s], 'after')}")
        causes += self._gap_lines()
        if self.late_stream:
            causes.append("a stream that begins late in the file is left out")
        return causes

    def _undecoded(self) -> int:
        """How many pictures were read and did not come out; without an error they are hidden."""
        return max(len(self._lost), self._packets - self.pictures) if self._lost else 0

    def _gap_lines(self) -> list[str]:
        """Say what a damaged file no longer holds: holes in a rhythm that is otherwise even.

        Without a sign of damage a hole is a pause. Where there are many the rate varies; if such
        a file is broken for certain, the widest is what was lost.
        """
        is_broken = self._chain.broken is not None
        is_damaged = is_broken or self._lost or self._damaged or self._read_errors
        is_even = self._gaps <= MOST_GAPS * self._steps
        inside = self._absent if is_even else self._widest if is_broken else 0
        absent = inside + self._ends_missing - self._undecoded() if is_damaged else 0
        absent = max(absent, self._undelivered)
        gap_s = self._end_s if self._gap_s is None and self._before < 1 else self._gap_s
        if self._chain.broken and absent <= 0 and not self._is_even:
            absent = self._pictures_in(self._chain.skipped) - self._undecoded()
            gap_s = self._time_of_byte(self._chain.broken[0])
        if absent > 0:
            return [f"about {_pictures(absent)} missing{_at([gap_s], 'after')}"]
        return ["the file is damaged"] if is_broken else []

    def _time_of_byte(self, position: int) -> float | None:
        """Estimate when a place in the file is shown."""
        if self._end_s is None or self._last_byte == 0:
            return None
        return self._start_s + (self._end_s - self._start_s) * min(1, position / self._last_byte)

    def mended(self) -> list[str]:
        """One line per kind of time stamp that was changed; nothing was lost by it."""
        causes = []
        if self.unstamped:
            causes.append(
                f"{self.unstamped} pictures had no time stamp; spaced at the nominal rate"
            )
        if self.not_later:
            causes.append(f"{self.not_later} time stamps were not after the one before; moved on")
        if self._jumps:
            causes.append(
                f"the clock jumped {self._jumps} time{'s' if self._jumps != 1 else ''}; "
                "the time line was joined"
            )
        return causes


def _time_of(item: Packet | av.VideoFrame) -> float | None:
    stamp = item.pts if item.pts is not None else item.dts
    return None if stamp is None or item.time_base is None else float(stamp * item.time_base)


def _pictures(count: int) -> str:
    return f"{count} picture{'s' if count != 1 else ''}"


def _at(times: list[float | None], word: str = "first at") -> str:
    known = [t for t in times if t is not None]
    return f", {word} {known[0]:.2f} s" if known else ", at 0.00 s"
