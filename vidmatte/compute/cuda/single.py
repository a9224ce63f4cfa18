"""Refine one picture at a time on the device, for a live session whose pictures lie on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidmatte.compute.cuda.refine import Refiner
from vidmatte.compute.cuda.transfer import Download, Lane, upload
from vidmatte.graphs import Graphed, synchronize

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vidmatte.frames import Layout, Samples
    from vidmatte.models.table import Curve


class SingleRefiner:
    """`compute.cpu.refine.refine`, or `upsample`, on a device. Used by one thread."""

    def __init__(
        self,
        layout: Layout,
        width: int,
        height: int,
        curve: Curve,
        device: torch.device,
        *,
        refinement: bool,
    ) -> None:
        refiner = Refiner(layout, width, height, lo=curve.lo, hi=curve.hi, device=device)
        self._device = device
        self._lane, self._copy_lane = Lane(device), Lane(device)

        def work(probability: Tensor, *planes: Tensor) -> tuple[Tensor]:
            if not refinement:
                return (refiner.upsample(probability),)
            return (refiner.refine(probability, planes),)

        self._work = Graphed(work, device)
        synchronize(device)  # constants are made on the default stream

    def __call__(self, probability: NDArray[np.float32], planes: Sequence[Samples]) -> Samples:
        """Return alpha (H, W) for a probability (h, w) and the picture's planes; waits for it."""
        with self._lane:
            small = torch.from_numpy(np.ascontiguousarray(probability)).to(self._device)
            alpha = self._work(small, *upload(planes, self._device))
            return Download(alpha, self._copy_lane).planes()[0]
