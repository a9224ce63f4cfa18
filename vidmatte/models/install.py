"""Put a user's weights file into the model folder, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vidmatte.errors import ModelError
from vidmatte.models.onnx_file import parse_onnx
from vidmatte.models.registry import Model, find, model_folder, private_folder, row_named
from vidmatte.models.table import ModelRow, Network, models
from vidmatte.models.weights import folded, parse_tensors, read_bytes, recognise, sha256_of

if TYPE_CHECKING:
    from vidmatte.models.weights import Tensors


def install(path: Path, name: str | None = None, *, sha256: str | None = None) -> Model:
    """Convert `path` (.pth, .safetensors, .onnx) to safetensors in the model folder.

    The network is recognised from the weights; `name` chooses the row where several share one
    (u2net, u2net_human_seg). `sha256` is what the file must have. Values and precision stay as
    they are. Raises ModelError.
    """
    data = read_bytes(path)
    if sha256 is not None and sha256_of(data) != sha256:
        raise ModelError(
            f"{path} is not the file that was checked: its SHA-256 is {sha256_of(data)}",
            hint="nothing was installed; find out who changes that file",
        )
    rows = _rows(name)
    networks = list({row.network.name: row.network for row in rows}.values())
    if path.suffix.lower() == ".onnx":
        network, tensors = parse_onnx(data, path, networks)
    else:
        tensors = parse_tensors(data, path)
        network = recognise(tensors, networks, path)
    folded(network, tensors, path)
    row = _row_of(network, rows, path)
    weights = _safetensors(tensors)
    record = {
        "sha256": sha256_of(weights),
        "source": path.name,
        "source_sha256": sha256_of(data),
    }
    target = model_folder() / f"{row.name}.safetensors"
    write_whole(target, weights)
    write_whole(target.with_suffix(".json"), json.dumps(record, indent=1).encode())
    model = find(row.name)
    assert model is not None
    return model


def _rows(name: str | None) -> list[ModelRow]:
    """Return the rows that the file may belong to."""
    if name is None:
        return [row for row in models().values() if row.sha256 is None]
    row = row_named(name)
    if row.sha256 is not None:
        raise ModelError(
            f"{name} is embedded and cannot be replaced", hint="use --weights FILE in a run"
        )
    return [row]


def _row_of(network: Network, rows: list[ModelRow], path: Path) -> ModelRow:
    """Return the row of `network`; where several share it, the one that the file is named for."""
    sharing = [row for row in rows if row.network.name == network.name]
    named = [row for row in sharing if row.name == path.stem]
    if len(sharing) == 1 or named:
        return (named or sharing)[0]
    names = ", ".join(row.name for row in sharing)
    raise ModelError(f"{path} may be any of {names}", hint="say which with --name")


def _safetensors(tensors: Tensors) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    arrays = {
        key: np.ascontiguousarray(value)
        for key, value in tensors.items()
        if not key.endswith("num_batches_tracked")
    }
    return bytes(save(arrays, {"format": "pt"}))


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` under another name, then rename; ModelError if the disk or folder refuses."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        private_folder(path.parent)
        file = part.open("xb")
    except OSError as exc:
        raise ModelError(
            f"cannot write into {path.parent}: {exc.strerror}",
            hint="name another folder in VIDMATTE_MODEL_DIR",
        ) from exc
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as exc:
        part.unlink(missing_ok=True)
        if not isinstance(exc, OSError):
            raise
        raise ModelError(
            f"cannot write {path}: {exc.strerror}", hint="free some space on that disk"
        ) from exc
