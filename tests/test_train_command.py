"""`vidmatte train` as people use it: start it, stop it, go on, use what comes out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Cli, make_clip, wait_until
from training_pictures import make_folders

SMALL = ("--batch", 2, "--size", 64, "--pack-side", 64, "--precision", "f32", "--threads", 1)


@pytest.fixture
def folders(tmp_path: Path) -> list[object]:
    images, masks = make_folders(tmp_path / "pictures", 6, side=64)
    return ["train", "--images", images, "--masks", masks, "--output", tmp_path / "t", *SMALL]


def test_trained_weights_run(folders: list[object], tmp_path: Path, run_cli: Cli) -> None:
    done = run_cli(*folders, "--steps", 3, timeout=90)
    assert done.returncode == 0, done.stderr
    written = [Path(line) for line in done.stdout.splitlines()[:4]]
    assert [path.name for path in written] == [
        "live.safetensors", "live.json", "live_int8.json", "MODEL_CARD.md",
    ]  # fmt: skip
    clip = make_clip(tmp_path / "s.mp4", 3)
    used = run_cli("run", clip, tmp_path / "o.mp4", "--weights", written[0])
    assert used.returncode == 0, used.stderr
    assert (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on(
    number: signal.Signals, folders: list[object], tmp_path: Path, run_cli: Cli
) -> None:
    log = tmp_path / "log"
    with log.open("w") as err:
        process = run_cli.start(*folders, "--steps", 100_000, "--validate-every", 1, stderr=err)
        wait_until(lambda: "step" in log.read_text(), 60)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("stopped: step ")
    assert last.endswith("the same command continues")
    state = torch.load(tmp_path / "t" / "checkpoint.pt", weights_only=True)
    assert f"step {state['step']} " in last
    assert (tmp_path / "t" / "curves.png").exists()
    exported = run_cli("train", "--export", "--output", tmp_path / "t", timeout=60)
    assert exported.returncode == 0, exported.stderr
    assert not list(tmp_path.rglob("*.part*"))


def test_processes_train_one_network(folders: list[object], tmp_path: Path, run_cli: Cli) -> None:
    """Two processes of two pictures take the steps of one network, and one of them writes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "vidmatte", *map(str, folders)]
    done = subprocess.run(
        [*command, "--steps", "2", "--device", "cpu"],
        env=run_cli.env | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("live.safetensors") == 1
    state = torch.load(tmp_path / "t" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert state["training"]["pictures_seen"] == 8
