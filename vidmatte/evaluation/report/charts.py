"""Draw a report's numbers over time as inline SVG, with texts in HTML so that they keep their size.

An SVG is 1000 units wide and 100 high, and stretched to its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from vidmatte.evaluation.report.html import Html, fill, joined

if TYPE_CHECKING:
    from vidmatte.evaluation.report.analysis import Report
    from vidmatte.evaluation.report.series import Series

WIDTH, HEIGHT = 1000, 100
TICKS = 5
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


class Kind(NamedTuple):
    """What a chart shows: the series, its title, unit, and what it means."""

    name: str
    title: str
    unit: str
    what: str


KINDS = (
    Kind("flicker", "Flicker", "px", "How far the edge moved by itself since the picture before: "
         "the matte before is carried along the picture's motion (optical flow), and what still "
         "differs is divided by the length of the edge. Exact mattes of generated clips measure up "
         "to 4 px, from errors of the flow. Cuts, and places where the flow is not to be "
         "trusted, are left out."),
    Kind("area-jump", "Area jumps", "%", "How much of the matte's area came or went since the "
         "picture before, beyond what motion explains."),
    Kind("blob", "Parts that appear or vanish", "%", "The largest connected place where the "
         "matte changed by more than .3 of opacity, motion left aside, as a share of the picture."),
    Kind("uncertain", "Uncertain edge", "px", "How wide the edge is on average: the area whose "
         "opacity is between .05 and .95, divided by the length of the edge. A clean person "
         "keeps about the same width; smoke and guesses are many times as wide."),
    Kind("area", "Area of the matte", "%", "How much of the picture is subject."),
)  # fmt: skip


def charts_of(report: Report) -> Html:
    """Draw every chart that has values, all over the same time."""
    start_s, end_s = report.rhythm.first_s, report.rhythm.last_s
    span = _Span(start_s, max(end_s - start_s, 1e-3))
    drawn = [kind for kind in KINDS if kind.name in report.series]
    return fill(
        '<div class="charts">{charts}</div>{legend}',
        charts=joined(
            _chart(kind, report.series[kind.name], report, span, pins=index == 0)
            for index, kind in enumerate(drawn)
        ),
        legend=_legend(report),
    )


def _legend(report: Report) -> Html:
    marks = [("cut", "scene cut", report.cuts), ("lost", "lost picture", report.comparison.lost)]
    shown = [
        fill('<b class="{kind}"></b>{name}', kind=kind, name=name)
        for kind, name, times in marks
        if times.count
    ]
    return fill('<p class="legend">{marks}</p>', marks=joined(shown)) if shown else Html("")


class _Span(NamedTuple):
    start_s: float
    length_s: float

    def share(self, time_s: float) -> float:
        """Where a time lies, 0..1."""
        return min(max((time_s - self.start_s) / self.length_s, 0.0), 1.0)


def _chart(kind: Kind, series: Series, report: Report, span: _Span, *, pins: bool) -> Html:
    worst, at_s = series.worst or (0.0, 0.0)
    top = _round_up(worst)
    return fill(
        '<section class="card chart"><div class="head"><h3>{title}</h3>'
        "<span>mean {mean:} {unit} · most {worst:} {unit} at {at}</span></div>"
        '<p class="what">{what}</p>{pins}<div class="plot">'
        '<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        'aria-label="{title} over time">{drawing}</svg>'
        '<i style="top:0">{top} {unit}</i><i style="top:50%">{middle}</i><i style="top:100%">0</i>'
        '</div><div class="ticks">{ticks}</div></section>',
        title=kind.title,
        unit=kind.unit,
        what=kind.what,
        mean=f"{series.mean:.3g}",
        worst=f"{worst:.3g}",
        at=clock(at_s),
        pins=_pins(report, span) if pins else Html(""),
        width=WIDTH,
        height=HEIGHT,
        drawing=joined([*_marks(report, span), _line(series, span, top)]),
        top=f"{top:g}",
        middle=f"{top / 2:g}",
        ticks=_ticks(span),
    )


def _pins(report: Report, span: _Span) -> Html:
    """Number the moments above the first chart, each a link to its stills."""
    return fill(
        '<div class="pins">{pins}</div>',
        pins=joined(
            fill(
                '<a href="#moment-{rank}" style="left:{left}%" title="{at}">{rank}</a>',
                rank=rank,
                left=f"{100 * span.share(moment.time_s):.2f}",
                at=clock(moment.time_s),
            )
            for rank, moment in enumerate(report.moments, 1)
        ),
    )


def _marks(report: Report, span: _Span) -> list[Html]:
    grid = fill('<path class="grid" d="M0 0H{w}M0 {y}H{w}"/>', w=WIDTH, y=HEIGHT / 2)
    cuts = _strokes("cut", report.cuts.first, span, 0)
    return [grid, cuts, _strokes("lost", report.comparison.lost.first, span, HEIGHT - 16)]


def _strokes(kind: str, times: Iterable[float], span: _Span, top: float) -> Html:
    path = "".join(f"M{WIDTH * span.share(t):.2f} {top}V{HEIGHT}" for t in times)
    return fill('<path class="{kind}" d="{path}"/>', kind=kind, path=path) if path else Html("")


def _line(series: Series, span: _Span, top: float) -> Html:
    """Draw the values, with a hole where there are none."""
    lines, areas = [], []
    for run in _runs(series.bins):
        points = [
            (WIDTH * span.share(series.time_of(index)), HEIGHT * (1 - value / top))
            for index, value in run
        ]
        line = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
        lines.append(f"M{line}h.01")
        areas.append(f"M{points[0][0]:.2f} {HEIGHT}L{line}L{points[-1][0]:.2f} {HEIGHT}Z")
    return fill(
        '<path class="area" d="{area}"/><path class="edge" d="{edge}"/>',
        area="".join(areas),
        edge="".join(lines),
    )


def _runs(bins: list[float | None]) -> list[list[tuple[int, float]]]:
    """Split where more than a bin has no value: where the rate varies, one may have none."""
    runs: list[list[tuple[int, float]]] = []
    for index, value in enumerate(bins):
        if value is None:
            continue
        if not runs or index - runs[-1][-1][0] > 2:
            runs.append([])
        runs[-1].append((index, value))
    return runs


def _ticks(span: _Span) -> Html:
    times = (span.start_s + span.length_s * i / (TICKS - 1) for i in range(TICKS))
    return joined(fill("<span>{at}</span>", at=clock(t, 1)) for t in times)


def _round_up(value: float) -> float:
    """Return the next number with a readable half at or above `value`."""
    if value <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in ROUND if step * decade >= value * (1 - 1e-9))


def clock(time_s: float, digits: int = 2) -> str:
    """Say a time as [h:]m:ss.ff."""
    sign, ticks = "-" * (time_s < 0), round(abs(time_s) * 10**digits)
    seconds, fraction = divmod(ticks, 10**digits)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{sign}{head}:{seconds:02d}.{fraction:0{digits}d}"
