"""The benchmark for NVIDIA cards: a rehearsal of all of it, and the arithmetic that it rests on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidmatte.models.table import convolutions, models, multiply_adds

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_clock import Clock, Deadline, OutOfTimeError  # noqa: E402
from gpu_models import random_tensors, read_safetensors  # noqa: E402
from gpu_networks import cases  # noqa: E402
from gpu_roofline import Rates, layer_costs, network_floor, part_bytes  # noqa: E402
from gpu_trace import facts_of  # noqa: E402
from gpu_traffic import Counting, traffic  # noqa: E402

RATES = Rates(flops=788e12, copy=4300e9, to_device=50e9, to_host=50e9)

# A bare machine has torch and what it needs, numpy, OpenCV and PyAV: whatever else is installed
# here fails to be imported as it would there. One core, as others work beside.
BARE = """
import os, runpy, sys
from importlib.machinery import PathFinder
allowed = {"torch", "torchgen", "functorch", "triton", "numpy", "cv2", "av", "typing_extensions",
           "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "optree"}
class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or "." in name or name in allowed:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return None if any("site-packages" in place for place in places) else spec
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of a whole run on the CPU, tiny."""
    folder = tmp_path_factory.mktemp("rehearsal")
    command = [sys.executable, "-c", BARE, str(BENCHMARKS / "gpu.py")]
    command += ["--device", "cpu", "--rehearse", "--seconds", "100", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((folder / "rehearsal_cpu.json").read_text()) == document, "saved as printed"
    return document


def test_a_rehearsal_needs_nothing_installed_and_leaves_nothing_out(
    rehearsal: dict[str, Any],
) -> None:
    assert rehearsal["errors"] == {}
    assert rehearsal["rehearsal"] is True
    assert rehearsal["left_out"] == [
        "compilers: compiled: no GPU or no Triton",
        "compilers: tensorrt: not installed",
    ]
    assert rehearsal["card"]["torch"] == torch.__version__


def test_it_measures_the_card_and_the_networks(rehearsal: dict[str, Any]) -> None:
    ceilings = rehearsal["ceilings"]
    assert {row["precision"] for row in ceilings["matmul"]} == {"f16", "bf16", "f32"}
    assert ceilings["copy"]["pinned_to_device"] > 0
    assert {row["model"] for row in rehearsal["networks"]} == {"u2netp", "live"}
    for row in rehearsal["networks"]:
        assert set(row["forms"]) == {"eager", "fused", "graphs"}
        for form in ("fused", "graphs"):
            assert row["forms"][form]["from_eager"] < 1e-4, "the same network in another form"
    (live,) = [row for row in rehearsal["parity"]["rows"] if row["model"] == "live"]
    assert live["weights"] == "trained"
    assert 0 < live["mean_difference"] < 0.01, "bf16 is not f32, and near it"
    assert rehearsal["parity"]["pictures"] == "drawn, not real"


def test_it_measures_every_stage_and_whole_runs(rehearsal: dict[str, Any]) -> None:
    stages = rehearsal["stages"]["tiny"]
    assert list(stages["stages"]) == [
        "upload", "prepare", "network", "temporal", "refine", "composite", "download"
    ]  # fmt: skip
    assert all(row["ms"] > 0 for row in stages["stages"].values())
    assert stages["models"]["live"]["host_bytes_per_pixel"] == 3.0, "1.5 up, 1.5 down"
    assert stages["models"]["live"]["latency"]["p50_ms"] > 0
    runs = rehearsal["runs"]["tiny"]
    kinds = {(row["backend"], row["source"], row["sink"]) for row in runs["runs"]}
    assert kinds == {
        ("null", "file", "null"), ("torch", "file", "null"), ("null", "file", "mp4"),
        ("torch", "file", "mp4"), ("torch", "memory", "null"),
    }  # fmt: skip
    (run,) = [r for r in runs["runs"] if (r["backend"], r["sink"]) == ("torch", "mp4")]
    assert run["steady_fps"] > 0
    assert run["of_null"] > 0
    assert run["most_in_flight"] >= 2
    assert run["latency"]["p50_ms"] <= run["latency"]["p99_ms"]


def test_layers_add_up_to_the_table() -> None:
    for name in ("u2net", "u2netp", "live"):
        network = models()[name].network
        costs = layer_costs(network, (192, 320), 3)
        assert sum(cost.flops for cost in costs) == 2 * 3 * multiply_adds(network, 320, 192)
    assert network_floor(models()["u2net"].network, (320, 320), 1, RATES)["gflop"] == pytest.approx(
        117.2, abs=0.1
    )


def test_a_layer_moves_its_weights_once_and_its_maps_once_per_picture() -> None:
    network = models()["live"].network
    stem = layer_costs(network, (64, 96), 1)[0]
    row = network.stem[0]
    weights = 27 * row.out_channels + row.out_channels
    maps = 3 * 64 * 96 + row.out_channels * (64 // row.stride) * (96 // row.stride)
    assert stem.bytes == 2 * (weights + maps)
    assert layer_costs(network, (64, 96), 5)[0].bytes == 2 * (weights + 5 * maps)


def test_a_floor_is_bound_by_the_slower_of_arithmetic_and_memory() -> None:
    network = models()["u2net"].network
    slow_memory = Rates(RATES.flops, 1e9, 1e9, 1e9)
    slow_cores = Rates(1e9, RATES.copy, 1e9, 1e9)
    assert network_floor(network, (192, 320), 1, slow_memory)["bound_by_bytes"] > 0.99
    floor = network_floor(network, (192, 320), 1, slow_cores)
    assert floor["bound_by_bytes"] == 0
    assert floor["floor_ms"] == pytest.approx(floor["flops_alone_ms"])


def test_planes_cross_the_bus_once_each_way() -> None:
    moved = part_bytes(1920, 1080)
    assert moved["upload"] == moved["download"] == 1.5 * 1920 * 1080


def test_its_reader_of_weights_reads_what_the_package_writes() -> None:
    from safetensors.numpy import save

    written = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b.weight": np.array([[1.5]], np.float32),
        "scalar": np.array(2.0, np.float64),
    }
    read = read_safetensors(save(written, {"format": "pt"}))
    assert set(read) == set(written)
    for name, value in written.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype


def test_random_weights_have_the_shapes_of_the_table() -> None:
    from vidmatte.models.weights import folded

    network = models()["u2netp"].network
    assert folded(network, random_tensors(network)).keys() == random_tensors(network).keys()


def test_a_part_that_runs_past_its_time_is_cut_off() -> None:
    """In a process of its own: pytest's fault handler gives signals a stack of their own, which is
    too small here once OpenVINO has run."""
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
from gpu_clock import Deadline, OutOfTimeError
try:
    with Deadline(0.05).cut_off(grace_s=0.05):
        time.sleep(20)
except OutOfTimeError as exc:
    print(exc)
"""
    command = [sys.executable, "-c", code, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
    assert done.stdout.strip() == "cut off: it ran past its time", done.stderr


def test_a_deadline_names_what_it_leaves_out() -> None:
    deadline = Deadline(60)
    assert deadline.allows("short", needs_s=1)
    assert not deadline.allows("long", needs_s=100)
    assert deadline.left_out == ["long"]


def test_what_fails_is_named_and_the_rest_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    deadline = Deadline(60)
    with deadline.guarded("first"):
        raise RuntimeError("no such kernel")
    with pytest.raises(OutOfTimeError), deadline.guarded("second"):
        raise OutOfTimeError("cut off")
    assert deadline.failed == {"first": "RuntimeError: no such kernel"}
    assert "no such kernel" in capsys.readouterr().err


def test_ops_and_bytes_are_counted_without_views() -> None:
    with Counting() as counting:
        x = torch.ones(4, 8).view(32).reshape(8, 4)[2:]
        (x + x).add_(1)
    assert counting.calls == {"aten::ones": 1, "aten::add": 1, "aten::add_": 1}
    assert counting.bytes["aten::add"] == 3 * 4 * 24


def test_op_by_op_every_relu_moves_its_map_twice() -> None:
    network = models()["live"].network
    once, twice = (traffic(network, (64, 96), batch) for batch in (1, 2))
    maps = sum(
        c.out_channels * (96 // c.scale) * (64 // c.scale)
        for c in convolutions(network)
        if c.normalised
    )
    assert once["relu_bytes"] == 2 * 2 * maps
    assert twice["bytes"] == 2 * once["bytes"]
    assert twice["ops"] == once["ops"]


def test_a_clock_takes_the_median_and_counts_repetitions() -> None:
    seen: list[int] = []
    timing = Clock(torch.device("cpu"), seconds=0.01, most=5).measure(seen.append, warm_up=2)
    assert seen[:3] == [0, 1, 2], "warm-ups and one to estimate from"
    assert timing["repeat"] == len(seen) - 3 == 5
    assert 0 <= timing["ms"] <= timing["p95_ms"]


def _event(cat: str, name: str, ts: float, dur: float, size: int = 0) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"bytes": size}}


def test_a_trace_tells_busy_time_kernels_and_bytes_of_the_steady_part() -> None:
    """Ten frames of 100 µs: 10 up, 60 of kernels of which 20 twice at once, 5 down; 35 idle."""
    events: list[dict[str, Any]] = [{"cat": "cpu_op", "name": "aten::add", "ts": 0, "dur": 1000}]
    for start in range(0, 1000, 100):
        events += [
            _event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", start, 10, 3000),
            _event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", start + 5, 1, 8),
            _event("kernel", "one", start + 10, 40),
            _event("kernel", "two", start + 30, 20),
            _event("kernel", "three", start + 50, 20),
            _event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", start + 90, 5, 2500),
        ]
    facts = facts_of(events, 2500)
    assert facts is not None
    assert facts["frames"] == 7, "from the third download to the last"
    assert facts["busy"] == pytest.approx(0.75)
    assert facts["busy_kernels"] == pytest.approx(0.60)
    assert facts["kernels_per_frame"] == 3
    assert facts["to_device_bytes"] == 3008
    assert facts["to_host_bytes"] == 2500
    assert facts["fps"] == pytest.approx(10_000)


def test_a_trace_without_a_gpu_tells_nothing() -> None:
    assert facts_of([{"cat": "cpu_op", "name": "x", "ts": 0, "dur": 1}], 3000) is None


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keep torch to one core: its threads wait for each other where others work beside."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
def test_fps_py_tells_the_rows_of_a_device(tmp_path: Path) -> None:
    """What fps.py says on a GPU, on the CPU in its place; the numbers mean nothing there."""
    from gpu_clips import pictures_of, write_h264
    from gpu_fps import measure_device, show_device

    from vidmatte.matting import MattingChoice

    clip = tmp_path / "clip.mp4"
    write_h264(clip, pictures_of(None, (160, 96), 2), 12)
    clock = Clock(torch.device("cpu"), seconds=0.01, most=2)
    choice = MattingChoice("live", backend="torch", device="cpu")
    found = measure_device(clip, choice, clock, tmp_path, batch=2)
    show_device(found)
    alone = {name: row["ms"] for name, row in found["stages"].items()}
    assert set(alone) == {
        "decode", "upload", "prepare", "network", "temporal", "refine", "composite", "download",
        "encode",
    }  # fmt: skip
    assert all(ms > 0 for ms in alone.values())
    assert found["ceiling_of"] == "compute", "no GPU: the work is slower than the bus"
    assert found["ceiling_fps"] < 1000 / alone["network"]
    assert found["host_bytes_per_pixel"] == 3.0
    assert found["run"]["steady_fps"] > 0
    assert found["run"]["device"] is None, "no GPU was traced"


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: torch sees no NVIDIA GPU"


def test_the_most_wanted_networks_come_first_and_every_precision_and_batch_comes() -> None:
    every = list(cases(("u2net", "u2netp", "live"), small=False))
    assert (every[0].model, every[0].size, every[0].batch) == ("u2net", (320, 320), 1)
    assert len(set(every)) == len(every)
    half = {case.batch for case in every if case.precision == "f16"}
    assert half == {1, 4, 8, 16, 32}
    assert {case.batch for case in every if case.precision == "f32"} == {1, 8, 16}
