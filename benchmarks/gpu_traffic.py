"""What torch moves when it runs a network op by op: the price of each op as a kernel of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidmatte.models.network import U2Net
from vidmatte.models.table import Network

_VIEWS = {"aten::view", "aten::permute", "aten::detach", "aten::expand", "aten::to"}
_CONVOLUTIONS = {"aten::conv2d", "aten::convolution"}


class _Counting(TorchDispatchMode):
    """Counts calls, and bytes of the tensors that go in and out, by op."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name not in _VIEWS:
            self.calls[name] += 1
            tensors = [t for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)]
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors)
        return result


def traffic(network: Network, size: tuple[int, int], batch: int) -> dict[str, float]:
    """Return ops, and the bytes of all but the convolutions, for one batch in FP16.

    Nothing is computed. A bias is counted as part of its convolution; cuDNN's plain convolution
    leaves it to a kernel more, which reads and writes the map again, as ReLU does.
    """
    with torch.device("meta"):
        module = U2Net(network, folded=True).half().eval()
        x = torch.empty(batch, network.in_channels, *size, dtype=torch.half)
    with torch.inference_mode(), _Counting() as counting:
        module(x)
    moved = sum(b for name, b in counting.bytes.items() if name not in _CONVOLUTIONS)
    return {
        "ops": sum(counting.calls.values()),
        "bytes": float(moved),
        "relu_bytes": float(counting.bytes["aten::relu"]),
    }
