"""Choose the most doubtful moments of a video while it passes, distinct in time.

The video is divided into spans, and of each the worst picture is kept, its champion. Where there
are more than MOST_SPANS, two become one: memory does not depend on the video's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from vidmatte.evaluation.report.measures import Measures

MOMENTS = 12
MOST_SPANS = 4 * MOMENTS
FIRST_SPAN_S = 0.2
APART = 0.9  # of a span: what is nearer is likely one and the same event
# What of each measure makes a moment as doubtful as any other; chosen by looking at six clips.
FLICKER_PX, AREA_JUMP, BLOB, UNCERTAIN_PX = 8.0, 0.10, 0.004, 90.0
CLEAN_PX = 30.0  # what of an uncertain edge is usual, and no reason for doubt

Still = TypeVar("Still")
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Moment(Generic[Still]):
    """A picture whose matte is doubtful: `doubt` has no unit, more is worse."""

    index: int
    time_s: float
    doubt: float
    measures: Measures
    still: Still


def doubt_of(measures: Measures) -> float:
    """Say how doubtful a matte is: the sum of its measures, each in parts of what is a lot."""
    return sum(much for much, _ in _parts_of(measures))


class Champions(Generic[Still, Kept]):
    """Keeps the most doubtful pictures of one video, given in order of time.

    `keep` turns what was given with a picture into what is kept of it, once its span has ended.
    """

    def __init__(self, keep: Callable[[Still], Kept]) -> None:
        self._keep = keep
        self._span_s = FIRST_SPAN_S
        self._kept: list[Moment[Kept]] = []
        self._best: Moment[Still] | None = None
        self._waiting: Moment[Still] | None = None

    def push(self, moment: Moment[Still]) -> None:
        """Take the next picture.

        A picture is the more doubtful if the way out of it is as bad as the way in: then it is
        the odd one, not its successor.
        """
        before, self._waiting = self._waiting, moment
        if before is not None:
            self._offer(before, min(before.doubt, moment.doubt))

    def chosen(self) -> list[Moment[Kept]]:
        """End, and return up to MOMENTS moments, the most doubtful first."""
        if self._waiting is not None:
            self._offer(self._waiting, 0.0)
        self._waiting = None
        self._close_span()
        apart_s = APART * self._span_s
        chosen: list[Moment[Kept]] = []
        for moment in sorted(self._kept, key=lambda m: -m.doubt):
            if all(abs(moment.time_s - other.time_s) >= apart_s for other in chosen):
                chosen.append(moment)
        return chosen[:MOMENTS]

    def _offer(self, moment: Moment[Still], more: float) -> None:
        if self._best is not None and self._span_of(moment) != self._span_of(self._best):
            self._close_span()
        if self._best is None or moment.doubt + more > self._best.doubt:
            self._best = replace(moment, doubt=moment.doubt + more)

    def _close_span(self) -> None:
        best, self._best = self._best, None
        if best is None:
            return
        still = self._keep(best.still)
        self._kept.append(Moment(best.index, best.time_s, best.doubt, best.measures, still))
        while len(self._kept) > MOST_SPANS:
            self._span_s *= 2
            self._merge()

    def _merge(self) -> None:
        """Keep one champion of each span, now that spans are longer."""
        best: dict[int, Moment[Kept]] = {}
        for moment in self._kept:
            span = self._span_of(moment)
            if span not in best or moment.doubt > best[span].doubt:
                best[span] = moment
        self._kept = list(best.values())

    def _span_of(self, moment: Moment[Still] | Moment[Kept]) -> int:
        return int(moment.time_s // self._span_s)


def reasons_of(measures: Measures) -> list[str]:
    """Say why a matte is doubtful: what is a lot, or else the most of it, the worst first."""
    parts = sorted(_parts_of(measures), key=lambda part: -part[0])
    return [text for much, text in parts if much >= 1] or [parts[0][1]]


def _parts_of(measures: Measures) -> list[tuple[float, str]]:
    """Return each measure in parts of what is a lot, and in words."""
    flicker_px, jump, blob = (
        value or 0.0 for value in (measures.flicker_px, measures.area_jump, measures.blob)
    )
    excess_px = max(0.0, measures.uncertain_px - CLEAN_PX)
    way = "appears" if measures.appeared else "vanishes"
    return [
        (flicker_px / FLICKER_PX, f"edge moves by {flicker_px:.1f} px"),
        (jump / AREA_JUMP, f"area changes by {100 * jump:.1f} %"),
        (blob / BLOB, f"{100 * blob:.2f} % of the picture {way}"),
        (excess_px / UNCERTAIN_PX, f"edge is {measures.uncertain_px:.0f} px wide"),
    ]
