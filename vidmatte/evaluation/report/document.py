"""Say a report in JSON: all but the pictures, in a size that does not grow with the video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidmatte.errors import printable
from vidmatte.evaluation.report.checks import checks_of
from vidmatte.evaluation.report.limits import METRICS

if TYPE_CHECKING:
    from vidmatte.evaluation.report.analysis import Report
    from vidmatte.evaluation.report.facts import Facts
    from vidmatte.evaluation.report.measures import Measures
    from vidmatte.evaluation.report.pairs import Comparison, Rhythm
    from vidmatte.evaluation.report.series import Series, Times

DIGITS = 4


def document_of(report: Report) -> dict[str, object]:
    """Return the report as a JSON document; times in seconds, other units in the names.

    Lists of times hold the first 200, series the worst value of each of up to 600 steps.
    """
    return {
        "input": _facts(report.source),
        "output": _facts(report.output),
        "alpha": None if report.alpha is None else _facts(report.alpha),
        "page": printable(report.page),
        "holds": report.holds,
        "frames": report.rhythm.count,
        "elapsed_s": round(report.elapsed_s, 3),
        "metrics": {
            name: {"value": _short(value.value), "unit": METRICS[name].unit.strip(),
                   "at_s": _short(value.at_s)}
            for name, value in report.values.items()
        },
        "passed_limits": report.passed,
        "checks": [
            {"title": c.title, "grade": c.grade, "text": printable(c.text)}
            for c in checks_of(report)
        ],
        "timing": _timing(report),
        "cuts": _times(report.cuts),
        "damage": [printable(line) for line in report.damage],
        "moments": [
            {"frame": m.index, "time_s": _short(m.time_s), "doubt": _short(m.doubt),
             **_measures(m.measures)}
            for m in report.moments
        ],
        "series": {name: _series(series) for name, series in report.series.items()},
    }  # fmt: skip


def _facts(facts: Facts) -> dict[str, object]:
    return {
        "name": printable(facts.name),
        **{label.lower(): printable(value) for label, value in facts.rows},
        "tags": {printable(name): printable(value) for name, value in facts.tags},
    }


def _timing(report: Report) -> dict[str, object] | None:
    if not report.has_times:
        return None
    found = report.comparison
    return {
        "input": _rhythm(report.rhythm),
        "output": _rhythm(found.rhythm),
        **_comparison(found),
        "alpha": None if report.alpha_comparison is None else _comparison(report.alpha_comparison),
    }


def _comparison(found: Comparison) -> dict[str, object]:
    return {
        "tolerance_s": found.tolerance_s,
        "shifted": found.shifted,
        "worst_shift_s": _short(found.worst_shift_s),
        "drift_s": _short(found.drift_s),
        "displaced_frames": found.displaced,
        "lost": _times(found.lost),
        "extra": _times(found.extra),
    }


def _rhythm(rhythm: Rhythm) -> dict[str, object]:
    return {
        "frames": rhythm.count,
        "constant": rhythm.is_constant,
        "rate": _short(rhythm.rate),
        "first_s": _short(rhythm.first_s),
        "last_s": _short(rhythm.last_s),
    }


def _measures(measures: Measures) -> dict[str, object]:
    box = measures.blob_box
    return {
        "flicker_px": _short(measures.flicker_px),
        "area_jump": _short(measures.area_jump),
        "blob": _short(measures.blob),
        "blob_box": None if box is None else [_short(side) for side in box],
        "uncertain_px": _short(measures.uncertain_px),
        "area": _short(measures.area),
    }


def _times(times: Times) -> dict[str, object]:
    return {"count": times.count, "first_s": [_short(t) for t in times.first]}


def _series(series: Series) -> dict[str, object]:
    return {
        "start_s": _short(series.start_s),
        "step_s": series.step_s,
        "mean": _short(series.mean),
        "worst": [_short(value) for value in series.bins],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
