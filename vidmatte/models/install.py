"""Put a user's weights file into the model folder, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from vidmatte.errors import ModelError
from vidmatte.models.onnx_file import parse_onnx
from vidmatte.models.registry import Model, find, model_folder, row_named
from vidmatte.models.table import models
from vidmatte.models.weights import folded, parse_tensors, read_bytes, recognise, sha256_of


def install(path: Path, name: str | None = None) -> Model:
    """Convert `path` (.pth, .safetensors, .onnx) to safetensors in the model folder.

    The network is recognised from the weights; `name` chooses the row where several share one
    (u2net, u2net_human_seg). Values and precision stay as they are. Raises ModelError.
    """
    from safetensors.numpy import save

    data = read_bytes(path)
    rows = [row for row in models().values() if row.sha256 is None]
    if name is not None:
        rows = [row_named(name)]
        if rows[0].sha256 is not None:
            raise ModelError(
                f"{name} is embedded and cannot be replaced", hint="use --weights FILE in a run"
            )
    networks = list({row.network.name: row.network for row in rows}.values())
    if path.suffix.lower() == ".onnx":
        network, tensors = parse_onnx(data, path, networks)
    else:
        tensors = parse_tensors(data, path)
        network = recognise(tensors, networks, path)
    folded(network, tensors)
    row = next(row for row in rows if row.network.name == network.name)
    import numpy as np

    arrays = {
        key: np.ascontiguousarray(value)
        for key, value in tensors.items()
        if not key.endswith("num_batches_tracked")
    }
    weights = save(arrays, {"format": "pt"})
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


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` under another name, then rename; ModelError if the disk or folder refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    except OSError as exc:
        raise ModelError(f"cannot write into {path.parent}: {exc.strerror}") from exc
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as exc:
        Path(part).unlink(missing_ok=True)
        raise ModelError(
            f"cannot write {path}: {exc.strerror}", hint="free some space on that disk"
        ) from exc
