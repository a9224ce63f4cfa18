"""TensorRT itself: what compiles an exported network, and what runs the result.

Compiling is torch-tensorrt's `dynamo.convert_exported_program_to_serialized_trt_engine`: it takes
the whole graph into one engine or fails, and returns the plan that TensorRT serialised, with
nothing pickled around it (py/torch_tensorrt/dynamo/_compiler.py in 2.11.0 and 2.13.0; networks are
strongly typed there, `enabled_precisions` is not given: conversion/_TRTInterpreter.py). Running is
TensorRT's own Python runtime on the addresses of torch's tensors (`deserialize_cuda_engine`,
`set_tensor_address`, `execute_async_v3`), the calls that torch-tensorrt's Python runtime makes in
both versions. Its module classes are not used: `PythonTorchTensorRTModule` is gone in 2.13, and
`TorchTensorRTModule` keeps pickled settings. So a run that finds its engine imports no
torch-tensorrt.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vidmatte.backends._tensorrt_key import Environment
from vidmatte.backends._tensorrt_libraries import import_library
from vidmatte.errors import BackendError
from vidmatte.graphs import DEVICE_WIDE, Graphed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_OPTIONS = {
    "require_full_compilation": True,
    "immutable_weights": True,
    "disable_tf32": True,  # float32 blocks are float32 for a reason
}


class Engine(Protocol):
    """A compiled network, ready to run on its device."""

    def __call__(self, image_NHW3: Tensor) -> Tensor:
        """Map a full batch, uint8, to (N, h, w) float32, valid until the next call.

        Runs in the caller's stream and does not wait for it. Raises BackendError.
        """

    def close(self) -> None:
        """Free its memory; may be called twice."""


class Compiler(Protocol):
    """Makes engines for one device and makes them ready there; raises BackendError."""

    device: torch.device
    environment: Environment
    options: Mapping[str, object]

    def compile(self, exported: ExportedProgram) -> bytes:
        """Compile a graph of `models.graph` whose weights lie on `device`; takes minutes."""

    def load(self, data: bytes) -> Engine:
        """Make what `compile` returned ready to run."""


class TensorRTCompiler:
    """The Compiler for "cuda" or "cuda:N". Raises BackendError without libraries or GPU."""

    options: Mapping[str, object] = _OPTIONS

    def __init__(self, device: str) -> None:
        self._tensorrt = import_library("tensorrt")
        self.device = torch.device(device if ":" in device else f"{device}:0")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device.type != "cuda" or self.device.index >= count:
            raise BackendError(
                f"TensorRT cannot use {device}: torch sees {count} NVIDIA GPU(s)",
                hint="check nvidia-smi and the driver, or use --device cpu",
            )
        major, minor = torch.cuda.get_device_capability(self.device)
        self.environment = Environment(
            torch=torch.__version__,
            torch_tensorrt=importlib.metadata.version("torch-tensorrt"),
            tensorrt=str(self._tensorrt.__version__),
            cuda=str(torch.version.cuda),
            gpu=torch.cuda.get_device_name(self.device),
            capability=f"{major}.{minor}",
            system=platform.system(),
            machine=platform.machine(),
        )

    def compile(self, exported: ExportedProgram) -> bytes:
        """Compile; see Compiler.compile. The timing cache is this call's own and thrown away.

        torch-tensorrt's default for it is a file in the shared temporary folder, which anyone may
        have put there.
        """
        library = import_library("torch_tensorrt")
        image_NHW3 = exported.example_inputs[0][0]
        with tempfile.TemporaryDirectory() as folder, _translated("cannot be built"):
            cache = str(Path(folder) / "timing.cache")
            with contextlib.redirect_stdout(io.StringIO()), torch.cuda.device(self.device):
                data = library.dynamo.convert_exported_program_to_serialized_trt_engine(
                    exported,
                    arg_inputs=[image_NHW3],
                    device=self.device,
                    timing_cache_path=cache,
                    **self.options,
                )
        return bytes(data)

    def load(self, data: bytes) -> Engine:
        """Make an engine ready; see Compiler.load."""
        with _translated("cannot be loaded"), DEVICE_WIDE, torch.cuda.device(self.device):
            return _LoadedEngine(self._tensorrt, data, self.device)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn whatever TensorRT, torch-tensorrt or CUDA raises into one line."""
    try:
        yield
    except Exception as exc:
        reason = " ".join(str(exc).split())[:300]
        raise BackendError(
            f"the TensorRT engine {what}: {reason}", hint="use --backend torch"
        ) from exc


class _LoadedEngine:
    """A deserialised engine with its buffers; one batch per call, recorded as a CUDA graph.

    The engine is enqueued on the caller's stream, which a CUDA graph's is when recording.
    """

    def __init__(self, tensorrt: Any, data: bytes, device: torch.device) -> None:
        self._device = device
        # Each must outlive the next.
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise RuntimeError("TensorRT refuses its bytes")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = tensorrt.TensorIOMode.INPUT
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == is_input]
        outputs = [n for n in names if n not in inputs]
        (self._input,), (self._output,) = inputs, outputs
        types = tuple(self._engine.get_tensor_dtype(n) for n in (self._input, self._output))
        if types != (tensorrt.DataType.UINT8, tensorrt.DataType.FLOAT):
            raise RuntimeError(f"it maps {types[0]} to {types[1]}, not uint8 to float32")
        self._shape = tuple(self._engine.get_tensor_shape(self._input))
        shape = tuple(self._engine.get_tensor_shape(self._output))
        self._result = torch.empty(shape, dtype=torch.float32, device=device)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("no memory for its work")
        self._graphed = Graphed(self._enqueue, device)

    def __call__(self, image_NHW3: Tensor) -> Tensor:
        """Run a full batch; see Engine."""
        assert tuple(image_NHW3.shape) == self._shape
        with _translated("failed"), torch.cuda.device(self._device):
            return self._graphed(image_NHW3.contiguous())[0]

    def _enqueue(self, image_NHW3: Tensor) -> tuple[Tensor]:
        self._context.set_tensor_address(self._input, image_NHW3.data_ptr())
        self._context.set_tensor_address(self._output, self._result.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not start it")
        return (self._result,)

    def close(self) -> None:
        """Free the engine's memory."""
        with DEVICE_WIDE:
            self._graphed.forget()
            self._context = self._engine = None
