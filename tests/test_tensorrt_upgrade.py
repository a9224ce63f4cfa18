"""A run begins on torch and goes on with the engine: nothing lost or changed, nobody waits."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt as fake
import numpy as np
import pytest
import torch
from conftest import wait_until

from vidmatte.backends import DeviceBackend, _tensorrt_build, open_backend, tensorrt
from vidmatte.backends._tensorrt_build import BackgroundBuild, build, command_of
from vidmatte.backends._tensorrt_engine import EngineBackend
from vidmatte.backends._tensorrt_key import key_of
from vidmatte.backends._tensorrt_store import VARIABLE, EngineStore
from vidmatte.backends._tensorrt_upgrade import UpgradingBackend
from vidmatte.errors import BackendError

BATCH = 2
REJECTED: list[str] = []
SAME = 1e-6  # the fake engine is torch f32


class Script:
    """Stands for a BackgroundBuild: says what it is told to, poll by poll."""

    def __init__(self, *states: str, reason: str = "") -> None:
        self.states, self.reason, self.progress, self.closed = list(states), reason, "0 s", False

    def poll(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def close(self) -> None:
        self.closed = True


def torch_backend() -> Any:
    return open_backend(fake.request().model, size=fake.SIZE, backend="torch", device="cpu",
                        batch=BATCH, threads=1)  # fmt: skip


def upgrading(script: Script, mode: str = "right") -> tuple[UpgradingBackend, fake.FakeCompiler]:
    compiler = fake.FakeCompiler(mode)
    request = fake.request(BATCH)

    def load() -> EngineBackend:
        return EngineBackend(request, compiler, compiler.compile(None))

    backend = UpgradingBackend(torch_backend(), script, load, REJECTED.append)  # type: ignore[arg-type]
    return backend, compiler


def run(backend: Any, count: int, *, on_device: bool) -> tuple[list[np.ndarray], list[str]]:
    """Answer `count` batches of different pictures; also which backend was at work after each."""
    answers, at_work = [], []
    for index in range(count):
        images = np.roll(fake.pictures()[:BATCH], 3 * index, axis=2)
        if on_device:
            answers.append(backend.infer_device(torch.from_numpy(images)).numpy().copy())
        else:
            answers.append(backend.infer(images).copy())
        at_work.append(backend.name)
    return answers, at_work


@pytest.mark.parametrize("on_device", [False, True])
def test_the_swap_is_between_two_batches_and_loses_nothing(on_device: bool) -> None:
    backend, compiler = upgrading(Script("building", "building", "ready"))
    assert isinstance(backend, DeviceBackend)
    assert "is being built" in backend.description
    got, at_work = run(backend, 6, on_device=on_device)
    expected, _ = run(torch_backend(), 6, on_device=on_device)
    assert at_work == ["torch", "torch", "tensorrt", "tensorrt", "tensorrt", "tensorrt"]
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= SAME
    assert compiler.engines[0].batches == 4  # the third batch, for comparison, and those after
    assert "TensorRT f16 on NVIDIA H100" in backend.description
    assert f"from picture {3 * BATCH + 1} on" in backend.description
    assert backend.notes == []
    backend.close()
    assert compiler.engines[0].closed
    backend.close()


def test_what_auto_adds_to_the_description_stays() -> None:
    backend, _ = upgrading(Script("ready"))
    backend.description += " (auto: an NVIDIA GPU is here)"
    run(backend, 2, on_device=False)
    assert backend.description.startswith("TensorRT")
    assert backend.description.endswith(" (auto: an NVIDIA GPU is here)")


@pytest.mark.fault
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("states", "mode", "reason"),
    [
        (("building", "ready"), "wrong", "from torch's"),
        (("building", "ready"), "nan", "NaN"),
        (("building", "ready"), "fails", "told to"),
        (("building", "ready"), "unloadable", "cannot be loaded"),
        (("building", "failed"), "right", "no luck"),
    ],
)
def test_a_swap_that_must_not_be_leaves_everything_as_it_was(
    states: tuple[str, ...], mode: str, reason: str, on_device: bool
) -> None:
    REJECTED.clear()
    backend, compiler = upgrading(Script(*states, reason="no luck"), mode)
    got, at_work = run(backend, 5, on_device=on_device)
    expected, _ = run(torch_backend(), 5, on_device=on_device)
    assert set(at_work) == {"torch"}
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours, theirs)
    (note,) = backend.notes
    assert note.startswith("TensorRT is not used: ")
    assert reason in note
    assert backend.description.count(reason) == 1
    assert "being built" not in backend.description
    assert all(engine.closed for engine in compiler.engines)
    assert len(REJECTED) == (mode in ("wrong", "nan")), "remembered is what answers wrongly"


def test_waiting_tells_how_far_it_is_and_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidmatte.backends._tensorrt_upgrade._LOOK_EVERY_S", 0)
    backend, _ = upgrading(Script("building", "building", "ready"))
    told: list[str] = []
    backend.wait(told.append)
    assert told == ["0 s", "0 s"]
    assert run(backend, 1, on_device=False)[1] == ["tensorrt"]

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    backend, _ = upgrading(Script("building"))
    with pytest.raises(KeyboardInterrupt):
        backend.wait(stop)


# The process that builds ------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "engines"))
    return EngineStore(tmp_path / "engines")


def started(
    store: EngineStore, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> BackgroundBuild:
    monkeypatch.setattr(_tensorrt_build, "command_of", lambda request: command)
    request = fake.request(BATCH)
    return BackgroundBuild(request, key_of(request, fake.ENVIRONMENT, {}), store)


def ended(background: BackgroundBuild) -> str:
    wait_until(lambda: background.poll() != "building", 60)
    return background.poll()


def test_the_command_names_everything_and_imports_nothing_from_here(tmp_path: Path) -> None:
    command = command_of(fake.request(8))
    assert command[1:6] == ["-P", "-m", "vidmatte", "engines", "build"]
    assert "--weights" not in command
    assert " ".join(command[6:]) == (
        "--low-priority --model live --size 64x64 --batch 8 --device cpu"
    )


@pytest.mark.fault
def test_another_process_builds_and_the_run_goes_over(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command line in a real process, but for TensorRT; begun as a run begins it."""
    compiler = fake.use(monkeypatch, fake.FakeCompiler())
    monkeypatch.setattr(_tensorrt_build, "command_of", fake.child)
    backend: Any = tensorrt.open_backend(fake.request(BATCH, on_wait=lambda text: None))
    assert isinstance(backend, UpgradingBackend)
    assert compiler.compiled == 0, "it was built here"
    assert run(backend, 2, on_device=False)[1] == ["tensorrt", "tensorrt"]
    backend.close()
    assert [p.suffix for p in store.folder.iterdir() if p.suffix == ".log"] == []
    again = tensorrt.open_backend(fake.request(BATCH))
    assert isinstance(again, EngineBackend)
    assert again.description == "TensorRT f16 on NVIDIA H100 80GB HBM3 (cpu)"
    again.close()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo noise; echo 'error: no room here' >&2; exit 1", "no room here"),
        ("kill -9 $$", "ended with signal 9; see "),
        ("exit 3", "ended with exit code 3; see "),
    ],
)
def test_a_build_that_fails_says_why(
    script: str, reason: str, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = started(store, ["sh", "-c", script], monkeypatch)
    assert ended(background) == "failed"
    assert reason in background.reason
    background.close()
    assert len(list(store.folder.glob("*.log"))) == 1


@pytest.mark.fault
def test_a_build_that_cannot_start_has_failed(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = started(store, ["/nonexistent/python"], monkeypatch)
    assert background.poll() == "failed"
    assert "cannot start" in background.reason
    background.close()


@pytest.mark.fault
def test_a_build_that_left_nothing_is_not_believed(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.use(monkeypatch, fake.FakeCompiler())
    monkeypatch.setattr(_tensorrt_build, "command_of", lambda request: ["true"])
    backend: Any = tensorrt.open_backend(fake.request(BATCH, on_wait=lambda text: None))
    assert run(backend, 2, on_device=False)[1] == ["torch", "torch"]
    assert backend.notes == ["TensorRT is not used: its build left no engine that can be trusted"]


@pytest.mark.fault
def test_it_outlives_the_run_and_ctrl_c(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = started(store, ["sleep", "60"], monkeypatch)
    process = background._process
    assert process is not None
    # A terminal sends SIGINT to the process group in its foreground, which is the run's.
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert background.poll() == "building"
    assert background.progress == "building the TensorRT engine: 0 s"
    background.close()
    time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_it_has_no_standard_input(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    background = started(store, ["sh", "-c", "! read line"], monkeypatch)
    assert ended(background) == "ready"
    background.close()


# Opening ----------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["unloadable", "wrong"])
def test_an_engine_that_is_no_good_any_more_is_built_again(
    mode: str, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake.use(monkeypatch, fake.FakeCompiler())
    request = fake.request(BATCH)
    key = key_of(request, compiler.environment, compiler.options)
    build(request, compiler, store, fake.pictures())
    good = store.read(key)
    assert good is not None
    store.write(key, good._replace(data=mode.encode() + b"\n"), {})
    monkeypatch.setattr(_tensorrt_build, "command_of", lambda request: ["false"])
    backend = tensorrt.open_backend(request)
    assert isinstance(backend, UpgradingBackend)
    assert store.read(key) is None
    backend.close()


@pytest.mark.fault
def test_a_rejected_engine_is_not_built_at_every_run(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake.use(monkeypatch, fake.FakeCompiler())
    request = fake.request(BATCH)
    store.reject(key_of(request, compiler.environment, compiler.options), "it was wrong")

    def forbidden(*_: object) -> None:
        raise AssertionError("it is built again")

    monkeypatch.setattr(_tensorrt_build, "BackgroundBuild", forbidden)
    backend = tensorrt.open_backend(request)
    assert backend.name == "torch"
    assert "rejected: it was wrong" in backend.description
    backend.close()


@pytest.mark.fault
def test_a_folder_that_cannot_be_made_is_an_error_of_this_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` passes over it, to torch."""
    fake.use(monkeypatch, fake.FakeCompiler())
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "engines"))
    with pytest.raises(BackendError, match="cannot write"):
        tensorrt.open_backend(fake.request(BATCH))


def test_without_the_libraries_a_gpu_runs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on CUDA says in one line what it passed over; torch on the CPU stands for the GPU."""
    from vidmatte.backends import torch as torch_module

    real = torch_module.open_backend
    on_cpu = lambda request: real(replace(request, device="cpu"))  # noqa: E731
    monkeypatch.setattr(torch_module, "open_backend", on_cpu)
    backend = open_backend(fake.request().model, size=fake.SIZE, device="cuda", threads=1)
    assert backend.name == "torch"
    assert "not tensorrt: TensorRT is not installed" in backend.description
    backend.close()
