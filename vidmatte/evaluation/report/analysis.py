"""Compare an output with its input where no truth is known: one pass, one page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from vidmatte.backends import usable_cores
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.errors import CancelledError, UsageError
from vidmatte.evaluation.report.facts import Facts, facts_of
from vidmatte.evaluation.report.limits import Limit, Value, passed
from vidmatte.evaluation.report.mattes import Holds, SmallMatteReader, no_matte, what_it_holds
from vidmatte.evaluation.report.measures import Measurer, Measures, small_size
from vidmatte.evaluation.report.moments import Champions, Moment, doubt_of
from vidmatte.evaluation.report.pairs import Comparison, Follower, Rhythm, paired
from vidmatte.evaluation.report.series import Series, Times
from vidmatte.evaluation.report.stills import Developer, Shot, Stills
from vidmatte.frames import Frame
from vidmatte.inputs import source_of
from vidmatte.jobs import Progress
from vidmatte.outputs import refuse_same_file
from vidmatte.pipeline import Pipeline, Stop, supervise
from vidmatte.results import write_result
from vidmatte.runner import BELIEVABLE_S
from vidmatte.sequences import is_sequence
from vidmatte.sinks.part import check_target

if TYPE_CHECKING:
    from vidmatte.sources import Source

PAGE_SUFFIX = ".report.html"
# What a chart shows; in the units of a metric: HD pixels, percent.
CHARTS = ("flicker", "area-jump", "blob", "uncertain", "area")
PERCENT = 100.0


@dataclass(slots=True)
class Report:
    """What was found. Times are seconds of the input.

    `values` has one entry for each of METRICS; `passed` says which limits they pass. `alpha` are
    the facts of the file that the matte was read from, where it is another than the output.
    """

    source: Facts
    output: Facts
    alpha: Facts | None
    holds: Holds
    rhythm: Rhythm
    comparison: Comparison
    alpha_comparison: Comparison | None
    has_times: bool
    series: dict[str, Series]
    cuts: Times = field(default_factory=Times)
    moments: list[Moment[Stills]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    page: str = ""

    @property
    def lost_sound(self) -> int:
        """Sound tracks that the output lacks; a matte and numbered pictures need none."""
        if self.holds == "matte" or not self.has_times:
            return 0
        return max(0, len(self.source.sound) - len(self.output.sound))


class _Pictures(NamedTuple):
    """A picture of the input, the output's for it, and the one that holds its matte."""

    source: Frame
    shown: Frame | None
    matte: Frame | None


class _Measured(NamedTuple):
    pictures: _Pictures
    measures: Measures | None


class ReportRun:
    """Reads an input and its output once and writes a page about them.

    `alpha` names a file that holds the matte where the output itself does not. `rate` is the
    frames per second of an input of numbered pictures; `start_s` and `end_s` say which part of
    the input the output was made of. Building it checks names; `run` does the work. Both raise
    VidmatteError subclasses.
    """

    def __init__(
        self,
        source: str,
        output: str,
        page: str | None = None,
        *,
        alpha: str | None = None,
        limits: list[Limit] | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        rate: Fraction | None = None,
        max_pixels: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self._names = [name for name in (source, output, alpha) if name is not None]
        if "-" in self._names:
            raise UsageError(
                "standard input: a report reads files only", hint="save it to a file first"
            )
        self.page = page if page is not None else f"{output}{PAGE_SUFFIX}"
        self._limits, self._overwrite = limits or [], overwrite
        self._cut = start_s, end_s
        self._is_open = self._is_given_up = False
        threads = max(1, usable_cores() // 2)
        self._source = source_of(
            source, rate=rate, threads=threads, start_s=start_s, end_s=end_s, max_pixels=max_pixels
        )
        self._others: list[Source] = [
            source_of(name, threads=threads, max_pixels=max_pixels) for name in self._names[1:]
        ]
        refuse_same_file([self.page], [f for s in (self._source, *self._others) for f in s.files])

    def run(self, stop: Stop, on_progress: Callable[[Progress], None]) -> Report | None:
        """Measure, write the page and return what was found; None if asked to stop."""
        resources = contextlib.ExitStack()
        try:
            supervise(lambda: self._open(resources), stop)
        except BaseException as error:
            self._is_given_up = True
            if self._is_open or not isinstance(error, CancelledError):
                resources.close()  # else whoever still opens them closes them
            if isinstance(error, CancelledError):
                return None
            raise
        pipeline = Pipeline(
            self._pairs(),
            {"measure": self._measure},
            self._collect,
            lambda: None,
            size_of=_bytes_of,
        )
        try:
            outcome = pipeline.run(stop, lambda: on_progress(self._progress(pipeline)))
        finally:
            if not pipeline.hanging:
                resources.close()
        if outcome.error is not None and not outcome.stopped:
            raise outcome.error
        if outcome.stopped or stop.requested:
            return None
        self._settle(outcome.elapsed_s)
        self._write()
        return self.report

    def _open(self, resources: contextlib.ExitStack) -> None:
        """Open everything; on a worker thread, since opening may block."""
        for source in (self._source, *self._others):
            resources.enter_context(source)
        check_target(Path(self.page), overwrite=self._overwrite)
        cv2.setNumThreads(1)
        info = self._source.info
        firsts = [iter(other) for other in self._others]
        self._begin([next(frames) for frames in firsts], firsts)
        shown, matte = self._others[0].info, self._others[-1].info
        self._champions = Champions(Developer(info, shown, matte, self._holds).develop)
        self._before: Frame | None = None
        self._is_open = True
        if self._is_given_up:
            resources.close()

    def _begin(self, firsts: list[Frame], rest: list[Iterator[Frame]]) -> None:
        """Look at the first pictures of the output and its matte; prepare what is filled in."""
        info, names = self._source.info, self._names
        readers = [SmallMatteReader(o.info, small_size(*info.upright_size)) for o in self._others]
        holds = [
            what_it_holds(reader, frame.picture)
            for reader, frame in zip(readers, firsts, strict=True)
        ]
        if holds[-1] == "opaque":
            raise no_matte(names[-1], "is")
        self._reader, self._holds = readers[-1], holds[0]
        in_order = any(is_sequence(Path(name)) and not os.path.lexists(name) for name in names)
        self._followers = [
            Follower(chain([first], frames), other.info, info, in_order=in_order)
            for first, frames, other in zip(firsts, rest, self._others, strict=True)
        ]
        facts = [facts_of(n, s) for n, s in zip(names, (self._source, *self._others), strict=True)]
        self.report = Report(
            facts[0],
            facts[1],
            facts[2] if len(facts) > 2 else None,
            self._holds,
            Rhythm(float(info.time_base)),
            self._followers[0].found,
            self._followers[1].found if len(facts) > 2 else None,
            not in_order,
            {},
            limits=self._limits,
        )

    def _pairs(self) -> Iterator[_Pictures]:
        for frame, found in paired(
            iter(self._source), self._source.info, self.report.rhythm, self._followers
        ):
            yield _Pictures(frame, found[0], found[-1])

    def _measure(self, pairs: Iterator[_Pictures]) -> Iterator[_Measured]:
        """Measure pair by pair, on a thread of its own."""
        info = self._source.info
        size = small_size(*info.upright_size)
        preparer, measurer = Preparer(info, size), Measurer()
        for pictures in pairs:
            if pictures.matte is None:
                measurer.forget()
                yield _Measured(pictures, None)
                continue
            image = np.empty((*size, 3), np.uint8)
            preparer.prepare(pictures.source.picture, image)
            alpha = self._reader.read(pictures.matte.picture)
            if alpha is None:
                at_s = pictures.matte.time_s
                raise no_matte(self._names[-1], f"is, from {at_s:.2f} s on,")
            yield _Measured(pictures, measurer.push(image, alpha))

    def _collect(self, measured: _Measured) -> None:
        """Put a picture's measures where they are kept, on the last thread."""
        (source, shown, matte), measures = measured
        before, self._before = self._before, matte
        if measures is None:
            return
        assert matte is not None
        time_s = source.time_s
        if measures.is_cut:
            self.report.cuts.add(time_s)
        for name, value in _charted(measures).items():
            if name not in self.report.series:
                step_s = float(1 / self._source.info.frame_rate)
                self.report.series[name] = Series(time_s, step_s)
            self.report.series[name].add(time_s, value)
        shot = Shot(source, shown or matte, matte, before)
        self._champions.push(Moment(source.index, time_s, doubt_of(measures), measures, shot))

    def _progress(self, pipeline: Pipeline) -> Progress:
        info, (start_s, end_s) = self._source.info, self._cut
        rate, count = float(info.frame_rate), info.frame_count
        if count is None and info.duration_s and info.duration_s < BELIEVABLE_S:
            count = round(info.duration_s * rate)
        if count is not None and (start_s or end_s):
            length_s = min(count / rate, end_s or count / rate) - (start_s or 0.0)
            count = max(0, round(length_s * rate))
        return Progress(pipeline.done, pipeline.elapsed_s, count, info.frame_rate)

    def _settle(self, elapsed_s: float) -> None:
        """Fill in what is known at the end."""
        report = self.report
        report.moments = self._champions.chosen()
        for name, source in zip(self._names, (self._source, *self._others), strict=True):
            report.damage += [f"{name}: {line}" for line in source.damage]
            report.notes += [f"{name}: {line}" for line in source.notes + source.mended]
        report.values = values_of(report)
        report.passed = passed(report.limits, report.values)
        report.elapsed_s = elapsed_s

    def _write(self) -> None:
        """Write the page, whole or not at all."""
        from vidmatte.evaluation.report.page import page_of

        self.report.page = self.page
        data = page_of(self.report).encode("utf-8", "backslashreplace")
        kept = write_result(Path(self.page), data, overwrite=self._overwrite)
        if kept is not None:
            self.report.notes.append(
                f"{self.page}: an earlier unfinished part is kept as {kept.name}"
            )


def values_of(report: Report) -> dict[str, Value]:
    """Return the value of every metric that a limit may be set for."""
    compared, series = report.comparison, report.series

    def worst(name: str) -> Value:
        found = series[name].worst if name in series else None
        return Value(0.0) if found is None else Value(*found)

    def mean(name: str) -> Value:
        return Value(series[name].mean if name in series else 0.0)

    def count(times: Times) -> Value:
        return Value(float(times.count), times.first[0] if times.first else None)

    shift_s = compared.worst_shift_s
    return {
        "flicker": worst("flicker"),
        "flicker-mean": mean("flicker"),
        "area-jump": worst("area-jump"),
        "blob": worst("blob"),
        "uncertain": worst("uncertain"),
        "uncertain-mean": mean("uncertain"),
        "lost-frames": count(compared.lost),
        "extra-frames": count(compared.extra),
        "time-shift": Value(abs(shift_s), compared.worst_shift_at_s if shift_s else None),
        "drift": Value(abs(compared.drift_s)),
        "damage": Value(float(len(report.damage))),
        "lost-sound": Value(float(report.lost_sound)),
    }


def _charted(measures: Measures) -> dict[str, float]:
    found = {
        "flicker": measures.flicker_px,
        "area-jump": _percent(measures.area_jump),
        "blob": _percent(measures.blob),
        "uncertain": measures.uncertain_px,
        "area": _percent(measures.area),
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(share: float | None) -> float | None:
    return None if share is None else PERCENT * share


def _bytes_of(item: _Pictures | _Measured) -> int:
    pictures = item.pictures if isinstance(item, _Measured) else item
    frames = {id(frame): frame for frame in pictures if frame is not None}
    return sum(plane.buffer_size for f in frames.values() for plane in f.picture.planes)
