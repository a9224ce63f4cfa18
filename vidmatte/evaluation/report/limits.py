"""Turn what a script allows ("flicker>2.0") into limits, and say which of them are passed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vidmatte.errors import UsageError

_EXPRESSION = re.compile(r"\s*([a-z-]+)\s*(>=?)\s*(\d{1,12}(?:\.\d{1,9})?)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a limit may be set for. `unit` follows the number in texts."""

    name: str
    unit: str
    meaning: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("flicker", " px", "worst flicker"),
        Metric("flicker-mean", " px", "mean flicker"),
        Metric("area-jump", " %", "worst area jump"),
        Metric("blob", " %", "largest part that appears or vanishes, of the picture"),
        Metric("uncertain", " px", "widest uncertain edge"),
        Metric("uncertain-mean", " px", "mean width of the uncertain edge"),
        Metric("lost-frames", "", "pictures of the input that the output lacks"),
        Metric("extra-frames", "", "pictures of the output that the input lacks"),
        Metric("time-shift", " s", "largest difference of a picture's time"),
        Metric("drift", " s", "how much the difference of times grows from start to end"),
        Metric("damage", "", "kinds of damage in either file"),
        Metric("lost-sound", "", "sound tracks of the input that the output lacks"),
    )
}
NAMES = ", ".join(METRICS)


@dataclass(frozen=True, slots=True)
class Value:
    """What was measured for a metric, and when it was worst: seconds of the input, or None."""

    value: float
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What is too much of a metric: more than `most`, or with `or_equal` that much already."""

    name: str
    most: float
    or_equal: bool = False

    def is_passed_by(self, value: float) -> bool:
        """Whether `value` is too much."""
        return value >= self.most if self.or_equal else value > self.most

    def __str__(self) -> str:
        return f"{self.name}{'>=' if self.or_equal else '>'}{self.most:g}"


def limit_of(expression: str) -> Limit:
    """Read "NAME>NUMBER" or "NAME>=NUMBER". Raises UsageError."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise UsageError(
            f"--fail-if '{expression}': is not NAME>NUMBER",
            hint=f'quote it for the shell, like --fail-if "flicker>2.0"; names: {NAMES}',
        )
    name, sign, most = match.groups()
    if name not in METRICS:
        raise UsageError(f"--fail-if '{expression}': no metric {name}", hint=f"one of {NAMES}")
    return Limit(name, float(most), sign == ">=")


def passed(limits: list[Limit], values: Mapping[str, Value]) -> list[str]:
    """Say in words which limits the values pass: name, value, limit and the worst time."""
    said = []
    for limit in limits:
        found = values[limit.name]
        if limit.is_passed_by(found.value):
            unit = METRICS[limit.name].unit
            at = "" if found.at_s is None else f" at {found.at_s:.2f} s"
            said.append(f"{limit.name} is {found.value:.4g}{unit}{at} (--fail-if {limit})")
    return said
