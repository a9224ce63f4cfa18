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
from vidmatte.models.weights import constant_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.weights import FoldedTensors

AUTO_ORDER = {"cpu": 0}
PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("f32", "bf16")}
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


def _bf16_parts(values: NDArray[np.float32], count: int = 3) -> NDArray[np.float32]:
    """Split `values` (out, k, k) into `count` bf16 numbers that add up to them, along axis 1."""
    parts = []
    rest = values.astype(np.float32)
    for _ in range(count):
        # bf16 is the upper half of a float32: cutting the lower half rounds towards zero.
        part = (np.ascontiguousarray(rest).view(np.uint32) & 0xFFFF0000).view(np.float32)
        parts.append(part)
        rest = rest - part
    return np.stack(parts, 1)


class _Graph:
    """Builds the network out of OpenVINO operations; the methods follow the figures.

    With `recentre`, channels that carry a large constant lose it and the next block makes up for
    it: the same in exact arithmetic, and bf16 stays accurate (see `constant_channels`).
    """

    def __init__(self, network: Network, tensors: FoldedTensors, *, recentre: bool) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.network = network
        self.tensors = tensors
        self.recentre = recentre
        self.convolutions = {c.name: c for c in convolutions(network)}

    def convolution(self, name: str, x: Any) -> Any:
        """Convolution and bias; ReLU where BN was."""
        conv = self.convolutions[name]
        y = self._convolve(conv, x, self.tensors[conv.weight_key])
        y = self.op.add(y, self._per_channel(self.tensors[conv.bias_key]))
        return self.op.relu(y) if conv.normalised else y

    def _convolve(self, conv: Convolution, x: Any, weight: NDArray[np.float32]) -> Any:
        pad = [conv.dilation * (conv.kernel // 2)] * 2
        kernel = self.op.constant(np.ascontiguousarray(weight))
        return self.op.convolution(x, kernel, [conv.stride] * 2, pad, pad, [conv.dilation] * 2)

    def _per_channel(self, values: NDArray[np.float32]) -> Any:
        return self.op.constant(np.ascontiguousarray(values.reshape(1, -1, 1, 1)))

    def _constants(self, block: str) -> NDArray[np.float32]:
        conv = self.convolutions[block]
        if not self.recentre:
            return np.zeros(conv.out_channels, np.float32)
        return constant_channels(conv, self.tensors)

    def decoder_block(
        self, name: str, maps: list[Any], taken_in: NDArray[np.float32], taken: NDArray[np.float32]
    ) -> Any:
        """Convolve the joined `maps`, of which the first lacks `taken_in`; leave out `taken`.

        What is missing from the input comes back, together with the bias, as weights of inputs
        that are 1 inside the picture, so that the zero padding outside it stays what it was.
        """
        conv = self.convolutions[name]
        weight, bias = self.tensors[conv.weight_key], self.tensors[conv.bias_key]
        if not (taken_in.any() or taken.any()):
            return self.convolution(name, self.concat(*maps))
        if taken_in.any():
            lost = np.einsum("ocij,c->oij", weight[:, : len(taken_in)], taken_in)
            lost[:, 1, 1] += bias
            bias = np.zeros_like(bias)
            parts = _bf16_parts(lost)
            weight = np.concatenate([weight, parts], 1)
            shape = [*maps[1].get_output_shape(0)]
            ones = np.ones((shape[0], parts.shape[1], *shape[2:]), np.float32)
            maps = [*maps, self.op.constant(ones)]
        y = self._convolve(conv, self.concat(*maps), weight)
        y = self.op.add(y, self._per_channel(bias - taken))
        return self.op.maximum(y, self._per_channel(-taken)) if taken.any() else self.op.relu(y)

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
        taken = np.zeros(stage.mid_channels, np.float32)
        for level in range(stage.height - 1, 0, -1):
            skip, block, taken_in = down.pop(), f"{name}.rebnconv{level}d", taken
            taken = self._constants(block)
            y = self.decoder_block(block, [self.upsample(y, skip), skip], taken_in, taken)
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


def build_graph(request: Request, *, recentre: bool) -> Any:
    """Build the openvino.Model: uint8 (N, H, W, 3) RGB → float32 probability (N, h, w)."""
    ov = import_openvino()
    row = request.model.row
    graph = _Graph(row.network, request.model.load(), recentre=recentre)
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
        graph = build_graph(request, recentre=precision != "f32")
        self._request: Any = core.compile_model(graph, "CPU", options).create_infer_request()
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
