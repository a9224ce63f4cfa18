"""Pictures and their masks in two folders, paired by the stem of their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_BYTES = 1 << 28
"""A picture file larger than this is not read."""


_NAMED = 3


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures with their masks, in the order of their names, and what has no partner."""

    found: list[tuple[Path, Path]]
    alone: list[Path]


def find_pairs(images: Path, masks: Path) -> Pairs:
    """Pair the pictures in `images` with those in `masks` that have the same stem.

    Raises InputError where a folder cannot be read or nothing pairs.
    """
    left, right = pictures_in(images), pictures_in(masks)
    both = sorted(left.keys() & right.keys())
    if not both:
        raise InputError(
            f"{images} and {masks}: no picture has a mask of the same name",
            hint="a picture dog.jpg needs a mask dog.png; endings are " + " ".join(SUFFIXES),
        )
    alone = [(left | right)[stem] for stem in sorted(left.keys() ^ right.keys())]
    return Pairs([(left[stem], right[stem]) for stem in both], alone)


def pictures_in(folder: Path) -> dict[str, Path]:
    """Return the picture files of a folder by stem. Raises InputError."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as exc:
        reason = (exc.strerror or "cannot be read").lower()
        raise InputError(f"{folder}: {reason}", hint="name a folder with pictures") from exc
    found: dict[str, Path] = {}
    for path in (folder / name for name in names):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise InputError(
                f"{found[path.stem]} and {path.name}: two pictures of one name",
                hint="keep one of them",
            )
        found[path.stem] = path
    return found


def some(names: Sequence[str]) -> str:
    """List the first few names, for a message that counts them."""
    more = "" if len(names) <= _NAMED else " …"
    return ", ".join(names[:_NAMED]) + more


def read_rgb(path: Path) -> Picture:
    """Read a picture as (H, W, 3) uint8 RGB, upright by its EXIF. Raises InputError."""
    import cv2

    return np.asarray(cv2.cvtColor(_decoded(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def read_grey(path: Path) -> Picture:
    """Read a mask as (H, W) uint8; of a coloured one its luma. Raises InputError."""
    import cv2

    return _decoded(path, cv2.IMREAD_GRAYSCALE)


def _decoded(path: Path, how: int) -> Picture:
    import cv2

    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is no picture file", hint="remove it from the folder")
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as exc:
        reason = (exc.strerror or "cannot be read").lower()
        raise InputError(f"{path}: {reason}", hint="check the file's permissions") from exc
    try:
        picture = cv2.imdecode(data, how) if data.size else None
    except cv2.error:  # a size that no memory holds, say
        picture = None
    if picture is None:
        raise InputError(f"{path}: cannot be read as a picture", hint="get it again, or remove it")
    return np.asarray(picture, np.uint8)
