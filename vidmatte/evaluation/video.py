"""Compare a video's mattes with the truth, picture by picture, and find its worst moments."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from itertools import zip_longest
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from vidmatte.errors import InputError
from vidmatte.evaluation.reading import MatteReader, open_mattes
from vidmatte.evaluation.video_metrics import METRICS, Comparison, Metric
from vidmatte.jobs import Progress
from vidmatte.sources.images import ImageSequenceSource

if TYPE_CHECKING:
    from vidmatte.frames import Samples

DISTANCE_S = 1.0  # moments are at least this far apart, less in short clips


@dataclass(slots=True)
class VideoErrors:
    """Errors of every frame, 48 bytes each: NaN in `columns` where a frame has none.

    `times_s` are those of the truth, or of the prediction where the truth is numbered pictures,
    which have no times of their own. `warnings` tell of damage in either, a line per cause.
    """

    width: int
    height: int
    times_s: array[float] = field(default_factory=lambda: array("d"))
    columns: dict[Metric, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in METRICS}
    )
    warnings: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """How many frames were compared."""
        return len(self.times_s)

    @property
    def means(self) -> dict[Metric, float | None]:
        """The mean of each metric over the frames that have it, or None where none has."""
        found = {name: np.array(column) for name, column in self.columns.items()}
        known = {name: values[~np.isnan(values)] for name, values in found.items()}
        return {name: float(v.mean()) if v.size else None for name, v in known.items()}

    def worst(self, by: Metric, count: int) -> list[int]:
        """Return up to `count` frames of the largest errors, worst first, apart in time."""
        errors, times_s = np.array(self.columns[by]), np.array(self.times_s)
        distance_s = min(DISTANCE_S, float(np.ptp(times_s)) / (2 * count))
        chosen: list[int] = []
        for index in np.argsort(-errors, kind="stable"):  # NaN comes last
            if len(chosen) == count or np.isnan(errors[index]):
                break
            if all(abs(times_s[index] - times_s[other]) >= distance_s for other in chosen):
                chosen.append(int(index))
        return chosen


class Compared(NamedTuple):
    """The mattes of one frame, (H, W) uint8 or uint16 each, and when it is shown."""

    prediction: Samples
    truth: Samples
    time_s: float


class Moment(NamedTuple):
    """A frame to be shown, with its error by one metric."""

    frame: int
    error: float
    compared: Compared


class MattePair:
    """Two sources of mattes, read side by side; a context manager and an iterable of Compared.

    `prediction` and `truth` name a file, `frame_%04d.png` or a folder of these. Entering checks
    their sizes. Iterating raises InputError where one ends before the other, with both counts.
    """

    def __init__(self, prediction: str, truth: str) -> None:
        self._names = prediction, truth
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with self._resources:
            self._sources = [self._resources.enter_context(open_mattes(n)) for n in self._names]
            self.info, truth = (source.info for source in self._sources)
            self._readers = [MatteReader(source.info) for source in self._sources]
            _check_sizes(self._names, self.info.upright_size, truth.upright_size)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._resources.close()

    @property
    def expected_frames(self) -> int | None:
        """A guess of the length, by the headers."""
        infos = [source.info for source in self._sources]
        counts = [i.frame_count or round((i.duration_s or 0) * i.frame_rate) for i in infos]
        return min((count for count in counts if count), default=None)

    @property
    def damage(self) -> list[str]:
        """One line per cause of what was lost in either."""
        pairs = zip(self._names, self._sources, strict=True)
        return [f"{name}: {line}" for name, source in pairs for line in source.damage]

    def __iter__(self) -> Iterator[Compared]:
        timed = 0 if isinstance(self._sources[1], ImageSequenceSource) else 1
        rows = zip_longest(*self._sources)
        for index, frames in enumerate(rows):
            if None in frames:
                rest = sum(1 for _ in rows) + 1
                raise self._of_other_lengths(index, rest, prediction_ends=frames[0] is None)
            prediction, truth = (
                reader.read(frame.picture)
                for reader, frame in zip(self._readers, frames, strict=True)
            )
            _check_sizes(self._names, prediction.shape[::-1], truth.shape[::-1])
            yield Compared(prediction, truth, frames[timed].time_s)

    def _of_other_lengths(self, common: int, rest: int, *, prediction_ends: bool) -> InputError:
        prediction, truth = self._names
        counts = (common, common + rest) if prediction_ends else (common + rest, common)
        damage = "".join(f"; {line}" for line in self.damage)
        return InputError(
            f"{prediction}: has {counts[0]} frames, {truth} {counts[1]}{damage}",
            hint="the two must show the same frames; cut both alike",
        )


def _check_sizes(names: tuple[str, str], prediction: Sequence[int], truth: Sequence[int]) -> None:
    if tuple(prediction) != tuple(truth):
        sizes = [f"{width}x{height}" for width, height in (prediction, truth)]
        raise InputError(
            f"{names[0]}: is {sizes[0]}, {names[1]} {sizes[1]}",
            hint="scale one of them first; errors depend on how that is done",
        )


def compare(
    prediction: str, truth: str, *, conn: bool, each: Callable[[Progress], None]
) -> VideoErrors:
    """Compare every frame; memory does not depend on the length but for the errors themselves.

    `each` is called after each frame and may raise to stop. Raises InputError and UsageError.
    """
    started_s = time.monotonic()
    comparison = Comparison(conn=conn)
    with MattePair(prediction, truth) as pair:
        found = VideoErrors(*pair.info.upright_size)
        for compared in pair:
            values = astuple(comparison.add(compared.prediction, compared.truth))
            for name, value in zip(METRICS, values, strict=True):
                found.columns[name].append(math.nan if value is None else value)
            found.times_s.append(compared.time_s)
            elapsed_s = time.monotonic() - started_s
            each(Progress(found.frames, elapsed_s, pair.expected_frames, pair.info.frame_rate))
        found.warnings += pair.damage
    return found


def moments(
    prediction: str,
    truth: str,
    found: VideoErrors,
    by: Metric,
    count: int,
    each: Callable[[], None] = lambda: None,
) -> list[Moment]:
    """Read the worst frames of a comparison once more, worst first. Raises InputError for none.

    `each` is called after each frame that is read and may raise to stop.
    """
    wanted = found.worst(by, count)
    if not wanted:
        raise InputError(
            f"{prediction}: no frame has {by}, which needs two", hint="choose another with --by"
        )
    read: dict[int, Compared] = {}
    with MattePair(prediction, truth) as pair:
        for index, compared in enumerate(pair):
            if index in wanted:
                read[index] = compared
            if len(read) == len(wanted):
                break
            each()
    return [Moment(index, found.columns[by][index], read[index]) for index in wanted]
