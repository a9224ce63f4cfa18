"""Show a video's worst moments on one sheet: the truth, the prediction, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.evaluation.tables import clock
from vidmatte.results import load_figure, picture_of, plain

if TYPE_CHECKING:
    from vidmatte.evaluation.video import Moment
    from vidmatte.frames import Samples

_DPI = 150
_LONG_IN, _NARROW_IN = 3.2, 1.8  # a picture's longer side, and the least that a heading needs
_GAP_IN, _CAPTION_IN, _HEAD_IN = 0.12, 0.32, 0.62
_INK, _PAPER = "#222222", "#ffffff"
# Signed error: what is kept wrongly in red, what is lost in blue, on a faint picture of the truth.
_KEPT, _LOST = np.array([213, 40, 20], np.float32), np.array([0, 90, 200], np.float32)
_FAINT = np.float32(70)


def contact_sheet(moments: Sequence[Moment], unit: str, title: str) -> bytes:
    """Return the sheet as a PNG: a row of three pictures per moment, worst first.

    `unit` names the error, e.g. "MAD x10³". Raises VidmatteError without matplotlib.
    """
    height, width = moments[0].compared.truth.shape
    wide_in = max(_NARROW_IN, _LONG_IN * min(1, width / height))
    tall_in = wide_in * height / width
    sheet_in = (
        3 * wide_in + 4 * _GAP_IN,
        _HEAD_IN + len(moments) * (tall_in + _CAPTION_IN) + _GAP_IN,
    )
    figure = load_figure()(figsize=sheet_in, facecolor=_PAPER)
    _head(figure, sheet_in, wide_in, title)
    for row, moment in enumerate(moments):
        top_in = _HEAD_IN + row * (tall_in + _CAPTION_IN) + _CAPTION_IN
        pictures = _pictures(moment, round(wide_in * _DPI))
        for column, picture in enumerate(pictures):
            left_in = _GAP_IN + column * (wide_in + _GAP_IN)
            _place(figure, sheet_in, picture, (left_in, top_in, wide_in, tall_in))
        _write(figure, sheet_in, _GAP_IN, top_in - 0.08, _caption(row, moment, unit))
    return picture_of(figure, "png", _DPI)


def _caption(row: int, moment: Moment, unit: str) -> str:
    place = f"frame {moment.frame}, {clock(moment.compared.time_s)}"
    return f"{row + 1}.  {place}   {unit} {moment.error:.2f}"


def _head(figure: Any, sheet_in: tuple[float, float], wide_in: float, title: str) -> None:
    _write(figure, sheet_in, _GAP_IN, 0.27, plain(title), size=11, weight="bold")
    for column, text in enumerate(("truth", "prediction", "error")):
        left_in = _GAP_IN + column * (wide_in + _GAP_IN)
        _write(figure, sheet_in, left_in, 0.56, text, size=9)
    left_in = _GAP_IN + 2 * (wide_in + _GAP_IN)
    for shift_in, colour, text in ((0.42, _KEPT, "kept wrongly"), (1.45, _LOST, "lost")):
        _write(figure, sheet_in, left_in + shift_in, 0.56, text, size=9, weight="bold",
               color=tuple(colour / 255))  # fmt: skip


def _write(
    figure: Any,
    sheet_in: tuple[float, float],
    left_in: float,
    base_in: float,
    text: str,
    *,
    size: float = 9,
    weight: str = "normal",
    color: object = _INK,
) -> None:
    """Write a line whose base is `base_in` below the sheet's top."""
    x, y = left_in / sheet_in[0], 1 - base_in / sheet_in[1]
    figure.text(x, y, text, fontsize=size, fontweight=weight, color=color, va="baseline")


def _place(
    figure: Any,
    sheet_in: tuple[float, float],
    picture: NDArray[np.uint8],
    box_in: tuple[float, float, float, float],
) -> None:
    left_in, top_in, wide_in, tall_in = box_in
    bottom = 1 - (top_in + tall_in) / sheet_in[1]
    box = left_in / sheet_in[0], bottom, wide_in / sheet_in[0], tall_in / sheet_in[1]
    axis = figure.add_axes(box)
    axis.imshow(picture, aspect="auto", interpolation="antialiased")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.6)


def _pictures(moment: Moment, width_px: int) -> list[NDArray[np.uint8]]:
    """Return truth, prediction and error, (h, w, 3) uint8 RGB each."""
    truth = _small(moment.compared.truth, width_px)
    prediction = _small(moment.compared.prediction, width_px)
    return [_grey(truth), _grey(prediction), error_picture(prediction, truth)]


def _small(alpha: Samples, width_px: int) -> NDArray[np.float32]:
    cv2 = load_cv2()
    unit = alpha / np.float32(np.iinfo(alpha.dtype).max)
    height, width = alpha.shape
    size = (width_px, max(1, round(height * width_px / width)))
    how = cv2.INTER_AREA if width > width_px else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(unit, size, interpolation=how), np.float32)


def _grey(alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.repeat(np.rint(alpha * 255).astype(np.uint8)[..., None], 3, axis=2)


def error_picture(prediction: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the signed error of (H, W) mattes in 0..1 as (H, W, 3) uint8 RGB.

    White is right outside, light grey right inside; red has too much alpha, blue too little, the
    root of the error deep, so that small errors are seen.
    """
    ground = 255 - _FAINT * truth[..., None]
    signed = (prediction - truth)[..., None]
    depth = np.sqrt(np.abs(signed))
    colour = np.where(signed > 0, _KEPT, _LOST)
    return np.asarray(np.rint(ground + (colour - ground) * depth), np.uint8)
