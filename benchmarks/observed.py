"""A file run that is watched: when each picture leaves the decoder and when it reaches the sink."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.frames import Frame
from vidmatte.jobs import RunResult
from vidmatte.matting import MattingChoice
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun

if TYPE_CHECKING:
    import av

NULL_SINK = "/dev/null"  # a stream, in which nothing is opened again
_FILLING = 0.2  # of the frames: batches fill, graphs are recorded, threads start


class ObservedRun(FileRun):
    """Runs over `source` and notes times; with `encodes` False pictures are thrown away instead.

    `pictures` of the same shape are taken from memory in the decoder's place, `count` in all.
    """

    def __init__(
        self,
        source: Path,
        output: str,
        matting: MattingChoice,
        *,
        encodes: bool = True,
        pictures: Sequence[av.VideoFrame] = (),
        count: int = 0,
    ) -> None:
        super().__init__(str(source), {output: "opaque"}, matting=matting, overwrite=True)
        self._encodes, self._pictures, self._count = encodes, pictures, count
        self.entered: dict[Fraction, float] = {}
        self.left: dict[Fraction, float] = {}
        self.started = 0.0

    def limit(self, count: int) -> None:
        """Take at most `count` pictures from memory."""
        self._count = min(self._count, count)

    def observe(self) -> RunResult:
        """Do the whole run."""
        self.started = time.perf_counter()
        return self.run(Stop())

    def _frames(self) -> Iterator[Frame]:
        for frame in self._in_memory() if self._pictures else super()._frames():
            self.entered[frame.pts * frame.time_base] = time.perf_counter()
            yield frame

    def _in_memory(self) -> Iterator[Frame]:
        for index, picture in enumerate(islice(cycle(self._pictures), self._count)):
            yield Frame(picture, index, index, Fraction(1, 30))

    def _write(self, pictures: list[av.VideoFrame]) -> None:
        pts, base = pictures[0].pts, pictures[0].time_base
        assert pts is not None
        assert base is not None
        self.left[pts * base] = time.perf_counter()
        if self._encodes:
            super()._write(pictures)

    def latency_ms(self) -> dict[str, float]:
        """Return percentiles of the time from decoder to sink, waiting in queues included."""
        waits = [1000 * (left - self.entered[time_s]) for time_s, left in self.left.items()]
        values = np.percentile(waits, [50, 95, 99])
        return dict(zip(("p50_ms", "p95_ms", "p99_ms"), map(float, values), strict=True))

    def facts(self) -> dict[str, Any]:
        """Return steady frames per second, first picture, latency and frames in flight."""
        left = sorted(self.left.values())
        first = int(_FILLING * len(left))
        return {
            "steady_fps": (len(left) - 1 - first) / max(left[-1] - left[first], 1e-9),
            "first_picture_s": left[0] - self.started,
            "most_in_flight": self._most_in_flight(),
            "decoder": getattr(self._source, "decoder_name", ""),
            "latency": self.latency_ms(),
        }

    def _most_in_flight(self) -> int:
        steps = [(when, 1) for when in self.entered.values()]
        steps += [(when, -1) for when in self.left.values()]
        return int(np.cumsum([step for _, step in sorted(steps)]).max())
