"""Record what a live session sends, on a thread of its own that never holds the session up."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vidmatte.errors import OutputError, UsageError
from vidmatte.frames import VideoInfo, plane_views
from vidmatte.outputs import STDOUT, FileDestination, plan_for
from vidmatte.sequences import is_sequence
from vidmatte.sinks.file import Muxing
from vidmatte.sinks.part import part_name

if TYPE_CHECKING:
    import av

    from vidmatte.pipeline import Crew
    from vidmatte.sinks import Sink
    from vidmatte.sinks.plan import OutputPlan

WAITING_PICTURES = 30  # what may wait for the encoder: a second
WAITING_BYTES = 64 << 20  # the same where pictures are large
REPEAT_S = 0.5  # a picture that stays is written again so often: what kill -9 may cost, and no more
FINISH_S = 3.5  # what encoding the rest and closing the file may take: less than GRACE_S
THREADS = 2  # the network comes first
# Presets that keep up with 720p at 30 pictures a second on a fraction of one core.
PRESETS = {
    "libx264": "superfast",
    "libx265": "ultrafast",
    "libvpx-vp9": "8",
    "libsvtav1": "13",
}
_MICROSECONDS = Fraction(1, 1_000_000)
# Stands for the session's pictures until the camera says more, to know a wrong name at once.
_LIKELY = VideoInfo("camera", 640, 360, "yuv420p", _MICROSECONDS, Fraction(30), is_live=True)


class Recording:
    """A video file of what was sent, with a variable rate: each picture at the time it was sent.

    The file is written as a part and gets its name when the session ends, by whatever door; after
    an error of the file itself (the disk is full) what plays is kept under the part's name and
    the session goes on without it. Pictures that the encoder cannot take in time are dropped and
    counted. Raises UsageError and OutputError for what can be known to fail.
    """

    def __init__(self, name: str, *, overwrite: bool = False) -> None:
        self.name = name
        if name == STDOUT or is_sequence(Path(name)):
            raise UsageError(f"{name}: a recording is a video file", hint="name it like call.mp4")
        self._plan(_LIKELY)
        self._destination = FileDestination(Path(name), overwrite=overwrite)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[av.VideoFrame, float]] = deque()
        self._bytes = 0
        self._last: tuple[av.VideoFrame, float] | None = None
        self._is_ending = False
        self._is_over = True  # whether nothing more is written
        self._error: OutputError | None = None
        self._events: list[str] = []
        self._started = False
        self._first_s: float | None = None
        self.written = 0
        self.dropped = 0

    def _plan(self, info: VideoInfo) -> OutputPlan:
        plan = plan_for(self.name, info, "opaque", codec=None, crf=None, preset=None)
        if plan.kind != "video" or plan.container == "apng":
            raise UsageError(f"{self.name}: a recording is a video file", hint="use .mp4 or .mkv")
        preset = PRESETS.get(plan.codec)
        plan = plan_for(self.name, info, "opaque", codec=None, crf=None, preset=preset)
        if plan.codec == "libvpx-vp9":
            plan = replace(plan, options=plan.options | {"deadline": "realtime"})
        return plan

    def start(self, info: VideoInfo, crew: Crew) -> None:
        """Create the part for pictures of `info` and start the thread; raises VidmatteError."""
        info = replace(info, time_base=_MICROSECONDS)
        sink = self._destination.open(self._plan(info), info, Muxing(threads=THREADS))
        if self._destination.kept_aside is not None:
            aside = self._destination.kept_aside.name
            self._say(f"{self.name}: an earlier unfinished part is kept as {aside}")
        self._is_over, self._started = False, True
        crew.start("record", lambda: self._work(sink), behind=True)

    def offer(self, picture: av.VideoFrame, time_s: float) -> None:
        """Take a picture that was sent at `time_s`, or drop and count it. Never waits.

        The same picture again only makes itself last. It is read, never stamped or written to.
        """
        with self._changed:
            if self._is_over or self._is_ending:
                return
            last = self._last
            is_repeat = last is not None and last[0] is picture
            if last is not None and is_repeat and time_s - last[1] < REPEAT_S:
                return
            if not self._has_room(picture):
                self.dropped += not is_repeat
                return
            self._last = picture, time_s
            self._waiting.append(self._last)
            self._bytes += _size(picture)
            self._changed.notify_all()

    def _has_room(self, picture: av.VideoFrame) -> bool:
        if len(self._waiting) >= WAITING_PICTURES:
            return False
        return not self._waiting or self._bytes + _size(picture) <= WAITING_BYTES

    def close(self) -> None:
        """Finish the file and give it its name. May be called twice.

        Raises OutputError if it failed, now or earlier; what plays is then kept and named.
        """
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: self._is_over, FINISH_S)
            error = self._error
        if not finished:
            error = OutputError(
                f"{self.name}: cannot be finished: its disk does not answer",
                hint="record to another disk",
            )
            error.add_note(f"what was written is in {part_name(Path(self.name))}")
        if error is not None:
            raise error
        if self._started and not self.written:
            self._say(f"{self.name}: nothing was recorded")

    def events(self) -> list[str]:
        """Return what happened since the last call, a line each. For any thread."""
        with self._changed:
            lines, self._events = self._events, []
        return lines

    def _say(self, line: str) -> None:
        with self._changed:
            self._events.append(line)

    def _work(self, sink: Sink) -> None:
        """Encode until the end, then name the file; on the recording's thread."""
        error: OutputError | None = None
        try:
            try:
                self._encode_all(sink)
            except OutputError:
                with suppress(OutputError):  # the first error is the one to tell
                    sink.close()
                raise
            self._finish(sink)
        except OutputError as exc:
            error = exc
            self._keep(exc)
        finally:
            with self._changed:
                self._is_over, self._error = True, error
                self._waiting.clear()
                self._last = None
                self._changed.notify_all()

    def _encode_all(self, sink: Sink) -> None:
        while (item := self._take()) is not None:
            picture, time_s = item
            self._write(sink, picture, time_s)

    def _take(self) -> tuple[av.VideoFrame, float] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_ending)
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            self._bytes -= _size(item[0])
            return item

    def _write(self, sink: Sink, picture: av.VideoFrame, time_s: float) -> None:
        if self._first_s is None:
            self._first_s = time_s
        stamped = _copy(picture)
        stamped.pts, stamped.time_base = round((time_s - self._first_s) * 1e6), _MICROSECONDS
        sink.write(stamped)
        self.written += 1

    def _finish(self, sink: Sink) -> None:
        if not self.written:
            with suppress(OutputError):  # some formats cannot be closed without a picture
                sink.close()
            self._destination.abandon()
            return
        sink.close()
        self._destination.flush()
        self._destination.commit()

    def _keep(self, error: OutputError) -> None:
        """Keep what plays of a file that failed, and say so at once."""
        kept = self._destination.abandon()
        left = "" if kept is None else f"; what was finished is in {kept}"
        if kept is not None:
            error.add_note(f"what was finished is in {kept}")
        self._say(f"the recording ends: {error}{left}")


def _size(picture: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in picture.planes)


def _copy(picture: av.VideoFrame) -> av.VideoFrame:
    """Copy a planar picture, so that it can be stamped."""
    import av

    copy = av.VideoFrame(picture.width, picture.height, picture.format.name)
    copy.colorspace, copy.color_range = picture.colorspace, picture.color_range
    copy.color_primaries, copy.color_trc = picture.color_primaries, picture.color_trc
    for out, plane in zip(plane_views(copy, writable=True), plane_views(picture), strict=True):
        out[...] = plane
    return copy
