"""Judge a report: one line per question that a user asks, with how good the answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vidmatte.evaluation.report.analysis import Report
    from vidmatte.evaluation.report.series import Times

Grade = Literal["good", "look", "bad"]
# From where the worst value deserves a look, and from where it is bad; found on six real clips.
STEADINESS = {
    "flicker": (6.0, 24.0),
    "area-jump": (5.0, 20.0),
    "blob": (0.3, 2.0),
    "uncertain": (60.0, 150.0),
}


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question."""

    title: str
    grade: Grade
    text: str


def checks_of(report: Report) -> list[Check]:
    """Answer all questions, those about the file first."""
    return [
        _pictures(report),
        _times(report),
        _sound(report),
        _damage(report),
        _steady(report, "flicker", "Flicker", "The edge moves by itself by {mean:.1f} px on "
                "average, at most {worst:.1f} px{at}."),
        _steady(report, "area-jump", "Area jumps", "At most {worst:.1f} % of the matte come or "
                "go at once{at}."),
        _steady(report, "blob", "Parts", "The largest part that appears or vanishes is "
                "{worst:.2f} % of the picture{at}."),
        _steady(report, "uncertain", "Uncertain edge", "The edge is {mean:.0f} px wide on "
                "average, at most {worst:.0f} px{at}."),
    ]  # fmt: skip


def headline(checks: list[Check]) -> str:
    """Sum the checks up in one sentence."""
    bad, look = (sum(c.grade == grade for c in checks) for grade in ("bad", "look"))
    if bad:
        return f"{bad} of {len(checks)} checks found something wrong" + (
            f", {look} more deserve a look" if look > 1 else ", 1 more deserves a look" * look
        )
    if look:
        return f"{look} of {len(checks)} checks deserve{'s' * (look == 1)} a look"
    return "Nothing stands out"


def _pictures(report: Report) -> Check:
    found, count = report.comparison, report.rhythm.count
    if found.displaced:
        way = "late" if found.displaced > 0 else "early"
        return Check("Pictures", "bad", f"As many as in the input, but all {abs(found.displaced)} "
                     f"pictures {way}, or of another part of it.")  # fmt: skip
    parts = []
    if found.lost.count:
        parts.append(f"{found.lost.count} of {count} lost{_first(found.lost)}")
    if found.extra.count:
        parts.append(f"{found.extra.count} extra{_first(found.extra)}")
    if report.alpha_comparison is not None and report.alpha_comparison.lost.count:
        lost = report.alpha_comparison.lost
        parts.append(f"{lost.count} lost in the matte's file{_first(lost)}")
    if not parts:
        return Check("Pictures", "good", f"All {count} are there.")
    return Check("Pictures", "bad", f"{'; '.join(parts)}.")


def _times(report: Report) -> Check:
    found = report.comparison
    if not report.has_times:
        return Check("Time stamps", "good", "Numbered pictures have none; paired in order.")
    kind = "constant" if report.rhythm.is_constant else "variable"
    rate = f"The rate is {kind}, {report.rhythm.rate:.5g} per second"
    if not found.shifted:
        return Check(
            "Time stamps", "good", f"All agree to {1000 * found.tolerance_s:.3g} ms. {rate}."
        )
    drift = f", and drifts by {1000 * found.drift_s:.3g} ms" if found.drift_s else ""
    return Check("Time stamps", "bad", f"{found.shifted} differ, at most by "
                 f"{1000 * found.worst_shift_s:+.4g} ms at {found.worst_shift_at_s:.2f} s{drift}. "
                 f"{rate}.")  # fmt: skip


def _sound(report: Report) -> Check:
    there, kept = report.source.sound, report.output.sound
    if not there:
        return Check("Sound", "good", "The input has none.")
    if report.holds == "matte":
        return Check("Sound", "good", "A matte carries none.")
    if not report.has_times:
        return Check("Sound", "good", "Numbered pictures carry none.")
    if report.lost_sound:
        return Check("Sound", "bad", f"{report.lost_sound} of {len(there)} tracks lost.")
    return Check("Sound", "good", "; ".join(kept))


def _damage(report: Report) -> Check:
    grade: Grade = "bad" if report.damage else "good"
    return Check("Damage", grade, "; ".join(report.damage) or "None was met.")


def _steady(report: Report, name: str, title: str, text: str) -> Check:
    series = report.series.get(name)
    if series is None or series.worst is None:
        return Check(title, "good", "Nothing to compare.")
    worst, at_s = series.worst
    if not worst:
        return Check(title, "good", "None at all.")
    look, bad = STEADINESS[name]
    grade: Grade = "bad" if worst >= bad else "look" if worst >= look else "good"
    return Check(title, grade, text.format(mean=series.mean, worst=worst, at=f" at {at_s:.2f} s"))


def _first(times: Times) -> str:
    return f", first at {times.first[0]:.2f} s"
