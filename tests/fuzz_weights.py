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
    Use("u2netp.safetensors", ("u2netp.json",), (*RUN, *NULL, *INSTALLED), "models"),
    Use("u2netp.json", ("u2netp.safetensors",), (*RUN, *NULL, *INSTALLED), "models"),
    Use("u2netp.json", ("u2netp.safetensors",), ("models", "list", "--json"), "models"),
)  # fmt: skip


def _lie_in_header(data: bytes, rng: random.Random) -> bytes:
    """Change a number or a name in the JSON that a safetensors file begins with."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    words = list(re.finditer(rb'\d+|"F16"|"F32"|"[a-z_]+"', header))
    chosen = rng.choice(words[: rng.choice((3, 20, len(words)))])
    lies = (b'"BF16"', b'"I64"', b"null", b"[]", b'"\\u001b[31m"', *TEXT_LIES)
    header = header[: chosen.start()] + rng.choice(lies) + header[chosen.end() :]
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def weights_case(seed: int, bases: dict[str, bytes], picture: bytes) -> Case:
    """Damage one of the `bases` and choose what is done with it; the same for the same seed."""
    rng = random.Random(seed)
    use = rng.choice(USES)
    data, mutations = bases[use.damaged], ("lie in the header",)
    if use.damaged.endswith(".safetensors") and rng.random() < 0.4:
        data = _lie_in_header(data, rng)
    else:
        data, mutations = damage(data, rng, [bases[name] for name in sorted(bases)])
    files = {f"{use.folder}/{name}".removeprefix("./"): bases[name] for name in use.beside}
    files |= {f"{use.folder}/{use.damaged}".removeprefix("./"): data, PICTURE: picture}
    outputs = ("o.png",) if use.arguments[0] == "run" else ()
    return Case(seed, use.damaged, mutations, files, use.arguments, outputs)
