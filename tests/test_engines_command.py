"""`vidmatte engines`: with a fake in TensorRT's place, and with TensorRT where it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fake_tensorrt as fake
import pytest
from cli_here import CliHere
from conftest import Cli

from vidmatte.backends import _tensorrt_build
from vidmatte.backends._tensorrt_libraries import missing_libraries
from vidmatte.backends._tensorrt_store import VARIABLE, EngineStore
from vidmatte.cli import engines
from vidmatte.models import registry
from vidmatte.sources.synthetic import SyntheticClip, write_clip

BUILD = ("engines", "build", "--model", "live", "--device", "cpu", "--batch", "2")
SMALL = (*BUILD, "--size", "64x64")
REAL_TIMEOUT_S = 550


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "engines"))
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, store: EngineStore
) -> tuple[fake.FakeCompiler, EngineStore]:
    """TensorRT is here, in the shape of a fake; the versions are those of its environment."""
    compiler = fake.use(monkeypatch, fake.FakeCompiler())
    known = {"torch": "2.13.0", "torch_tensorrt": "2.13.0", "tensorrt": "11.0.0"}
    monkeypatch.setattr("vidmatte.backends._tensorrt_libraries.versions", lambda: dict(known))
    return compiler, store


def test_build_list_clean(here: tuple[fake.FakeCompiler, EngineStore], cli_here: CliHere) -> None:
    compiler, store = here
    done = cli_here(*SMALL)
    assert done.code == 0, done.err
    (entry,) = store.entries()
    assert str(entry.path) in done.out
    assert "from torch f32" in done.out
    assert "already there" in cli_here(*SMALL).out
    assert compiler.compiled == 1

    (fact,) = json.loads(cli_here("engines", "list", "--json").out)
    assert (fact["state"], fact["path"]) == ("ready", str(entry.path))
    assert fact["key"]["environment"]["gpu"] == fake.ENVIRONMENT.gpu
    assert fact["facts"]["difference"] <= 1e-6
    listed = cli_here("engines", "list").out
    assert "live 64x64, batch 2, f16, for NVIDIA H100 80GB HBM3" in listed

    assert cli_here("engines", "clean").code == 0
    assert len(store.entries()) == 1, "it removed what is in use"
    assert str(entry.path) in cli_here("engines", "clean", "--all").out
    assert store.entries() == []
    assert list(store.folder.iterdir()) == []


def test_what_no_run_will_use_again_is_stale(
    here: tuple[fake.FakeCompiler, EngineStore], cli_here: CliHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = here
    cli_here(*SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(
            "vidmatte.backends._tensorrt_libraries.versions", lambda: {"tensorrt": "11.1.0"}
        )
        (fact,) = json.loads(cli_here("engines", "list", "--json").out)
        assert (fact["state"], fact["reason"]) == ("stale", "tensorrt 11.0.0 is now 11.1.0")
    with monkeypatch.context() as patch:  # other weights of the same name
        patch.setattr(registry, "find", lambda name: None)
        assert "weights-sha256" in cli_here("engines", "list").out
        assert "1 removed" in cli_here("engines", "clean").err
    assert store.entries() == []


def test_a_clip_gives_size_and_pictures(
    here: tuple[fake.FakeCompiler, EngineStore], cli_here: CliHere, tmp_path: Path
) -> None:
    """Upright: a portrait of somebody."""
    _, store = here
    clip = SyntheticClip(width=192, height=320, frame_count=12)
    write_clip(tmp_path / "clip.mp4", clip)
    done = cli_here(*BUILD, "--clip", tmp_path / "clip.mp4")
    assert done.code == 0, done.err
    (entry,) = store.entries()
    assert (entry.key["width"], entry.key["height"]) == (192, 320)


def test_list_and_clean_need_no_tensorrt(store: EngineStore, run_cli: Cli) -> None:
    """The real command: without the libraries, but for build and verify, it is as good."""
    for arguments in (("list",), ("list", "--json"), ("clean",)):
        done = run_cli("engines", *arguments)
        assert done.returncode == 0, done.stderr
    if missing_libraries():
        done = run_cli("engines", "verify")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: TensorRT is not installed")
        assert len(done.stderr.splitlines()) == 2


def test_verify_checks_the_whole_path(
    here: tuple[fake.FakeCompiler, EngineStore],
    cli_here: CliHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a process that builds, as on a machine with TensorRT."""
    _, store = here
    monkeypatch.setattr(_tensorrt_build, "command_of", fake.child)
    monkeypatch.setattr(engines, "_default_size", lambda model: fake.SIZE)
    monkeypatch.setattr(engines, "_TIMED", 1)
    done = cli_here("engines", "verify", "--device", "cpu", "--batch", "2")
    assert done.code == 0, done.out + done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["ok"] * 6
    assert rows[0][1] == "libraries"
    assert [row[1:3] for row in rows[1:]] == [
        ["live", check] for check in ("build", "gate", "swap", "load", "speed")
    ]
    assert store.entries() == [], "it used the folder of runs"
    assert os.environ[VARIABLE] == str(store.folder)


@pytest.mark.fault
def test_verify_fails_where_anything_does(
    here: tuple[fake.FakeCompiler, EngineStore],
    cli_here: CliHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process is spared: its command fails as the real one would."""
    script = "echo 'error: live is rejected: NaN among its answers' >&2; exit 1"
    monkeypatch.setattr(_tensorrt_build, "command_of", lambda request: ["sh", "-c", script])
    done = cli_here("engines", "verify", "--device", "cpu", "--batch", "2")
    assert done.code == 1
    assert done.out.splitlines()[-1].split(maxsplit=3)[:3] == ["FAILED", "live", "build"]
    assert "NaN among its answers" in done.out


@pytest.mark.needs_tensorrt
@pytest.mark.timeout(REAL_TIMEOUT_S + 20)
def test_the_real_thing(run_cli: Cli) -> None:
    """What a person with TensorRT runs."""
    import torch

    missing = missing_libraries() or ([] if torch.cuda.is_available() else ["NVIDIA GPU"])
    if missing and os.environ.get("VIDMATTE_REQUIRE_CUDA") == "1":
        pytest.fail(f"VIDMATTE_REQUIRE_CUDA=1 and no {missing[0]}")
    if missing:
        pytest.skip(f"no {missing[0]} here")
    done = run_cli("engines", "verify", timeout=REAL_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
