"""Loss and error over the steps of a run, as a picture and as numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.results import load_figure, picture_of, write_result

if TYPE_CHECKING:
    from vidmatte.training.trainer import History

_SMOOTH = 50  # steps over which the thick line averages


def draw_curves(history: History, title: str) -> bytes:
    """Return a PNG: the loss and d0's cross entropy of every step, the MAE where it was taken."""
    figure = load_figure()(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values, colour in (
        ("loss of all outputs", history.loss, "tab:blue"),
        ("cross entropy of d0", history.entropy, "tab:orange"),
    ):
        left.plot(history.step, values, color=colour, alpha=0.25, linewidth=0.6)
        left.plot(*_smooth(history.step, values), color=colour, label=name)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.plot(history.validated, history.mae, "o-", color="tab:green")
    top = 1.2 * max(history.mae, default=1.0)
    right.set(xlabel="step", ylabel="MAE of pictures held out", ylim=(0, top))
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return picture_of(figure, "png", dpi=110)


def _smooth(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    width = min(_SMOOTH, len(values))
    if width == 0:
        return [], []
    means = np.convolve(values, np.ones(width) / width, "valid")
    return steps[width - 1 :], [float(mean) for mean in means]


def table(history: History) -> str:
    """Return step, loss, cross entropy and, where taken, MAE, as CSV."""
    taken = dict(zip(history.validated, history.mae, strict=True))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "loss", "entropy", "mae"))
    for row in zip(history.step, history.loss, history.entropy, strict=True):
        writer.writerow((*row, taken.get(row[0], "")))
    return text.getvalue()


def save_curves(history: History, folder: Path, title: str) -> None:
    """Write `curves.png` and `curves.csv` into `folder`. Raises OutputError."""
    write_result(folder / "curves.csv", table(history).encode(), overwrite=True)
    write_result(folder / "curves.png", draw_curves(history, title), overwrite=True)
