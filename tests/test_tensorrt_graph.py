"""What is exported for TensorRT: only operators that its converter takes, and the right answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_tensorrt import pictures
from test_backends import U2NETP, model_named
from torch.export import ExportedProgram

from vidmatte.backends import open_backend
from vidmatte.backends._tensorrt_key import GRAPH_VERSION
from vidmatte.models.graph import MatteGraph, export_graph
from vidmatte.models.registry import Model
from vidmatte.models.table import convolutions, models

# aten operators with a converter in pytorch/TensorRT, py/torch_tensorrt/dynamo/conversion/
# aten_ops_converters.py, the same in tags v2.11.0 and v2.13.0. The validators of the 2.13.0 wheel,
# asked about every node of these networks after its own lowering (TensorRT stubbed), refused none.
CONVERTED = {
    "aten._to_copy.default",
    "aten.add.Tensor",
    "aten.cat.default",
    "aten.convolution.default",
    "aten.max_pool2d.default",
    "aten.mul.Tensor",
    "aten.permute.default",
    "aten.relu.default",
    "aten.sigmoid.default",
    "aten.squeeze.dim",
    "aten.upsample_bilinear2d.vec",
}
# What `run_decompositions` makes of what is exported.
DECOMPOSED = {
    "aten.conv2d.default": "aten.convolution.default",
    "aten.to.dtype": "aten._to_copy.default",
}
# Erased before conversion: lowering/passes/remove_assert_nodes.py.
REMOVED = {"aten._assert_tensor_metadata.default"}
# What its `_to_copy` converter casts to (aten_ops_converters.py, to_copy_dtype_validator).
CASTS = {torch.float32, torch.float16}
LIVE_OPERATORS = {"aten.convolution.default": 120, "aten.max_pool2d.default": 33}
SAME = 1e-6  # of one and the same arithmetic; blocks may be summed in another order


def model_of(name: str) -> Model:
    if name == "live" or (name == "u2netp" and U2NETP.is_file()):
        return model_named(name)
    row = models()[name]  # weights that are not here: but for float32 blocks they do not matter
    tensors: dict[str, Any] = {}
    for conv in convolutions(row.network):
        tensors[conv.weight_key] = np.zeros(conv.weight_shape, np.float32)
        tensors[conv.bias_key] = np.zeros(conv.out_channels, np.float32)
    return Model(row, Path("none"), "file", "", tensors=tensors)


def operators_of(exported: ExportedProgram) -> Counter[str]:
    """Count operators as the converter meets them: casts that change nothing are gone."""
    counted: Counter[str] = Counter()
    for node in exported.graph.nodes:
        name = DECOMPOSED.get(str(node.target), str(node.target))
        if node.op != "call_function" or name in REMOVED:
            continue
        if name == "aten._to_copy.default":
            cast = node.args[1]
            assert cast in CASTS
            if node.args[0].meta["val"].dtype == cast:
                continue
        if name == "aten.max_pool2d.default":
            assert len(node.args) <= 4, "ceil_mode would split the network"
        counted[name] += 1
    return counted


@pytest.mark.parametrize("name", ["live", "u2netp", "u2net"])  # u2net_human_seg is u2net's network
def test_only_operators_that_the_converter_takes(name: str) -> None:
    model = model_of(name)
    exported = export_graph(model.row, model.load(), size=(64, 128), batch=2)
    operators = operators_of(exported)
    assert set(operators) <= CONVERTED, set(operators) - CONVERTED
    stride = model.row.network.output_stride
    (image,) = (n for n in exported.graph.nodes if n.name == "image_nhw3")
    (result,) = exported.graph.output_node().args[0]
    assert (image.meta["val"].dtype, image.meta["val"].shape) == (torch.uint8, (2, 64, 128, 3))
    assert result.meta["val"].dtype == torch.float32
    assert result.meta["val"].shape == (2, 64 // stride, 128 // stride)
    if name == "live":  # who changes the graph counts up its version
        assert {k: operators[k] for k in LIVE_OPERATORS} == LIVE_OPERATORS
        assert (sum(operators.values()), GRAPH_VERSION) == (391, 1)


def test_the_list_knows_what_is_not_taken() -> None:
    """The control: an operator without a converter would be found."""

    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bincount(x)

    exported = torch.export.export(Other(), (torch.arange(4),), strict=False)
    assert not set(operators_of(exported)) <= CONVERTED


def test_the_graph_answers_as_the_torch_backend() -> None:
    model = model_named("live")
    images = pictures()[:2]
    backend = open_backend(
        model, size=images.shape[1:3], backend="torch", device="cpu", precision="f32", batch=2,
        threads=2,
    )  # fmt: skip
    graph = MatteGraph(model.row, model.load(), torch.float32)
    with torch.inference_mode():
        got = graph(torch.from_numpy(images)).numpy()
    expected = backend.infer(images)
    assert got.std() > 0.05, "flat answers would agree by themselves"
    assert np.abs(got - expected).max() <= SAME


def test_half_precision_is_written_into_the_graph() -> None:
    model = model_named("u2netp")
    graph = MatteGraph(model.row, model.load(), torch.float16)
    types = Counter(parameter.dtype for parameter in graph.parameters())
    assert types[torch.float16] > types[torch.float32] > 0, "no block stayed in float32"
    assert graph.scale.dtype == graph.shift.dtype == torch.float32
