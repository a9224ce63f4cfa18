"""How TensorRT and torch-tensorrt are called, with both stubbed: what can be known without them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt as fake
import pytest
import torch

from vidmatte.backends import _tensorrt_compiler as module
from vidmatte.backends._tensorrt_compiler import TensorRTCompiler
from vidmatte.errors import BackendError

# Keyword arguments of convert_exported_program_to_serialized_trt_engine that are the same in tags
# v2.11.0 and v2.13.0 (py/torch_tensorrt/dynamo/_compiler.py), of those that may matter here.
ACCEPTED = {
    "arg_inputs", "device", "disable_tf32", "engine_capability", "hardware_compatible",
    "immutable_weights", "optimization_level", "require_full_compilation", "timing_cache_path",
    "version_compatible", "workspace_size",
}  # fmt: skip
SHAPE_IN, SHAPE_OUT = (2, 64, 64, 3), (2, 32, 32)


class Trt:
    """The part of TensorRT's Python runtime that is used."""

    DataType = SimpleNamespace(UINT8="uint8", FLOAT="float", HALF="half")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    def __init__(self, **tensors: tuple[str, str, tuple[int, ...]]) -> None:
        self.tensors, self.addresses, self.works = tensors, {}, True
        self.num_io_tensors = len(tensors)

    def Runtime(self, logger: object) -> Any:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self if data else None)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def create_execution_context(self) -> Any:
        return self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        return self.works


def trt(kind_in: str = "uint8", kind_out: str = "float") -> Trt:
    return Trt(image=("in", kind_in, SHAPE_IN), output0=("out", kind_out, SHAPE_OUT))


def compiler_with(tensorrt: Trt, monkeypatch: pytest.MonkeyPatch) -> TensorRTCompiler:
    """A compiler without its start, which needs a GPU; the CPU stands for one."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    compiler = TensorRTCompiler.__new__(TensorRTCompiler)
    compiler._tensorrt, compiler.device = tensorrt, torch.device("cpu")
    compiler.environment = fake.ENVIRONMENT
    return compiler


def test_an_engine_runs_on_the_addresses_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = trt()
    engine = compiler_with(tensorrt, monkeypatch).load(b"plan")
    image = torch.zeros(SHAPE_IN, dtype=torch.uint8)
    result = engine(image)
    assert (tuple(result.shape), result.dtype) == (SHAPE_OUT, torch.float32)
    assert tensorrt.addresses == {"image": image.data_ptr(), "output0": result.data_ptr()}
    assert engine(image).data_ptr() == result.data_ptr()
    turned = torch.zeros((2, 64, 3, 64), dtype=torch.uint8).permute(0, 1, 3, 2)
    engine(turned)
    assert tensorrt.addresses["image"] != turned.data_ptr(), "the engine reads contiguous memory"
    engine.close()
    engine.close()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("tensorrt", "data", "reason"),
    [
        (trt(), b"", "refuses its bytes"),
        (trt("half"), b"plan", "maps half to float"),
        (trt(kind_out="half"), b"plan", "maps uint8 to half"),
        (Trt(image=("in", "uint8", SHAPE_IN)), b"plan", "not enough values"),
    ],
)
def test_an_engine_of_another_kind_is_not_loaded(
    tensorrt: Trt, data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=f"cannot be loaded: .*{reason}") as caught:
        compiler_with(tensorrt, monkeypatch).load(data)
    assert caught.value.hint


@pytest.mark.fault
def test_a_failure_at_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = trt()
    engine = compiler_with(tensorrt, monkeypatch).load(b"plan")
    tensorrt.works = False
    with pytest.raises(BackendError, match="the TensorRT engine failed: TensorRT could not start"):
        engine(torch.zeros(SHAPE_IN, dtype=torch.uint8))


class Converter:
    """Stands for torch_tensorrt and its dynamo."""

    def __init__(self, error: Exception | None = None) -> None:
        self.dynamo, self.error, self.given = self, error, dict[str, Any]()

    def convert_exported_program_to_serialized_trt_engine(self, *args: Any, **given: Any) -> bytes:
        print("noise")
        self.given = given
        cache = Path(given["timing_cache_path"])
        assert cache.parent.is_dir()
        assert cache.parent.stat().st_mode & 0o077 == 0, "others may put a cache there"
        if self.error is not None:
            raise self.error
        return bytearray(b"plan")


EXPORTED: Any = SimpleNamespace(example_inputs=((torch.zeros(SHAPE_IN, dtype=torch.uint8),), {}))


def test_compiling_asks_for_what_both_versions_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converter = Converter()
    monkeypatch.setattr(module, "import_library", lambda name: converter)
    assert compiler_with(trt(), monkeypatch).compile(EXPORTED) == b"plan"
    assert set(converter.given) <= ACCEPTED
    assert converter.given["require_full_compilation"] is True
    assert not Path(converter.given["timing_cache_path"]).parent.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.fault
def test_what_compiling_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = Converter(RuntimeError("Conversion of function\n  aten.bincount not supported!"))
    monkeypatch.setattr(module, "import_library", lambda name: converter)
    with pytest.raises(BackendError, match=r"cannot be built: Conversion of function aten") as said:
        compiler_with(trt(), monkeypatch).compile(EXPORTED)
    assert "\n" not in str(said.value)
