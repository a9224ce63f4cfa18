"""Take the weights out of an ONNX export of the family; needs the extra `onnx`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidmatte.errors import ModelError
from vidmatte.models.table import Convolution, Network, convolutions

if TYPE_CHECKING:
    from vidmatte.models.weights import Tensors

_HINT = "export the official model, or import its .pth instead"


def parse_onnx(data: bytes, path: Path, networks: list[Network]) -> tuple[Network, Tensors]:
    """Return the network and its tensors by official name from the bytes of an .onnx file.

    Exporters rename folded weights, so the convolutions are taken in the order of the graph, which
    for an export of the official forward is that of the state dict; number, kernel shapes and
    dilations must all agree. BN may be folded or not. Raises ModelError.
    """
    graph = _graph(data, path)
    convs = [node for node in graph.node if node.op_type == "Conv"]
    values = _Values(graph, path)
    for network in networks:
        expected = list(convolutions(network))
        pairs = list(zip(expected, convs, strict=False))
        if len(expected) == len(convs) and all(values.fits(c, node) for c, node in pairs):
            tensors: dict[str, Any] = {}
            for conv, node in pairs:
                values.take(conv, node, tensors)
            return network, tensors
    raise ModelError(
        f"{path} is no export of the U²-Net family ({len(convs)} convolutions)", hint=_HINT
    )


def _graph(data: bytes, path: Path) -> Any:
    try:
        import onnx

        decode_error = importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as exc:
        raise ModelError(
            "reading .onnx files needs the package onnx", hint="pip install 'vidmatte[onnx]'"
        ) from exc
    try:
        return onnx.load_model_from_string(data).graph
    except decode_error as exc:
        raise ModelError(f"{path} is damaged or no ONNX file", hint=_HINT) from exc


class _Values:
    """The constants of a graph by name, and the BN node behind each convolution."""

    def __init__(self, graph: Any, path: Path) -> None:
        self.path = path
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.bn = {n.input[0]: n for n in graph.node if n.op_type == "BatchNormalization"}

    def array(self, name: str) -> Any:
        """Return a constant as an array; never from another file than this one."""
        from onnx import TensorProto, numpy_helper

        tensor = self.constants.get(name)
        if tensor is None:
            raise ModelError(f"{self.path} lacks the constant {name}", hint=_HINT)
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{self.path} keeps its weights in another file", hint=_HINT)
        return numpy_helper.to_array(tensor)

    def fits(self, conv: Convolution, node: Any) -> bool:
        """Whether `node` has the kernel shape and dilation of `conv`."""
        tensor = self.constants.get(node.input[1])
        dilations = next((list(a.ints) for a in node.attribute if a.name == "dilations"), [1, 1])
        shape = None if tensor is None else tuple(tensor.dims)
        return shape == conv.weight_shape and dilations == [conv.dilation] * 2

    def take(self, conv: Convolution, node: Any, tensors: dict[str, Any]) -> None:
        """Add the tensors of `conv` under their official names."""
        import numpy as np

        tensors[conv.weight_key] = self.array(node.input[1])
        bias = np.zeros(conv.out_channels, np.float32)
        tensors[conv.bias_key] = self.array(node.input[2]) if len(node.input) > 2 else bias
        behind = self.bn.get(node.output[0])
        if behind is not None:
            parts = ("weight", "bias", "running_mean", "running_var")
            for part, name in zip(parts, behind.input[1:], strict=True):
                tensors[conv.bn_key(part)] = self.array(name)
