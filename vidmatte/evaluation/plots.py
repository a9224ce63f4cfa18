"""Draw scores as the U²-Net paper does: precision and recall, F-measure, size against score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidmatte.results import load_figure, picture_of, plain

if TYPE_CHECKING:
    from vidmatte.evaluation.saliency import Scores

# Okabe and Ito 2008, told apart by colour-blind readers; dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
_INK, _GRID = "#333333", "#dddddd"
_BYTES = 4  # of a float32 parameter
# Without threshold 255: whether a picture reaches that is rounding, and if not, it has precision 0.
_SHOWN = slice(1, None)


def plot_scores(scores: Sequence[Scores], title: str, kind: str) -> bytes:
    """Return the figure as "png" or "svg": one line per row, best first in the legends.

    The third panel has a dot per network: its size as float32 weights against its best F-measure;
    it is left out where no row is a network. Raises VidmatteError without matplotlib.
    """
    sized = [(n, row) for n, row in enumerate(scores) if row.parameters]
    figure_class = load_figure()
    figure = figure_class(figsize=(4.8 * (3 if sized else 2), 4.6), layout="constrained")
    axes = figure.subplots(1, 3 if sized else 2)
    figure.suptitle(plain(title), fontsize=11, color=_INK)
    for axis in axes:
        _style(axis)
    _precision_recall(axes[0], scores)
    _f_measure(axes[1], scores)
    if sized:
        _sizes(axes[2], sized)
    return picture_of(figure, kind)


def _style(axis: Any) -> None:
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=9)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)


def _look(number: int) -> dict[str, Any]:
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style, "linewidth": 1.8}


def _precision_recall(axis: Any, scores: Sequence[Scores]) -> None:
    for number, row in enumerate(scores):
        axis.plot(row.recall[_SHOWN], row.precision[_SHOWN], **_look(number))
    left = _below([row.recall for row in scores])
    axis.set(xlabel="recall", ylabel="precision", xlim=(left, 1))
    axis.set_ylim(_below([row.precision for row in scores]), 1)


def _f_measure(axis: Any, scores: Sequence[Scores]) -> None:
    thresholds = np.arange(255, -1, -1)
    for number in sorted(range(len(scores)), key=lambda n: -scores[n].max_f):
        row = scores[number]
        label = plain(f"{row.label}  max {row.max_f:.3f}, mean {row.mean_f:.3f}")
        axis.plot(thresholds[_SHOWN], row.f[_SHOWN], label=label, **_look(number))
        best = int(row.f.argmax())
        axis.plot(thresholds[best], row.f[best], "o", markersize=4, color=_look(number)["color"])
    axis.set(xlabel="threshold of 255", ylabel="F-measure (β² = 0.3)", xlim=(0, 255))
    axis.set_ylim(_below([row.f for row in scores]), 1)
    axis.set_xticks(range(0, 256, 51))
    axis.legend(loc="lower center", fontsize=8, frameon=True, framealpha=0.9, edgecolor=_GRID)


def _below(curves: Sequence[NDArray[np.float64]]) -> float:
    """The tenth under all of the curves, at most .8; threshold 0, which takes all, may leave."""
    lowest = min(float(curve[_SHOWN][:-1].min()) for curve in curves)
    return min(0.8, max(0.0, math.floor(lowest * 10) / 10))


def _sizes(axis: Any, sized: Sequence[tuple[int, Scores]]) -> None:
    sizes = [row.parameters * _BYTES / 1e6 for _, row in sized if row.parameters]
    for (number, row), size in zip(sized, sizes, strict=True):
        axis.plot(size, row.max_f, "o", markersize=9, color=_look(number)["color"])
        text = plain(f"{row.label}\n{size:.3g} MB, {row.max_f:.3f}")
        axis.annotate(text, (size, row.max_f), (0, 9), textcoords="offset points",
                      ha="center", va="bottom", fontsize=8.5, color=_INK)  # fmt: skip
    heights = [row.max_f for _, row in sized]
    room = max(0.02, np.ptp(heights) * 0.35)
    axis.set_xscale("log")
    left, right = min(sizes) / 2, max(sizes) * 2
    ticks = [n * 10**power for power in range(-3, 5) for n in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if left <= tick <= right], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlim(left, right)
    axis.set_ylim(min(heights) - room, max(heights) + room)
    axis.set(xlabel="size in MB (float32 weights)", ylabel="max F-measure")
