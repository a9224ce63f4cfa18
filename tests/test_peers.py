"""The comparison with peers runs without any, and hands them weights that are still the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import REPOSITORY
from safetensors.numpy import save_file

from vidmatte.models.onnx_file import parse_onnx
from vidmatte.models.table import U2NETP, convolutions
from vidmatte.models.weights import folded, parse_tensors, recognise

if TYPE_CHECKING:
    from vidmatte.models.weights import FoldedTensors

BENCHMARKS = REPOSITORY / "benchmarks"
TIMEOUT_S = 60
FOLD_ERROR = 1e-6  # 1 - epsilon is rounded to float32, then epsilon is added again


@pytest.fixture(scope="module")
def tensors() -> FoldedTensors:
    rng = np.random.default_rng(3)
    made = {}
    for conv in convolutions(U2NETP):
        made[conv.weight_key] = rng.normal(0, 0.05, conv.weight_shape).astype(np.float32)
        made[conv.bias_key] = rng.normal(0, 0.1, conv.out_channels).astype(np.float32)
    return made


@pytest.fixture
def peer_weights(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_weights

    return peer_weights


def test_the_state_dict_folds_back_to_the_weights_it_was_made_from(
    tensors: FoldedTensors, peer_weights: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "u2netp.pth"
    peer_weights.write_pth(U2NETP, tensors, path)
    stored = parse_tensors(path.read_bytes(), path)
    assert len(stored) == 798
    assert recognise(stored, [U2NETP], path) is U2NETP
    back = folded(U2NETP, stored)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_allclose(back[key], value, rtol=FOLD_ERROR, atol=FOLD_ERROR)


def test_the_onnx_graph_is_one_that_import_understands(
    tensors: FoldedTensors, peer_weights: ModuleType, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "u2netp.onnx"
    peer_weights.write_onnx(U2NETP, tensors, path)
    network, back = parse_onnx(path.read_bytes(), path, [U2NETP])
    assert network is U2NETP
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
    graph = onnx.load(path).graph
    assert graph.output[0].name.startswith("Sigmoid")
    assert len(graph.output) == 7


def test_missing_peers_are_rows_that_say_not_run(tensors: FoldedTensors, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    weights = tmp_path / "u2netp.safetensors"
    save_file(tensors, weights)
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--u2netp", str(weights)]
    command += ["--size", "64x48", "--frames", "3", "--outputs", "mp4"]
    command += ["--backend", "null", "--repeat", "1"]
    command += ["--rembg-python", str(tmp_path / "no-such-python")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    rows = {row["tool"]: row for row in document["rows"]}
    for name in ("vidmatte u2netp", "vidmatte live"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["frames"] == 3
        assert rows[name]["matte_area"] > 0
    assert rows["backgroundremover"]["status"] == "not run"
    assert rows["backgroundremover"]["reason"] == "no --backgroundremover-python"
    assert rows["rembg"]["status"] == "not run"
    assert "no-such-python" in rows["rembg"]["reason"]
    assert document["times_as_fast"] == {"seconds": {}, "cpu_seconds": {}}
