"""OpenVINO on the CPU: the graph is built from the table and the weights, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.backends import Precision, Request
from vidmatte.errors import BackendError, is_out_of_memory
from vidmatte.models.table import DECODER, ENCODER, Convolution, Network, Stage, convolutions
from vidmatte.models.weights import constant_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.weights import FoldedTensors

AUTO_ORDER = {"cpu": 0}
PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("f32", "bf16", "int8")}
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
        if is_out_of_memory(exc):
            raise MemoryError("no memory to load OpenVINO") from exc
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
    it: the same in exact arithmetic, and bf16 stays accurate (see `constant_channels`). With
    `ranges` (largest value of each block's and stage's output) maps and kernels are 8-bit between
    the first convolution and the side maps, but for the blocks that carry such a constant.
    """

    def __init__(
        self,
        network: Network,
        tensors: FoldedTensors,
        *,
        recentre: bool,
        ranges: Mapping[str, float] | None = None,
    ) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.network = network
        self.tensors = tensors
        self.recentre = recentre
        self.ranges = ranges
        self.convolutions = {c.name: c for c in convolutions(network)}

    def convolution(self, name: str, x: Any, *, exact: bool = False) -> Any:
        """Convolution and bias; ReLU where BN was. `exact` keeps the kernel out of int8."""
        conv = self.convolutions[name]
        y = self._convolve(conv, x, self.tensors[conv.weight_key], exact=exact)
        y = self.op.add(y, self._per_channel(self.tensors[conv.bias_key]))
        return self.op.relu(y) if conv.normalised else y

    def _convolve(
        self, conv: Convolution, x: Any, weight: NDArray[np.float32], *, exact: bool
    ) -> Any:
        pad = [conv.dilation * (conv.kernel // 2)] * 2
        kernel = self.op.constant(np.ascontiguousarray(weight))
        if self.ranges is not None and not exact:
            limit = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
            limit = np.maximum(limit, np.finfo(np.float32).tiny)
            kernel = self.op.fake_quantize(kernel, -limit, limit, -limit, limit, 255)
        return self.op.convolution(x, kernel, [conv.stride] * 2, pad, pad, [conv.dilation] * 2)

    def _per_channel(self, values: NDArray[np.float32]) -> Any:
        return self.op.constant(np.ascontiguousarray(values.reshape(1, -1, 1, 1)))

    def quantise(self, x: Any, *names: str) -> Any:
        """Round a map ≥ 0 to 8 bits in int8, by one scale for all maps that `names` join."""
        if self.ranges is None:
            return x
        low, high = np.float32(0), np.float32(max(self.ranges[name] for name in names))
        return self.op.fake_quantize(x, low, high, low, high, 256)

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
        y = self._convolve(conv, self.concat(*maps), weight, exact=bool(taken_in.any()))
        y = self.op.add(y, self._per_channel(bias - taken))
        return self.op.maximum(y, self._per_channel(-taken)) if taken.any() else self.op.relu(y)

    def stage(self, name: str, x: Any, *, exact: bool = False) -> Any:
        """A residual U-block (U²-Net paper, figure 2e); dilated ones keep their size (RSU-4F).

        `exact` says that `x` is not 8-bit.
        """
        stage: Stage = self.network.stages[name]
        height = stage.height

        def joined(level: int) -> tuple[str, str]:
            """Names of the two maps that meet at `level`."""
            deeper = f"{name}.rebnconv{level + 1}" + "d" * (level + 1 < height)
            return f"{name}.rebnconv{level}", deeper

        x_in = self.convolution(f"{name}.rebnconvin", x, exact=exact)
        x_in = self.quantise(x_in, f"{name}.rebnconvin")
        down = [self.quantise(self.convolution(f"{name}.rebnconv1", x_in), *joined(1))]
        for level in range(2, height + 1):
            y = down[-1]
            if not stage.dilated and level < height:
                y = self.pool(y)
            y = self.convolution(f"{name}.rebnconv{level}", y)
            down.append(self.quantise(y, *joined(level)) if level < height else y)
        y = down.pop()
        taken = np.zeros(stage.mid_channels, np.float32)
        for level in range(height - 1, 0, -1):
            skip, block, taken_in = down.pop(), f"{name}.rebnconv{level}d", taken
            taken = self._constants(block)
            y = self.upsample(y, skip)
            if not taken_in.any():
                y = self.quantise(y, *joined(level))
            y = self.decoder_block(block, [y, skip], taken_in, taken)
        return self.op.add(y, x_in)

    def logits(self, x: Any) -> Any:
        """The fused map d0 before its sigmoid (U²-Net paper, figure 5), (N, 1, h, w)."""
        for index in range(len(self.network.stem)):
            x = self.convolution(f"stem.{index}", x, exact=index == 0)
            x = self.quantise(x, f"stem.{index}")
        encoded: list[Any] = []
        for level, name in enumerate(ENCODER, 1):
            exact = level == 1 and not self.network.stem
            y = self.stage(name, self.pool(encoded[-1]) if encoded else x, exact=exact)
            encoded.append(self.quantise(y, *_joined_stages(level)) if level < 6 else y)
        decoded = [encoded.pop()]
        for level, name in zip(range(5, 0, -1), DECODER, strict=True):
            skip = encoded.pop()
            # Quantised behind the resize: OpenVINO does not carry 8 bits through a bilinear one.
            y = self.quantise(self.upsample(decoded[-1], skip), *_joined_stages(level))
            decoded.append(self.stage(name, self.concat(y, skip)))
        sides = [
            self.convolution(f"side{index}", y, exact=True)
            for index, y in enumerate(reversed(decoded), 1)
        ]
        fused = self.concat(*(self.upsample(side, sides[0]) for side in sides))
        return self.convolution("outconv", fused, exact=True)


def _joined_stages(level: int) -> tuple[str, str]:
    """Names of the two stages whose outputs meet in decoder stage `level`, 1..5."""
    return f"stage{level}", "stage6" if level == 5 else f"stage{level + 1}d"


def build_graph(request: Request, precision: Precision) -> Any:
    """Build the openvino.Model: uint8 (N, H, W, 3) RGB → float32 probability (N, h, w).

    `precision` is resolved; "int8" needs the ranges stored beside the weights.
    """
    ov = import_openvino()
    row = request.model.row
    tensors = request.model.load()
    ranges = request.model.int8_ranges(tensors) if precision == "int8" else None
    graph = _Graph(row.network, tensors, recentre=precision != "f32", ranges=ranges)
    op = graph.op
    image = op.parameter([request.batch, *request.size, 3], ov.Type.u8, "image_NHW3")
    planar = op.transpose(op.convert(image, "f32"), np.array([0, 3, 1, 2], np.int64))
    scale = 1 / (255 * np.array(row.std, np.float32))
    shift = -np.array(row.mean, np.float32) / np.array(row.std, np.float32)
    x = op.multiply(planar, op.constant(scale.reshape(1, 3, 1, 1)))
    x = op.add(x, op.constant(shift.reshape(1, 3, 1, 1)))
    alpha = op.squeeze(op.sigmoid(graph.logits(x)), np.array([1], np.int64))
    return ov.Model([op.result(alpha)], [image], row.name)


def _precision(wanted: Precision, *, fast_bf16: bool) -> Precision:
    """Turn "auto" into bf16 where this CPU multiplies it fast, else f32; refuse what it lacks."""
    if wanted == "auto":
        return "bf16" if fast_bf16 else "f32"
    if wanted == "bf16" and not fast_bf16:
        raise BackendError(
            "this CPU has no bf16 arithmetic (AVX-512 BF16 or AMX)", hint="use --precision f32"
        )
    return wanted


@contextmanager
def _translated(model: str) -> Iterator[None]:
    """Turn OpenVINO's errors, which tell of its source files, into one line of ours.

    Raises MemoryError where memory ran out: no other backend would fare better.
    """
    try:
        yield
    except RuntimeError as exc:
        lines = str(exc).strip().splitlines() or ["no reason given"]
        if "alloc" in lines[-1] or "failed to map segment" in str(exc):
            raise MemoryError(lines[-1]) from exc
        raise BackendError(
            f"OpenVINO cannot run {model}: {lines[-1]}", hint="choose --backend torch"
        ) from exc


class OpenVinoBackend:
    """A compiled OpenVINO model with one infer request; see Backend."""

    def __init__(self, request: Request) -> None:
        ov = import_openvino()
        self._model = request.model.name
        with _translated(self._model):
            core = ov.Core()
            # OpenVINO says so where the CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX).
            fast_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        precision = _precision(request.precision, fast_bf16=fast_bf16)
        self.name = "openvino"
        self.input_size = request.size
        self.batch = request.batch
        threads = f"{request.threads} thread{'s' * (request.threads != 1)}"
        self.description = f"OpenVINO {precision} on CPU, {threads}"
        options = {
            "INFERENCE_NUM_THREADS": str(request.threads),
            "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" or not fast_bf16 else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
        }
        self._tensor = ov.Tensor
        graph = build_graph(request, precision)
        with _translated(self._model):
            self._request: Any = core.compile_model(graph, "CPU", options).create_infer_request()
        self._padded: NDArray[np.uint8] | None = None

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        count = len(image_NHW3)
        if count < self.batch:
            image_NHW3 = self._pad(image_NHW3)
        assert image_NHW3.flags.c_contiguous, "OpenVINO reads the buffer as it lies"
        self._request.set_input_tensor(self._tensor(image_NHW3, shared_memory=True))
        with _translated(self._model):
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
