"""The throughput benchmark: it runs on a small clip and its last line tells what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fps.py"


def test_it_measures_a_small_clip_from_end_to_end() -> None:
    pytest.importorskip("skimage")
    command = [sys.executable, str(SCRIPT), "--size", "160x96", "--frames", "12", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["stages"]) == {
        "decode", "prepare", "infer", "temporal", "refine", "composite", "encode"
    }  # fmt: skip
    assert all(stage["cpu_ms"] >= 0 for stage in document["stages"].values())
    assert document["fps"] > 0
    assert document["growth_mb_per_1000_frames"] is None, "twelve frames tell nothing of growth"
    assert document["card"]["model"] == "live"
