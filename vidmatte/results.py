"""Results beside a run: files that are written whole or not at all, and drawn pictures."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidmatte.errors import OutputError, UsageError, VidmatteError
from vidmatte.outputs import refuse_same_file
from vidmatte.sinks._shared import refused
from vidmatte.sinks.part import PartFile, check_target


def check_results(
    targets: Mapping[str, tuple[Path | None, tuple[str, ...]]],
    inputs: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Raise UsageError or OutputError for a result that cannot be written.

    `targets` maps options to a file and the extensions that it may have; any where there are none.
    """
    named = {option: (path, kinds) for option, (path, kinds) in targets.items() if path is not None}
    refuse_same_file([str(path) for path, _ in named.values()], list(inputs))
    for option, (path, kinds) in named.items():
        assert path is not None
        if kinds and path.suffix.lower() not in kinds:
            raise UsageError(
                f"{path}: {option} cannot tell its format from {path.suffix!r}",
                hint="use one of " + " ".join(kinds),
            )
        check_target(path, overwrite=overwrite)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise OutputError(f"{path}: is not a regular file", hint="choose another name")


def write_result(path: Path, data: bytes, *, overwrite: bool) -> Path | None:
    """Write a file that appears under its name only when it is whole. Raises OutputError.

    Returns where a part that an earlier run left unfinished was moved, or None.
    """
    part = PartFile(path, replace=overwrite)
    try:
        with memoryview(data) as left:
            written = 0
            while written < len(data):
                written += os.write(part.descriptor, left[written:])
        part.flush()
        part.commit()
    except OSError as exc:
        raise refused(path, exc) from exc
    finally:
        part.discard()
    return part.kept_aside


def load_figure() -> Any:
    """Import matplotlib's Figure class, or raise VidmatteError with the line that installs it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise VidmatteError(
            f"matplotlib cannot be loaded: {exc}", hint='pip install "vidmatte[evaluate]"'
        ) from exc
    return Figure


def plain(text: str) -> str:
    """Return a name as matplotlib is to show it: no mathematics, no hidden legend entry."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def picture_of(figure: Any, kind: str, dpi: int = 150) -> bytes:
    """Return a matplotlib Figure as "png" or "svg"; letters no font has are shown as boxes."""
    import warnings

    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(data, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {})
    return data.getvalue()
