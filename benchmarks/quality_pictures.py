"""Pictures of what quality.py measures: contact sheets, the worst edge, and edges over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from quality_shots import NO_TEMPORAL, OURS, PLAIN, Shot

Picture = NDArray[np.uint8]

_TILE_PX = 480  # width of a tile
_CROP_PX = 120  # side of the part around the worst edge
_SHOWN = 3  # frames of a contact sheet


def draw(folder: Path, name: str, shot: Shot, alphas: Mapping[str, list[Picture]]) -> None:
    """Write NAME sheet.png (a row per frame: source, truth, plain, ours and the errors of both),
    NAME edge.png (the same around the worst edge, enlarged) and NAME slices.png (one row of the
    picture over time: truth, plain, ours without temporal, ours; flicker is ragged).
    """  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace(" ", "_")
    count = len(shot.truths)
    frames = [round(k * (count - 1) / (_SHOWN - 1)) for k in range(_SHOWN)]
    sheet = [np.hstack([_tile(part) for part in _parts(shot, alphas, k)]) for k in frames]
    _write(folder / f"{stem}_sheet.png", np.vstack(sheet))
    frame, top, left = _worst(shot, alphas)
    box = slice(top, top + _CROP_PX), slice(left, left + _CROP_PX)
    edge = [_enlarged(part[box]) for part in _parts(shot, alphas, frame)]
    _write(folder / f"{stem}_edge.png", np.hstack(edge))
    _write(folder / f"{stem}_slices.png", _slices(shot, alphas))


def _parts(shot: Shot, alphas: Mapping[str, list[Picture]], k: int) -> list[Picture]:
    """Source, truth, plain, ours, error of plain, error of ours; (H, W, 3) RGB each."""
    truth, plain, ours = shot.truths[k], alphas[PLAIN][k], alphas[OURS][k]
    source = np.asarray(shot.footage.pictures[k].to_ndarray(format="rgb24"), np.uint8)
    grey = [np.dstack([a] * 3) for a in (truth, plain, ours)]
    return [source, *grey, _heat(plain, truth), _heat(ours, truth)]


def _heat(alpha: Picture, truth: Picture) -> Picture:
    error = cv2.convertScaleAbs(cv2.absdiff(alpha, truth), alpha=2)
    return np.asarray(cv2.applyColorMap(error, cv2.COLORMAP_INFERNO)[..., ::-1], np.uint8)


def _tile(picture: Picture) -> Picture:
    height = round(picture.shape[0] * _TILE_PX / picture.shape[1])
    return np.asarray(cv2.resize(picture, (_TILE_PX, height), interpolation=cv2.INTER_AREA))


def _enlarged(part: Picture) -> Picture:
    size = (_TILE_PX, _TILE_PX)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _worst(shot: Shot, alphas: Mapping[str, list[Picture]]) -> tuple[int, int, int]:
    """Frame, top and left of the part where our mattes are most wrong."""
    best = (-1.0, 0, 0, 0)
    for k, (ours, truth) in enumerate(zip(alphas[OURS], shot.truths, strict=True)):
        error = cv2.blur(cv2.absdiff(ours, truth).astype(np.float32), (_CROP_PX // 2,) * 2)
        _, most, _, (x, y) = cv2.minMaxLoc(error)
        best = max(best, (most, k, y, x))
    _, k, y, x = best
    height, width = shot.truths[0].shape
    half = _CROP_PX // 2
    return k, max(0, min(y - half, height - _CROP_PX)), max(0, min(x - half, width - _CROP_PX))


def _slices(shot: Shot, alphas: Mapping[str, list[Picture]]) -> Picture:
    """The row through the middle of the subject's height, one line per frame, four columns."""
    rows = np.flatnonzero(np.max(shot.truths, axis=(0, 2)))
    row = int(rows[len(rows) // 3]) if len(rows) else 0
    columns = []
    for maps in (shot.truths, alphas[PLAIN], alphas[NO_TEMPORAL], alphas[OURS]):
        lines = np.stack([alpha[row] for alpha in maps])
        size = (_TILE_PX * 2, 6 * len(maps))
        columns.append(cv2.resize(lines, size, interpolation=cv2.INTER_NEAREST))
    pairs = [np.hstack(columns[:2]), np.hstack(columns[2:])]
    return np.dstack([np.vstack(pairs)] * 3).astype(np.uint8)


def _write(path: Path, picture: Picture) -> None:
    if not cv2.imwrite(str(path), picture[..., ::-1]):
        raise OSError(f"cannot write {path}")
