"""Put what was measured into tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vidmatte.errors import printable

if TYPE_CHECKING:
    from vidmatte.evaluation.saliency import Scores
    from vidmatte.evaluation.video import VideoErrors
    from vidmatte.evaluation.video_metrics import Metric

SCORE_NAMES = {
    "max_f": "max F", "mean_f": "mean F", "weighted_f": "weighted F", "s": "S", "max_e": "max E",
    "mean_e": "mean E", "mae": "MAE",
}  # fmt: skip
VIDEO_NAMES: dict[Metric, str] = {
    "mad": "MAD x10³", "mse": "MSE x10³", "grad": "Grad /10³", "conn": "Conn /10³",
    "dtssd": "dtSSD x10²",
}  # fmt: skip
_FLOAT32_MB = 4 / 1e6


def saliency_table(scores: Sequence[Scores]) -> str:
    """Return a line per row; MB is the size of the network's weights as float32."""
    rows = [["", "MB", *SCORE_NAMES.values()]]
    for row in scores:
        size = f"{row.parameters * _FLOAT32_MB:.3g}" if row.parameters else ""
        numbers = (f"{getattr(row, name):.3f}" for name in SCORE_NAMES)
        rows.append([printable(row.label), size, *numbers])
    return _aligned(rows)


def saliency_csv(scores: Sequence[Scores]) -> bytes:
    """Return the table as CSV, in full precision."""
    columns = ("pictures", "parameters", *SCORE_NAMES)
    rows = ([printable(row.label), *(getattr(row, name) for name in columns)] for row in scores)
    return _csv(("name", *columns), rows)


def saliency_json(scores: Sequence[Scores], mode: str) -> bytes:
    """Return scores and curves, by thresholds 255 to 0, with what was scored."""
    rows = []
    for row in scores:
        facts: dict[str, object] = {"name": printable(row.label), "pictures": row.pictures}
        facts |= {key: printable(value) for key, value in row.facts.items()}
        facts |= {name: getattr(row, name) for name in ("parameters", *SCORE_NAMES)}
        facts |= {name: getattr(row, name).tolist() for name in ("precision", "recall", "f")}
        rows.append(facts)
    return _json({"mode": mode, "rows": rows})


def video_table(found: VideoErrors) -> str:
    """Return a line per metric: mean, worst, and where that is."""
    head = f"{found.frames} frame{'s' * (found.frames != 1)}, {found.width}x{found.height}"
    rows = [[head, "mean", "worst", "frame", "at"]]
    for name, mean in found.means.items():
        if mean is not None:
            (worst,) = found.worst(name, 1)
            error = found.columns[name][worst]
            at = clock(found.times_s[worst])
            rows.append([VIDEO_NAMES[name], f"{mean:.2f}", f"{error:.2f}", str(worst), at])
    return _aligned(rows)


def video_csv(found: VideoErrors) -> bytes:
    """Return a line of errors per frame; a metric that a frame has not is an empty field."""
    columns = zip(found.times_s, *found.columns.values(), strict=True)
    rows = ([frame, *map(_known, values)] for frame, values in enumerate(columns))
    return _csv(("frame", "time_s", *found.columns), rows)


def video_json(names: Mapping[str, str], found: VideoErrors, by: Metric, count: int) -> bytes:
    """Return means, the worst moments and every frame's errors, in the metrics' scales."""
    worst = [
        {"frame": frame, "time_s": found.times_s[frame], by: _known(found.columns[by][frame])}
        for frame in found.worst(by, count)
    ]
    return _json(
        {
            **names,
            "frames": found.frames,
            "width": found.width,
            "height": found.height,
            "means": found.means,
            "worst": worst,
            "time_s": list(found.times_s),
            "per_frame": {name: [*map(_known, column)] for name, column in found.columns.items()},
        }
    )


def clock(time_s: float) -> str:
    """Return a time as minutes and seconds."""
    minutes, seconds = divmod(round(time_s, 2), 60)
    return f"{int(minutes)}:{seconds:05.2f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align a table: the first column left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers in rows:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
