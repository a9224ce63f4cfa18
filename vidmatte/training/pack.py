"""Pictures decoded once into arrays on the disk, all of one size, so that no step waits for files.

A pack is a folder of `images.u8` (N, S, S, 3), `masks.u8` (N, S, S), with a teacher `teacher.u8`
(N, S, S), the plain bytes of each, and `pack.json`, which is written last and says what the pack
was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.backends import open_backend, usable_cores
from vidmatte.errors import InputError, OutputError
from vidmatte.pairs import read_grey, read_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.registry import Model

    Array = NDArray[np.uint8]
    Pair = tuple[Path, Path]

_GRID = 20  # cells along a side in which room without a subject is looked for
_FACTS = "pack.json"
_AHEAD = 64  # pictures that are decoded at once


@dataclass(frozen=True, slots=True)
class Pack:
    """Training pictures; see the module. The arrays are mapped from the disk, read only.

    `empty` (N, 4) float32 holds per picture the largest area without a subject, (left, top,
    right, bottom) as shares of the side; zeros where there is none worth using.
    """

    images: Array
    masks: Array
    teacher: Array | None
    empty: NDArray[np.float32]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)


Told = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


def make_pack(
    folder: Path, pairs: Sequence[Pair], *, side: int, teacher: Model | None, told: Told
) -> Pack:
    """Open the pack in `folder` if it was made of these pictures, or make it.

    `side` is S in pixels; pictures are stretched to it, as the network will see them. `told` may
    raise to stop. A picture that cannot be read is left out and named in `facts["unreadable"]`.
    Raises InputError if none can be, OutputError if the disk refuses.
    """
    wanted = _identity(pairs, side, teacher)
    try:
        pack = _opened(folder, wanted)
        if pack is not None:
            return pack
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)
        _write(folder, pairs, side, teacher, wanted, told)
        return open_pack(folder)
    except OSError as exc:
        reason = (exc.strerror or "cannot be written").lower()
        raise OutputError(f"{folder}: {reason}", hint="name another folder with --output") from exc


def open_pack(folder: Path) -> Pack:
    """Open a finished pack. Raises OSError, ValueError and LookupError if it is not whole."""
    facts = json.loads((folder / _FACTS).read_text("utf-8"))
    shape = facts["count"], facts["side"], facts["side"]

    def mapped(name: str, *channels: int) -> Array:
        return np.memmap(folder / f"{name}.u8", np.uint8, "r", shape=(*shape, *channels))

    teacher = mapped("teacher") if facts["teacher"] else None
    empty = np.load(folder / "empty.npy")
    return Pack(mapped("images", 3), mapped("masks"), teacher, empty, facts)


def _opened(folder: Path, identity: str) -> Pack | None:
    """Open the pack if it is whole and the one that is wanted."""
    try:
        pack = open_pack(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return pack if pack.facts.get("identity") == identity else None


def _identity(pairs: Sequence[Pair], side: int, teacher: Model | None) -> str:
    """Hash what the pack is made of: names, sizes and dates of the files, side and teacher."""
    digest = hashlib.sha256(f"{side} {teacher and teacher.sha256}".encode())
    for path in (path for pair in pairs for path in pair):
        status = os.stat(path)
        digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode(errors="replace"))
    return digest.hexdigest()


def _write(
    folder: Path,
    pairs: Sequence[Pair],
    side: int,
    teacher: Model | None,
    identity: str,
    told: Told,
) -> None:
    count = len(pairs)
    _require_space(folder, count * side * side * (4 if teacher is None else 5))
    images = _new(folder, "images", (count, side, side, 3))
    masks = _new(folder, "masks", (count, side, side))
    empty = np.zeros((count, 4), np.float32)
    kept, unreadable = 0, []
    for done, read in enumerate(_read(pairs, side)):
        told("packing pictures", done, count)
        if isinstance(read, InputError):
            unreadable.append(read)
            continue
        images[kept], masks[kept] = read
        empty[kept] = empty_area(masks[kept])
        kept += 1
    if kept == 0:
        raise unreadable[0]
    np.save(folder / "empty.npy", empty[:kept])
    if teacher is not None:
        _ask(teacher, images[:kept], _new(folder, "teacher", (count, side, side)), told)
    facts = {
        "identity": identity,
        "count": kept,
        "side": side,
        "teacher": None if teacher is None else f"{teacher.name} {teacher.sha256}",
        "unreadable": [str(error) for error in unreadable],
    }
    (folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder}: the pictures take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            hint="name a folder on another disk with --output, or a smaller --pack-side",
        )


def _new(folder: Path, name: str, shape: tuple[int, ...]) -> Array:
    return np.memmap(folder / f"{name}.u8", np.uint8, "w+", shape=shape)


def _read(pairs: Sequence[Pair], side: int) -> Iterator[tuple[Array, Array] | InputError]:
    """Decode in a few threads, in order, a bounded number ahead."""

    def one(pair: Pair) -> tuple[Array, Array] | InputError:
        try:
            return stretched(read_rgb(pair[0]), side), stretched(read_grey(pair[1]), side)
        except InputError as exc:
            return exc

    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(pairs), _AHEAD):
            yield from pool.map(one, pairs[start : start + _AHEAD])


def stretched(picture: Array, side: int) -> Array:
    """Return a picture of `side` × `side` pixels; averages where it shrinks."""
    import cv2

    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def empty_area(mask: Array) -> tuple[float, float, float, float]:
    """Return the largest area of `mask` (S, S) without a subject, zeros if it is under a quarter.

    (left, top, right, bottom) as shares of the side, in whole cells of a coarse grid.
    """
    edges = np.arange(_GRID) * len(mask) // _GRID
    busy = np.maximum.reduceat(np.maximum.reduceat(mask, edges, 0), edges, 1) > 0
    sums = np.pad(busy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best, area = (0, 0, 0, 0), _GRID * _GRID // 4
    for top in range(_GRID):
        for bottom in range(top + 1, _GRID + 1):
            columns = sums[bottom] - sums[top]
            left, right = _widest(np.diff(columns) == 0)
            if (right - left) * (bottom - top) > area:
                best, area = (left, top, right, bottom), (right - left) * (bottom - top)
    return best[0] / _GRID, best[1] / _GRID, best[2] / _GRID, best[3] / _GRID


def _widest(free: NDArray[np.bool_]) -> tuple[int, int]:
    """Return start and end of the longest run of free columns."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]]).astype(np.int8)))
    runs = steps.reshape(-1, 2)
    if not len(runs):
        return 0, 0
    start, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return int(start), int(end)


def _ask(teacher: Model, images: Array, answers: Array, told: Told) -> None:
    """Let the teacher matte every picture, at the network size next to the pack's side."""
    import cv2

    step = teacher.row.multiple_of
    own = max(step, round(images.shape[1] / step) * step)
    backend = open_backend(teacher, size=(own, own))
    try:
        for index, image in enumerate(images):
            told(f"asking {teacher.name}", index, len(images))
            small = cv2.resize(image, (own, own), interpolation=cv2.INTER_AREA)
            probability = backend.infer(np.ascontiguousarray(small)[None])[0]
            large = cv2.resize(probability, answers.shape[:0:-1])
            answers[index] = np.rint(np.asarray(large) * 255)
    finally:
        backend.close()
