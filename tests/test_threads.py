"""The division of cores."""

from __future__ import annotations

import pytest

from vidmatte.models.table import models, multiply_adds
from vidmatte.threads import network_threads, thread_budget


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_every_part_gets_a_thread(cores: int) -> None:
    budget = thread_budget(cores)
    assert min(budget.decoder, budget.opencv, budget.encoder) >= 1
    assert network_threads(cores, 1) >= 1


def test_the_embedded_network_leaves_cores_to_the_encoder_and_official_ones_take_all() -> None:
    threads = {
        name: network_threads(8, multiply_adds(row.network, 320, 192))
        for name, row in models().items()
    }
    assert threads == {"live": 4, "u2netp": 8, "u2net": 8, "u2net_human_seg": 8}
