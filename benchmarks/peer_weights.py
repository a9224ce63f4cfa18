"""Hand weights to the peers in the form that each of them loads: .pth and .onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.models.table import BN_EPSILON, DECODER, ENCODER, SIDES, Network, convolutions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.weights import FoldedTensors

NETWORK_PX = 320  # what both peers give the network, width and height


def write_pth(network: Network, tensors: FoldedTensors, path: Path) -> None:
    """Save folded weights as an official state dict whose BN changes nothing."""
    import torch

    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    for conv in convolutions(network):
        if conv.normalised:
            zeros = torch.zeros(conv.out_channels)
            state[conv.bn_key("weight")] = zeros + 1
            state[conv.bn_key("bias")] = zeros
            state[conv.bn_key("running_mean")] = zeros
            state[conv.bn_key("running_var")] = zeros + (1 - BN_EPSILON)
            state[conv.bn_key("num_batches_tracked")] = torch.tensor(0)
    torch.save(state, path)


def write_onnx(network: Network, tensors: FoldedTensors, path: Path) -> None:
    """Save the official graph: normalised 1×3×320×320 in, the probabilities d0 … d6 out."""
    import onnx
    from onnx import TensorProto, helper

    graph = Graph(network, tensors)
    outputs = graph.network_outputs("image")
    shape = [1, 3, NETWORK_PX, NETWORK_PX]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    shape = [1, 1, NETWORK_PX, NETWORK_PX]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs]
    body = helper.make_graph(graph.nodes, network.name, [image], ends, graph.constants)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(body, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


class Graph:
    """The ONNX nodes and constants of a network; methods return the name of their output."""

    def __init__(self, network: Network, tensors: FoldedTensors) -> None:
        self.network, self.tensors = network, tensors
        self.blocks = {conv.name: conv for conv in convolutions(network)}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], attributes: dict[str, Any] | None = None) -> str:
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **(attributes or {})))
        return name

    def constant(self, name: str, value: NDArray[np.float32]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def convolve(self, name: str, x: str) -> str:
        conv = self.blocks[name]
        weights = [self.constant(k, self.tensors[k]) for k in (conv.weight_key, conv.bias_key)]
        padding = conv.dilation * (conv.kernel // 2)
        attributes = {"dilations": [conv.dilation] * 2, "pads": [padding] * 4}
        y = self.add("Conv", [x, *weights], attributes)
        return self.add("Relu", [y]) if conv.normalised else y

    def pool(self, x: str) -> str:
        return self.add("MaxPool", [x], {"kernel_shape": [2, 2], "strides": [2, 2]})

    def enlarge(self, x: str, times: int) -> str:
        factors = np.array([1, 1, times, times], np.float32)
        scales = self.constant(f"scales_{len(self.nodes)}", factors)
        attributes = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
        return self.add("Resize", [x, "", scales], attributes)

    def join(self, maps: list[str]) -> str:
        return self.add("Concat", maps, {"axis": 1})

    def block(self, name: str, x: str) -> str:
        """A residual U-block: encode, decode, add its own first map (paper, figure 2e)."""
        stage = self.network.stages[name]
        first = self.convolve(f"{name}.rebnconvin", x)
        encoded = [self.convolve(f"{name}.rebnconv1", first)]
        for level in range(2, stage.height + 1):
            pooled = level < stage.height and not stage.dilated
            deeper = self.pool(encoded[-1]) if pooled else encoded[-1]
            encoded.append(self.convolve(f"{name}.rebnconv{level}", deeper))
        y = encoded.pop()
        for level in range(stage.height - 1, 0, -1):
            if level < stage.height - 1 and not stage.dilated:
                y = self.enlarge(y, 2)
            y = self.convolve(f"{name}.rebnconv{level}d", self.join([y, encoded.pop()]))
        return self.add("Add", [y, first])

    def network_outputs(self, x: str) -> list[str]:
        """The whole network (paper, figure 5); return d0 … d6 after the sigmoid."""
        encoded = [self.block(ENCODER[0], x)]
        for name in ENCODER[1:]:
            encoded.append(self.block(name, self.pool(encoded[-1])))
        decoded = [encoded.pop()]
        for name in DECODER:
            joined = self.join([self.enlarge(decoded[-1], 2), encoded.pop()])
            decoded.append(self.block(name, joined))
        sides = [self.convolve(f"side{i + 1}", decoded[-1 - i]) for i in range(len(SIDES))]
        sides = [sides[0], *(self.enlarge(y, 2**i) for i, y in enumerate(sides[1:], 1))]
        fused = self.convolve("outconv", self.join(sides))
        return [self.add("Sigmoid", [y]) for y in (fused, *sides)]
