"""A stand-in for recorded graphs: results are overwritten by the next call, as on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.graphs import Work


class Replayed:
    """Results stay in the same memory, call after call, as a graph's do; so do inputs."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = work
        self._kept: dict[object, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple(x.shape for x in inputs)
        if key not in self._kept:
            own = tuple(x.clone() for x in inputs)
            self._kept[key] = own, tuple(x.clone() for x in self._work(*own))
        own, results = self._kept[key]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        for mine, given in zip(results, self._work(*own), strict=True):
            mine.copy_(given)
        return results

    def forget(self) -> None:
        """Free the memory of all calls."""
        self._kept.clear()
