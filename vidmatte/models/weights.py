"""Read weights files without trusting them, recognise the network, fold BN in float32."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidmatte.errors import ModelError
from vidmatte.models.table import BN_EPSILON, Convolution, Network, convolutions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]
    FoldedTensors = dict[str, NDArray[np.float32]]

# What torch.load raises on bytes that are not a checkpoint: its readers check little themselves.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
SUFFIXES = (".safetensors", ".pth", ".pt")
MAX_BYTES = 1 << 30
"""u2net, the largest, takes 176 MB in float32."""
CONSTANT_BIAS = 128.0
"""Folded bias above which a decoder channel counts as a constant in disguise."""
_IMPORT_HINT = "official files come from https://github.com/xuebinqin/U-2-Net; download it again"


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Read a weights file whole; ModelError if it is missing, unreadable, no file or too large.

    The name is looked up once: what is checked is what is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            return _read_regular(descriptor, path)
        finally:
            os.close(descriptor)
    except FileNotFoundError as exc:
        raise ModelError(f"weights file {path} does not exist", hint="check the name") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "that is no file name"
        raise ModelError(
            f"weights file {path} cannot be read: {reason}", hint="check the file's permissions"
        ) from exc


def _read_regular(descriptor: int, path: Path) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a file", hint="name a .safetensors or .pth file")
    if status.st_size <= MAX_BYTES:
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            return data
    raise ModelError(
        f"{path} is too large for weights of this family", hint="check that it is the right file"
    )


def parse_tensors(data: bytes, path: Path) -> Tensors:
    """Parse the bytes of a .safetensors or .pth file into tensors by official name.

    `path` names the file in errors and, by its suffix, the format. A pickle is read by torch with
    weights_only=True, which runs no code of the file. Raises ModelError.
    """
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(f"{path} is a web page, not weights", hint=_IMPORT_HINT)
    if path.suffix.lower() == ".safetensors":
        tensors = _parse_safetensors(data, path)
    elif path.suffix.lower() in SUFFIXES:
        tensors = _parse_pickle(data, path)
    else:
        known = ", ".join(SUFFIXES)
        raise ModelError(
            f"{path} is not a weights file: expected {known}",
            hint="an .onnx file is first imported: vidmatte models import FILE",
        )
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _parse_safetensors(data: bytes, path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: Tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(
            f"{path} is damaged or not a safetensors file of f16, f32 or f64: {exc}",
            hint=_IMPORT_HINT,
        ) from exc
    return tensors


def _parse_pickle(data: bytes, path: Path) -> Tensors:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as exc:
        # Torch's own words tell how to run it all the same: not to be passed on.
        raise ModelError(
            f"{path} is damaged or holds more than weights, and was not run", hint=_IMPORT_HINT
        ) from exc
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise ModelError(f"{path} holds no state dict", hint="save model.state_dict()")
    return {str(key): value.float().numpy() for key, value in state.items()}


def _mismatch(network: Network, tensors: Tensors) -> str | None:
    """Say the first thing in which `tensors` are not weights of `network`, or None."""
    for conv in convolutions(network):
        expected = {conv.weight_key: conv.weight_shape, conv.bias_key: (conv.out_channels,)}
        for key, shape in expected.items():
            found = tensors.get(key)
            if found is None:
                return f"{key} is missing"
            if tuple(found.shape) != shape:
                return f"{key} is {tuple(found.shape)}, not {shape}"
    return None


def recognise(tensors: Tensors, networks: list[Network], path: Path) -> Network:
    """Return the network whose every kernel and bias has the shape found in `tensors`.

    Raises ModelError that names the first difference from the likeliest network.
    """
    reasons = []
    for network in networks:
        reason = _mismatch(network, tensors)
        if reason is None:
            return network
        reasons.append(f"{network.name}: {reason}")
    raise ModelError(
        f"{path} holds no weights of the U²-Net family ({'; '.join(reasons)})",
        hint="known networks: " + ", ".join(n.name for n in networks),
    )


def folded(network: Network, tensors: Tensors, path: Path | None = None) -> FoldedTensors:
    """Return each convolution's kernel and bias in float32, BN (if it is on disk) folded in.

    W' = W·γ/√(σ²+ε), b' = (b−μ)·γ/√(σ²+ε) + β (Ioffe & Szegedy 2015, Algorithm 1, at inference).
    Keys are the official conv keys; `path` names the file in errors. Raises ModelError if a value
    is not finite.
    """
    import numpy as np

    named = "" if path is None else f"{path}: "
    result: FoldedTensors = {}
    for conv in convolutions(network):
        try:
            with np.errstate(all="ignore"):  # what comes of it is looked at below
                weight, bias = _fold_one(conv, tensors)
        except KeyError as exc:
            raise ModelError(
                f"{named}the weights lack {exc.args[0]}",
                hint="save the whole model.state_dict()",
            ) from exc
        except ValueError as exc:
            raise ModelError(
                f"{path or 'the weights'}: the normalisation of {conv.name} has a wrong shape",
                hint="get the file again",
            ) from exc
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ModelError(
                f"{path or 'the weights'}: {conv.name} is not made of finite numbers",
                hint="get the file again",
            )
        result[conv.weight_key] = weight
        result[conv.bias_key] = bias
    return result


def _fold_one(
    conv: Convolution, tensors: Tensors
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    weight = np.asarray(tensors[conv.weight_key], np.float32)
    bias = np.asarray(tensors[conv.bias_key], np.float32)
    if conv.bn_key("running_var") not in tensors:
        return weight, bias
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (
        np.asarray(tensors[conv.bn_key(part)], np.float32).reshape(conv.out_channels)
        for part in parts
    )
    scale = gamma / np.sqrt(variance + np.float32(BN_EPSILON))
    return weight * scale[:, None, None, None], (bias - mean) * scale + beta


def constant_channels(conv: Convolution, tensors: FoldedTensors) -> NDArray[np.float32]:
    """Return per output channel of decoder block `conv` the constant it carries, mostly 0.

    u2netp's stage2d.rebnconv2d has one channel that is 226 to 228 everywhere, and the next block
    cancels it with a bias of -1361: bf16 holds neither to better than 1 and 8. On photographs
    that block alone makes .0144 of mean |Δα| in bf16; without it .0016 remain. The last block of
    a stage (`rebnconv1d`) is left alone, since others than a decoder block read it.
    """
    import numpy as np

    bias = tensors[conv.bias_key]
    if not conv.name.endswith("d") or conv.name.endswith("rebnconv1d"):
        return np.zeros_like(bias)
    return np.where(bias > CONSTANT_BIAS, bias, np.float32(0))


def mean_magnitude(tensors: FoldedTensors) -> float:
    """Return the mean |W| over all folded kernels and biases: tells weights apart, not formats."""
    import numpy as np

    total = sum(float(np.abs(value).sum(dtype=np.float64)) for value in tensors.values())
    return total / sum(value.size for value in tensors.values())
