"""TensorRT's Python packages: whether they are here, and why one cannot be imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from importlib.util import find_spec
from typing import Any

from vidmatte.backends._tensorrt_key import GRAPH_VERSION
from vidmatte.errors import BackendError

INSTALL_HINT = "pip install 'vidmatte[tensorrt]', or use --backend torch"


def missing_libraries() -> list[str]:
    """Name the packages that are not installed, without importing any."""
    return [name for name in ("torch_tensorrt", "tensorrt") if find_spec(name) is None]


def import_library(name: str) -> Any:
    """Import `tensorrt` or `torch_tensorrt`, or say in one line why that fails.

    Without TensorRT's own libraries torch-tensorrt raises a bare Exception and prints.
    """
    missing = missing_libraries()
    if missing:
        raise BackendError(
            f"TensorRT is not installed: no {' and no '.join(missing)} here", hint=INSTALL_HINT
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except Exception as exc:
        reason = " ".join(str(exc).split())[:200]
        raise BackendError(f"{name} cannot be imported: {reason}", hint=INSTALL_HINT) from exc


def versions() -> dict[str, str | None]:
    """Return the versions that every engine of this machine has in its key; None is not known."""
    found: dict[str, str | None] = {"graph_version": str(GRAPH_VERSION), "tensorrt": None}
    for name in ("torch", "torch-tensorrt"):
        try:
            found[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name.replace("-", "_")] = None
    with contextlib.suppress(BackendError):
        found["tensorrt"] = str(import_library("tensorrt").__version__)
    return found
