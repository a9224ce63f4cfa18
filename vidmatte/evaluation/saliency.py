"""Score mattes of single pictures against masks, as salient object detection does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidmatte.errors import VidmatteError

if TYPE_CHECKING:
    from vidmatte.evaluation.predictions import Mask, Pair, Prediction, Predictor

Curve256 = NDArray[np.float64]

BETA_SQUARED = 0.3  # U²-Net paper, section 4.3, after Achanta et al. 2009


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over the pictures, and curves over the thresholds 255/255, 254/255 … 0 (256 each).

    F at a threshold is that of the mean precision and the mean recall (beta² = .3), as in the
    U²-Net paper's numbers and figures; `max_f` is the best threshold's, `mean_f` their mean. (The
    mean of the pictures' own F, which some toolboxes print, is lower: .929 for .943 on ECSSD.)
    `weighted_f` is that of Margolin et al. 2014, `s` the S-measure (Fan et al. 2017), `max_e` and
    `mean_e` the E-measure (Fan et al. 2018). A picture whose mask is empty has precision and
    recall 0, whatever is predicted.
    """

    label: str
    pictures: int
    parameters: int | None
    facts: dict[str, str]
    max_f: float
    mean_f: float
    weighted_f: float
    s: float
    max_e: float
    mean_e: float
    mae: float
    precision: Curve256
    recall: Curve256
    f: Curve256


def load_pysodmetrics() -> Any:
    """Import pysodmetrics, or raise VidmatteError with the two lines that install it."""
    try:
        import py_sod_metrics
    except ImportError as exc:
        raise VidmatteError(
            f"pysodmetrics cannot be loaded: {exc}",
            hint='pip install "vidmatte[evaluate]", then pip install --no-deps pysodmetrics',
        ) from exc
    return py_sod_metrics


def score(
    predictor: Predictor, pairs: Sequence[Pair], each: Callable[[], None] = lambda: None
) -> Scores:
    """Score every pair's prediction; `each` is called after each and may raise to stop."""
    steps = _Steps()
    for pair, prediction in predictor.predict(pairs):
        steps.add(prediction, pair.read_mask())
        each()
    return steps.scores(predictor, len(pairs))


def f_measure(precision: Curve256, recall: Curve256) -> Curve256:
    """Return F at each threshold, with beta² = .3; 0 where nothing is found."""
    below = BETA_SQUARED * precision + recall
    weighted = (1 + BETA_SQUARED) * precision * recall
    return np.divide(weighted, below, out=np.zeros_like(below), where=below > 0)


class _Steps:
    """pysodmetrics' counters. It gets predictions as they are: its own default stretches them."""

    def __init__(self) -> None:
        sod = load_pysodmetrics()
        curves = {"with_dynamic": True, "with_adaptive": False}
        self._f = sod.FmeasureV2(
            {
                "precision": sod.PrecisionHandler(**curves),
                "recall": sod.RecallHandler(**curves),
            }
        )
        self._weighted, self._s = sod.WeightedFmeasure(), sod.Smeasure()
        self._e, self._mae = sod.Emeasure(), sod.MAE()

    def add(self, prediction: Prediction, mask: Mask) -> None:
        for metric in (self._f, self._weighted, self._s, self._e, self._mae):
            metric.step(pred=prediction, gt=mask, normalize=False)

    def scores(self, predictor: Predictor, pictures: int) -> Scores:
        curves = {name: result["dynamic"] for name, result in self._f.get_results().items()}
        f = f_measure(curves["precision"], curves["recall"])
        e = self._e.get_results()["em"]["curve"]
        return Scores(
            label=predictor.label,
            pictures=pictures,
            parameters=predictor.parameters,
            facts=predictor.facts,
            max_f=float(f.max()),
            mean_f=float(f.mean()),
            weighted_f=float(self._weighted.get_results()["wfm"]),
            s=float(self._s.get_results()["sm"]),
            max_e=float(e.max()),
            mean_e=float(e.mean()),
            mae=float(self._mae.get_results()["mae"]),
            f=f,
            **curves,
        )
