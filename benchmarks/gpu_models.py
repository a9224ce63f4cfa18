"""The networks that gpu.py measures, and how to read weights without the package `safetensors`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidmatte.models.registry import Model, from_file
from vidmatte.models.table import WEIGHTS_FOLDER, Network, convolutions, models

Tensors = dict[str, NDArray[Any]]
NAMES = ("u2net", "u2netp", "live")
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read_safetensors(data: bytes) -> Tensors:
    """Parse a safetensors file: 8 bytes of length, a JSON header, the raw values."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: _array(facts, body) for name, facts in header.items()}


def _array(facts: dict[str, Any], body: bytes) -> NDArray[Any]:
    begin, end = facts["data_offsets"]
    return np.frombuffer(body[begin:end], _DTYPES[facts["dtype"]]).reshape(facts["shape"])


def random_tensors(network: Network, seed: int = 0) -> Tensors:
    """Return folded weights whose maps stay well inside FP16's range: good for speed only.

    He's initialisation (2015, eq. 10) for ReLU; the sum at the end of a block would double the
    power of its maps at each of the eleven stages, so its two terms are made smaller.
    """
    generator = np.random.default_rng(seed)
    tensors: Tensors = {}
    for conv in convolutions(network):
        spread = math.sqrt(2 / (conv.in_channels * conv.kernel**2))
        if conv.name.endswith(("rebnconvin", "rebnconv1d")):
            spread *= 0.6
        if not conv.normalised:
            spread *= 0.5
        kernel = generator.standard_normal(conv.weight_shape, np.float32) * np.float32(spread)
        tensors[conv.weight_key] = kernel
        tensors[conv.bias_key] = np.zeros(conv.out_channels, np.float32)
    return tensors


def embedded_tensors() -> Tensors:
    """Return the weights of `live`, checked against their pinned SHA-256."""
    data = (WEIGHTS_FOLDER / "live.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == models()["live"].sha256, "live.safetensors"
    return read_safetensors(data)


def tensors_of(name: str, u2netp: Path | None) -> tuple[Tensors, bool]:
    """Return weights for `name`, and whether they are trained."""
    if name == "live":
        return embedded_tensors(), True
    if name == "u2netp" and u2netp is not None:
        return read_safetensors(u2netp.read_bytes()), True
    return random_tensors(models()[name].network), False


class Zoo:
    """Every network with weights, as files that vidmatte reads like a user's own.

    They are written as state dicts, since torch reads those with nothing else installed.
    """

    def __init__(self, folder: Path, u2netp: Path | None, names: Sequence[str] = NAMES) -> None:
        self.trained: dict[str, bool] = {}
        self.paths: dict[str, Path] = {}
        self.models: dict[str, Model] = {}
        for name in names:
            tensors, self.trained[name] = tensors_of(name, u2netp)
            path = self.paths[name] = folder / f"{name}.pth"
            torch.save({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, path)
            self.models[name] = from_file(path, name)
