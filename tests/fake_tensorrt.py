"""Stands for TensorRT where there is none: its engines are torch in float32, or told to be wrong.

`python fake_tensorrt.py ARGUMENTS` is the command line with this compiler in the real one's place.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vidmatte.backends import Request, tensorrt
from vidmatte.backends import torch as torch_backend
from vidmatte.backends._tensorrt_build import command_of
from vidmatte.backends._tensorrt_key import Environment
from vidmatte.errors import BackendError
from vidmatte.models.graph import MatteGraph
from vidmatte.models.registry import resolve_model

ENVIRONMENT = Environment(
    "2.13.0", "2.13.0", "11.0.0", "13.0", "NVIDIA H100 80GB HBM3", "9.0", "Linux", "x86_64"
)
SIZE = (64, 64)
TAIL = os.urandom(64)  # what a file's damage may hit


@cache
def network() -> MatteGraph:
    model = resolve_model("live")
    return MatteGraph(model.row, model.load(), torch.float32)


def request(batch: int = 2, **changes: Any) -> Request:
    return Request(resolve_model("live"), "cpu", SIZE, batch, "auto", 1, **changes)


@cache
def pictures(count: int = 4) -> np.ndarray:
    """A person before the generated clip's backgrounds."""
    from vidmatte.sources.synthetic import SyntheticClip

    height, width = SIZE
    clips = [SyntheticClip(width=width, height=height, seed=seed) for seed in range(count)]
    return np.stack([clip.render(clip.frame_count // 2).image for clip in clips])


class FakeEngine:
    def __init__(self, mode: str) -> None:
        self.mode, self.closed, self.batches = mode, False, 0
        self._buffer: Tensor | None = None

    def __call__(self, image_NHW3: Tensor) -> Tensor:
        assert not self.closed
        self.batches += 1
        with torch.inference_mode():
            answer = network()(image_NHW3)
        if self.mode == "wrong":
            answer = 1 - answer
        if self.mode == "nan":
            answer = answer * float("nan")
        if self.mode == "fails":
            raise BackendError("the TensorRT engine failed: told to", hint="do not tell it to")
        # As the real one: a result is valid until the next call.
        self._buffer = answer if self._buffer is None else self._buffer.copy_(answer)
        return self._buffer

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeCompiler:
    """`mode` is what its engines do: "right", "wrong", "nan", "fails", or "unloadable"."""

    mode: str = "right"
    seconds: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    environment: Environment = ENVIRONMENT
    options: Mapping[str, object] = field(default_factory=lambda: {"immutable_weights": True})
    compiled: int = 0
    engines: list[FakeEngine] = field(default_factory=list)

    def compile(self, exported: object) -> bytes:
        self.compiled += 1
        time.sleep(self.seconds)
        return self.mode.encode() + b"\n" + TAIL

    def load(self, data: bytes) -> FakeEngine:
        mode = data.partition(b"\n")[0].decode()
        if mode == "unloadable":
            raise BackendError("the TensorRT engine cannot be loaded: told to", hint="build it")
        self.engines.append(FakeEngine(mode))
        return self.engines[-1]


def without_export(patch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that an export takes; what is exported has its own tests."""
    patch.setattr("vidmatte.models.graph.export_graph", lambda *_, **__: None)


def use(patch: pytest.MonkeyPatch, compiler: FakeCompiler) -> FakeCompiler:
    """Put `compiler` in the real one's place."""
    without_export(patch)
    patch.setattr("vidmatte.backends.usable_cores", lambda: 1)  # small pictures; others work too
    for backend in (tensorrt, torch_backend):  # the CPU stands for a GPU
        patch.setitem(backend.PRECISIONS, "cpu", ("f32", "f16"))
    patch.setattr("vidmatte.backends.tensorrt.open_compiler", lambda device: compiler)
    return compiler


def child(request: Request, mode: str = "right", seconds: float = 0.0) -> list[str]:
    """A command that builds with the fake, as the real one's child does."""
    real = command_of(request)
    arguments = [part for part in real[real.index("vidmatte") + 1 :] if part != "--low-priority"]
    return [sys.executable, str(Path(__file__)), mode, str(seconds), *arguments]


if __name__ == "__main__":
    from vidmatte.cli import main

    use(pytest.MonkeyPatch(), FakeCompiler(sys.argv[1], float(sys.argv[2])))
    sys.argv[1:] = sys.argv[3:]
    main()
