"""Divide the cores of this process between decoder, network, OpenCV and encoder."""

from __future__ import annotations

from dataclasses import dataclass

LIGHT_NETWORK = 4_000_000_000  # multiply-adds per picture; `live` has .9, u2netp 12, u2net 35 G


@dataclass(frozen=True, slots=True)
class ThreadBudget:
    """Threads per part. They overlap: the parts wait for one another more than they collide."""

    decoder: int
    opencv: int
    encoder: int


def thread_budget(cores: int) -> ThreadBudget:
    """Give every part but the network what it can use (benchmarks/NOTES.md, "Threads")."""
    return ThreadBudget(
        decoder=min(4, cores),
        opencv=1 if cores <= 4 else 2,
        encoder=max(2, cores),
    )


def network_threads(cores: int, multiply_adds: int) -> int:
    """Give a light network half of the cores, a heavy one, which is most of the work, all.

    Its threads meet at barriers and burn time there while the encoder holds the other cores.
    """
    return max(1, cores // 2) if multiply_adds < LIGHT_NETWORK else cores
