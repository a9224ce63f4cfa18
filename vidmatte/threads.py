"""Divide the cores of this process between decoder, network, OpenCV and encoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThreadBudget:
    """Threads per part. They overlap: the parts wait for one another more than they collide."""

    decoder: int
    network: int
    opencv: int
    encoder: int


def thread_budget(cores: int) -> ThreadBudget:
    """Give every part what it can use; chosen by `benchmarks/fps.py` (see its notes).

    The network gets half of the cores: its threads meet at barriers and burn time there when the
    encoder holds the other cores (measured on 2 cores: 9.3 CPU-ms with one thread, 14 with two).
    """
    return ThreadBudget(
        decoder=min(4, cores),
        network=max(1, cores // 2),
        opencv=1 if cores <= 4 else 2,
        encoder=max(2, cores),
    )
