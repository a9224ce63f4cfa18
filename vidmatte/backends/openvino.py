"""OpenVINO on the CPU: the graph is built from the table and the weights, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.backends import Precision, Request
from vidmatte.errors import BackendError
from vidmatte.models.table import DECODER, ENCODER, Convolution, Network, Stage, convolutions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.weights import FoldedTensors

AUTO_ORDER = {"cpu": 0}
DEVICES = ("cpu",)
_CONVERTER = "openvino.tools.ovc"


@contextmanager
def _without_converter() -> Iterator[None]:
    """Import openvino without its model converter.

    `import openvino` imports `openvino.tools.ovc`, whose `__init__` sends a usage event to
    Google Analytics unless the user once declined (openvino 2026.4, tools/ovc/__init__.py). The
    runtime needs none of it, and openvino passes over an ImportError there. Saves 60 ms, too.
    """
    absent = "openvino" not in sys.modules and _CONVERTER not in sys.modules
    if absent:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[_CONVERTER]


def import_openvino() -> Any:
    """Import openvino with its telemetry off; BackendError if it cannot be imported."""
    try:
        with _without_converter():
            import openvino
    except ImportError as exc:
        raise BackendError(
            f"OpenVINO cannot be imported: {exc}",
            hint="pip install openvino, or choose --backend torch",
        ) from exc
    return openvino


class _Graph:
    """Builds the network out of OpenVINO operations; the methods follow the figures."""

    def __init__(self, network: Network, tensors: FoldedTensors) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.network = network
        self.tensors = tensors
        self.convolutions = {c.name: c for c in convolutions(network)}

    def convolution(self, name: str, x: Any) -> Any:
        """Convolution and bias; ReLU where BN was."""
        conv: Convolution = self.convolutions[name]
        pad = [conv.dilation * (conv.kernel // 2)] * 2
        kernel = self.op.constant(np.ascontiguousarray(self.tensors[conv.weight_key]))
        stride, dilation = [conv.stride] * 2, [conv.dilation] * 2
        y = self.op.convolution(x, kernel, stride, pad, pad, dilation)
        y = self.op.add(y, self.op.constant(self.tensors[conv.bias_key].reshape(1, -1, 1, 1)))
        return self.op.relu(y) if conv.normalised else y

    def pool(self, x: Any) -> Any:
        """Halve height and width by the maximum."""
        return self.op.max_pool(
            x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], "floor", index_element_type="i64"
        ).output(0)

    def upsample(self, x: Any, like: Any) -> Any:
        """Resize bilinearly, half-pixel centres, to the height and width of `like`."""
        size, target = list(x.get_output_shape(0))[2:], list(like.get_output_shape(0))[2:]
        if size == target:
            return x
        return self.op.interpolate(
            x,
            np.array(target, np.int64),
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=np.array([2, 3], np.int64),
        )

    def concat(self, *maps: Any) -> Any:
        """Concatenate along the channels."""
        return self.op.concat(list(maps), 1)

    def stage(self, name: str, x: Any) -> Any:
        """A residual U-block (U²-Net paper, figure 2e); dilated ones keep their size (RSU-4F)."""
        stage: Stage = self.network.stages[name]
        x_in = self.convolution(f"{name}.rebnconvin", x)
        down = [self.convolution(f"{name}.rebnconv1", x_in)]
        for level in range(2, stage.height + 1):
            y = down[-1]
            if not stage.dilated and level < stage.height:
                y = self.pool(y)
            down.append(self.convolution(f"{name}.rebnconv{level}", y))
        y = down.pop()
        for level in range(stage.height - 1, 0, -1):
            skip = down.pop()
            y = self.concat(self.upsample(y, skip), skip)
            y = self.convolution(f"{name}.rebnconv{level}d", y)
        return self.op.add(y, x_in)

    def logits(self, x: Any) -> Any:
        """The fused map d0 before its sigmoid (U²-Net paper, figure 5), (N, 1, h, w)."""
        for index in range(len(self.network.stem)):
            x = self.convolution(f"stem.{index}", x)
        encoded: list[Any] = []
        for name in ENCODER:
            encoded.append(self.stage(name, self.pool(encoded[-1]) if encoded else x))
        decoded = [encoded.pop()]
        for name in DECODER:
            skip = encoded.pop()
            decoded.append(self.stage(name, self.concat(self.upsample(decoded[-1], skip), skip)))
        sides = [
            self.convolution(f"side{index}", y) for index, y in enumerate(reversed(decoded), 1)
        ]
        return self.convolution(
            "outconv", self.concat(*(self.upsample(s, sides[0]) for s in sides))
        )


def build_graph(request: Request) -> Any:
    """Build the openvino.Model: uint8 (N, H, W, 3) RGB → float32 probability (N, h, w)."""
    ov = import_openvino()
    row = request.model.row
    graph = _Graph(row.network, request.model.load())
    op = graph.op
    image = op.parameter([request.batch, *request.size, 3], ov.Type.u8, "image_NHW3")
    planar = op.transpose(op.convert(image, "f32"), np.array([0, 3, 1, 2], np.int64))
    scale = 1 / (255 * np.array(row.std, np.float32))
    shift = -np.array(row.mean, np.float32) / np.array(row.std, np.float32)
    x = op.multiply(planar, op.constant(scale.reshape(1, 3, 1, 1)))
    x = op.add(x, op.constant(shift.reshape(1, 3, 1, 1)))
    alpha = op.squeeze(op.sigmoid(graph.logits(x)), np.array([1], np.int64))
    return ov.Model([op.result(alpha)], [image], row.name)


def _precision(core: Any, wanted: Precision) -> Precision:
    """Turn "auto" into bf16 where this CPU multiplies it fast, else f32; refuse what it lacks."""
    fast_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted == "auto":
        return "bf16" if fast_bf16 else "f32"
    if wanted == "bf16" and not fast_bf16:
        raise BackendError(
            "this CPU has no bf16 arithmetic (AVX-512 BF16 or AMX)", hint="use --precision f32"
        )
    if wanted == "f16":
        raise BackendError("f16 is for CUDA", hint="use --precision bf16 or f32 on a CPU")
    return wanted


class OpenVinoBackend:
    """A compiled OpenVINO model with one infer request; see Backend."""

    def __init__(self, request: Request) -> None:
        ov = import_openvino()
        core = ov.Core()
        precision = _precision(core, request.precision)
        self.name = "openvino"
        self.input_size = request.size
        self.batch = request.batch
        threads = f"{request.threads} thread{'s' * (request.threads != 1)}"
        self.description = f"OpenVINO {precision} on CPU, {threads}"
        options = {
            "INFERENCE_NUM_THREADS": str(request.threads),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        self._tensor = ov.Tensor
        self._request: Any = core.compile_model(
            build_graph(request), "CPU", options
        ).create_infer_request()
        self._padded: NDArray[np.uint8] | None = None

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        count = len(image_NHW3)
        if count < self.batch:
            image_NHW3 = self._pad(image_NHW3)
        assert image_NHW3.flags.c_contiguous, "OpenVINO reads the buffer as it lies"
        self._request.set_input_tensor(self._tensor(image_NHW3, shared_memory=True))
        self._request.infer()
        result: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return result[:count]

    def _pad(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._padded is None:
            self._padded = np.zeros((self.batch, *self.input_size, 3), np.uint8)
        self._padded[: len(image_NHW3)] = image_NHW3
        return self._padded

    def close(self) -> None:
        """Free the compiled model."""
        self._request = None


def open_backend(request: Request) -> OpenVinoBackend:
    """Build and compile for the CPU."""
    return OpenVinoBackend(request)
