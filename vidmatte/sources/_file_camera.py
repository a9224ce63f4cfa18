"""A video file that plays the part of a camera: at its own pace, again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vidmatte.errors import CameraLostError, InputError
from vidmatte.frames import Frame, Orientation, VideoInfo
from vidmatte.inputs import source_of
from vidmatte.sequences import is_sequence
from vidmatte.sources._live import TIME_BASE, Stamper, Waiter, live_info

if TYPE_CHECKING:
    import av

DECODER_THREADS = 2
_TURNS: dict[int, list[tuple[str, str]]] = {
    0: [],
    90: [("transpose", "clock")],
    180: [("hflip", ""), ("vflip", "")],
    270: [("transpose", "cclock")],
}
LATE_S = 1.0  # a picture that is due longer ago than this moves all that follow: time was lost


class FileCamera:
    """Plays a file or numbered pictures (`rate` is that of the pictures) in a loop by the clock.

    Drops nothing: each picture comes upright when it is due, or at once when that has passed, and
    is stamped with its due time. After a pause of the whole process of over a second it goes on
    from now. Raises InputError for what cannot be read.
    """

    def __init__(self, name: str, *, rate: Fraction | None = None) -> None:
        self._name = name
        self._rate = rate if is_sequence(Path(name)) and not os.path.lexists(name) else None
        self._waiter = Waiter(name)
        self._stamper = Stamper()
        self._rounds = self._play()
        self._first: tuple[av.VideoFrame, float] | None = next(self._rounds)
        self._offset_s: float | None = None

    @property
    def info(self) -> VideoInfo:
        """What the file says of its pictures."""
        return self._info

    def read(self) -> Frame:
        """Wait for the next picture; raises CameraLostError when the file is gone."""
        picture, time_s = self._first or self._next()
        self._first = None
        now_s = time.monotonic()
        if self._offset_s is None or now_s - (self._offset_s + time_s) > LATE_S:
            self._offset_s = now_s - time_s
        due_s = self._offset_s + time_s
        self._waiter.until(due_s)
        return self._stamper.frame(picture, due_s)

    def close(self) -> None:
        """End a `read` that waits in another thread, and let the file go."""
        self._waiter.close()
        with suppress(ValueError):  # at work in another thread, whose next read closes it
            self._rounds.close()

    def _next(self) -> tuple[av.VideoFrame, float]:
        try:
            following = None if self._waiter.closed else next(self._rounds, None)
        except InputError as exc:
            raise CameraLostError(f"camera {exc}", hint=exc.hint) from exc
        if following is None:
            self._rounds.close()
            raise CameraLostError(f"camera {self._name}: is closed")
        return following

    def _play(self) -> Generator[tuple[av.VideoFrame, float]]:
        """Yield pictures with their time since the very first, without end."""
        start_s = 0.0
        while True:
            with source_of(self._name, rate=self._rate, threads=DECODER_THREADS) as source:
                turner = Turner(source.info.orientation)
                self._info = turner.describe(live_info(source.info, self._name))
                origin_s: float | None = None
                for frame in source:
                    origin_s = frame.time_s if origin_s is None else origin_s
                    picture = turner.turn(frame.picture)
                    yield picture, start_s + frame.time_s - origin_s
            assert origin_s is not None, "a source without a picture raises"
            step_s = float(frame.duration * frame.time_base or 1 / source.info.frame_rate)
            start_s += frame.time_s - origin_s + step_s
            while frame.time_s == origin_s:  # the only picture there is
                yield picture, start_s
                start_s += step_s


class Turner:
    """Makes stored pictures upright, as a camera's are; used by one thread."""

    def __init__(self, orientation: Orientation) -> None:
        self._swaps_sides = orientation.swaps_sides
        self._steps = [("hflip", "")] if orientation.mirror else []
        self._steps += _TURNS[orientation.rotate_cw]
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[int, int, str] | None = None

    def describe(self, info: VideoInfo) -> VideoInfo:
        """Say what a source's pictures are once they are upright."""
        upright = replace(info, orientation=Orientation(), display_matrix=None)
        if not self._swaps_sides:
            return upright
        return replace(
            upright,
            width=info.height,
            height=info.width,
            sample_aspect_ratio=1 / info.sample_aspect_ratio,
        )

    def turn(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return the picture upright: itself where it is, else a new one."""
        if not self._steps:
            return picture
        shape = picture.width, picture.height, picture.format.name
        if self._graph is None or self._shape != shape:
            self._graph, self._shape = self._built_for(picture), shape
        self._graph.push(picture)
        return cast("av.VideoFrame", self._graph.pull())

    def _built_for(self, picture: av.VideoFrame) -> av.filter.Graph:
        import av

        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=picture.width, height=picture.height, format=picture.format, time_base=TIME_BASE
        )
        steps = [graph.add(name, arguments) for name, arguments in self._steps]
        graph.link_nodes(source, *steps, graph.add("buffersink")).configure()
        return graph
