"""Seeded damage to weights files, their records and the ranges beside them."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_cases import TEXT_LIES, Case, damage
from safetensors.numpy import save

from vidmatte.models.table import WEIGHTS_FOLDER, convolutions, models
from vidmatte.models.weights import sha256_of

PICTURE = "good.png"
MODEL = "u2netp"


def _tensors(count: int | None = None) -> dict[str, Any]:
    """The first `count` tensors of u2netp, in float16, small random numbers."""
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in convolutions(models()[MODEL].network):
        shapes |= {conv.weight_key: conv.weight_shape, conv.bias_key: (conv.out_channels,)}
    return {
        key: rng.normal(0, 0.05, shapes[key]).astype(np.float16) for key in list(shapes)[:count]
    }


def _pickled(tensors: dict[str, Any], *, as_zip: bool) -> bytes:
    import torch

    file = io.BytesIO()
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    torch.save(state, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def _onnx(tensors: dict[str, Any]) -> bytes:
    """The convolutions of u2netp one after another: enough of a graph for the reader."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Conv", [str(n), c.weight_key, c.bias_key], [str(n + 1)],
                         dilations=[c.dilation] * 2)
        for n, c in enumerate(convolutions(models()[MODEL].network))
    ]  # fmt: skip
    constants = [numpy_helper.from_array(value, key) for key, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [], [], constants)
    return bytes(helper.make_model(graph).SerializeToString())


def make_weights(folder: Path) -> None:
    """Write every undamaged file into `folder`."""
    whole = _tensors()
    installed = save(whole, {"format": "pt"})
    files = {
        "live.safetensors": (WEIGHTS_FOLDER / "live.safetensors").read_bytes(),
        "live_int8.json": (WEIGHTS_FOLDER / "live_int8.json").read_bytes(),
        "tiny.safetensors": save(_tensors(3)),
        "u2netp.safetensors": installed,
        "u2netp.json": json.dumps(
            {"sha256": sha256_of(installed), "source": "u2netp.pth"}
        ).encode(),
        "tiny.pth": _pickled(_tensors(3), as_zip=True),
        "tiny.pt": _pickled(_tensors(3), as_zip=False),
        "u2netp.pth": _pickled(whole, as_zip=True),
        "u2netp.onnx": _onnx(whole),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)


@dataclass(frozen=True, slots=True)
class Use:
    """What is done with a damaged file: its name, the sound files beside it, the command."""

    damaged: str
    beside: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: str = "."


RUN = ("run", PICTURE, "o.png", "--json")
NULL = ("--backend", "null")
IMPORT = ("models", "import")
INSTALLED = ("--model", MODEL)
USES = (
    Use("live.safetensors", (), (*RUN, *NULL, "--weights", "live.safetensors")),
    Use("live.safetensors", (), (*RUN, "--weights", "live.safetensors")),
    Use("live_int8.json", ("live.safetensors",),
        (*RUN, "--weights", "live.safetensors", "--precision", "int8")),
    Use("tiny.safetensors", (), (*RUN, *NULL, "--weights", "tiny.safetensors")),
    Use("tiny.pth", (), (*RUN, *NULL, "--weights", "tiny.pth")),
    Use("tiny.pt", (), (*IMPORT, "tiny.pt")),
    Use("u2netp.pth", (), (*IMPORT, "u2netp.pth")),
    Use("u2netp.safetensors", (), (*IMPORT, "u2netp.safetensors", "--name", MODEL)),
    Use("u2netp.onnx", (), (*IMPORT, "u2netp.onnx")),
    Use("u2netp.safetensors", ("u2netp.json",), (*RUN, *INSTALLED), "models"),
    Use("u2netp.json", ("u2netp.safetensors",), (*RUN, *NULL, *INSTALLED), "models"),
    Use("u2netp.json", ("u2netp.safetensors",), ("models", "list", "--json"), "models"),
)  # fmt: skip


JSON_LIES = (b'"BF16"', b'"I64"', b"null", b"[]", b"{}", b"NaN", b"-1e999", b'"\\u001b[31m"',
             b'"' + b"0" * 64 + b'"', *TEXT_LIES)  # fmt: skip


def _lie_in_json(data: bytes, rng: random.Random) -> bytes:
    """Change a number or a name."""
    words = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]+"', data))
    chosen = rng.choice(words[: rng.choice((3, 20, len(words)))])
    return data[: chosen.start()] + rng.choice(JSON_LIES) + data[chosen.end() :]


def _lie(name: str, data: bytes, rng: random.Random) -> bytes:
    """Lie in a JSON file, or in the JSON that a safetensors file begins with."""
    if name.endswith(".json"):
        return _lie_in_json(data, rng)
    end = 8 + int.from_bytes(data[:8], "little")
    header = _lie_in_json(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _flip_values(data: bytes, rng: random.Random) -> bytes:
    """Change bytes anywhere: mostly values, which are as good as any until they are not finite."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 4, 64))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _damage(
    name: str, bases: dict[str, bytes], rng: random.Random
) -> tuple[bytes, tuple[str, ...]]:
    data, choice = bases[name], rng.random()
    if choice < 0.25:
        return _flip_values(data, rng), ("flip values",)
    if choice < 0.6 and name.endswith((".safetensors", ".json")):
        return _lie(name, data, rng), ("lie",)
    return damage(data, rng, [bases[other] for other in sorted(bases)])


def weights_case(seed: int, bases: dict[str, bytes], picture: bytes) -> Case:
    """Damage one of the `bases` and choose what is done with it; the same for the same seed."""
    rng = random.Random(seed)
    use = rng.choice(USES)
    data, mutations = _damage(use.damaged, bases, rng)
    files = {f"{use.folder}/{name}".removeprefix("./"): bases[name] for name in use.beside}
    files |= {f"{use.folder}/{use.damaged}".removeprefix("./"): data, PICTURE: picture}
    outputs = ("o.png",) if use.arguments[0] == "run" else ()
    return Case(seed, use.damaged, mutations, files, use.arguments, outputs)
