"""The network as compilers take it: uint8 pictures in, probabilities out, of one fixed shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidmatte.models.network import folded_network

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vidmatte.models.table import ModelRow
    from vidmatte.models.weights import FoldedTensors


class MatteGraph(nn.Module):
    """(N, H, W, 3) uint8 RGB to the foreground probability (N, h, w) float32.

    Normalisation and sigmoid are in float32, the network in `dtype` but for the blocks that
    `folded_network` keeps in float32: every precision is written into the graph, as strong typing
    asks for. (h, w) is (H, W) divided by the network's output stride. Who changes what is computed
    here counts up GRAPH_VERSION of the engines.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, row: ModelRow, tensors: FoldedTensors, dtype: torch.dtype) -> None:
        super().__init__()
        mean, std = torch.tensor(row.mean), torch.tensor(row.std)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.network = folded_network(row.network, tensors, dtype)
        self._dtype = dtype
        self.train(False)

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """Return the probability of each picture."""
        x_NHW3 = image_NHW3.to(torch.float32) * self.scale + self.shift
        logits_N1HW = self.network(x_NHW3.permute(0, 3, 1, 2).to(self._dtype))[0]
        probability_NHW: Tensor = logits_N1HW.to(torch.float32).sigmoid().squeeze(1)
        return probability_NHW


def export_graph(
    row: ModelRow,
    tensors: FoldedTensors,
    *,
    size: tuple[int, int],
    batch: int,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
) -> ExportedProgram:
    """Export `row`'s network for `batch` pictures of `size` (height, width), weights inside.

    Shapes are static. Weights lie on `device`, by default the CPU.
    """
    module = MatteGraph(row, tensors, dtype).to(device)
    image_NHW3 = torch.zeros((batch, *size, 3), dtype=torch.uint8, device=device)
    with torch.no_grad():
        return torch.export.export(module, (image_NHW3,), strict=False)
