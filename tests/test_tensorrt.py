"""Engines: their identity, their store and its faults, the gate, the build; TensorRT is a fake."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import fake_tensorrt as fake
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidmatte.backends import _tensorrt_libraries as libraries
from vidmatte.backends import _tensorrt_store as store_module
from vidmatte.backends._tensorrt_build import build
from vidmatte.backends._tensorrt_engine import open_engine
from vidmatte.backends._tensorrt_gate import why_not
from vidmatte.backends._tensorrt_key import EngineKey, Environment, key_of, stale_reasons
from vidmatte.backends._tensorrt_store import EngineStore, Probe, StoredEngine, engine_folder
from vidmatte.errors import BackendError

TEXT = st.text(min_size=1, max_size=12)
SIDE = st.integers(1, 64).map(lambda n: 32 * n)
TRIPLE = st.tuples(*[st.floats(0, 1)] * 3)
ENVIRONMENTS = st.builds(Environment, **{f.name: TEXT for f in fields(Environment)})
KEYS = st.builds(
    EngineKey, model=TEXT, network=TEXT, weights_sha256=TEXT, mean=TRIPLE, std=TRIPLE, height=SIDE,
    width=SIDE, batch=st.integers(1, 64), precision=TEXT,
    options=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple), environment=ENVIRONMENTS,
    graph_version=st.integers(1, 9),
)  # fmt: skip
INGREDIENTS = [f.name for f in fields(EngineKey) if f.name != "environment"]
PLACES = [f.name for f in fields(Environment)]


def changed(value: Any) -> Any:
    if isinstance(value, str):
        return f"{value}x"
    return (*value, 0.5) if isinstance(value, tuple) else value + 32


@given(key=KEYS)
def test_any_one_ingredient_changes_the_name(key: EngineKey) -> None:
    names = {key.name}
    for name in INGREDIENTS:
        value = getattr(key, name)
        other = (*value, ("a", "b")) if name == "options" else changed(value)
        names.add(replace(key, **{name: other}).name)
    for name in PLACES:
        place = replace(key.environment, **{name: changed(getattr(key.environment, name))})
        names.add(replace(key, environment=place).name)
    assert len(names) == 1 + len(INGREDIENTS) + len(PLACES)


@given(key=KEYS)
def test_equal_keys_have_one_name_that_is_a_file_name(key: EngineKey) -> None:
    again = EngineKey(**{f.name: getattr(key, f.name) for f in fields(EngineKey)})
    assert again.name == key.name
    assert again.document == key.document
    assert "/" not in key.name
    assert "." not in key.name
    assert len(f"{key.name}.rejected") < 255


def test_the_key_holds_all_that_the_issue_names() -> None:
    key = key_of(fake.request(), fake.ENVIRONMENT, {"immutable_weights": True})
    assert set(asdict(key)) == {
        "model", "network", "weights_sha256", "mean", "std", "height", "width", "batch",
        "precision", "options", "environment", "graph_version",
    }  # fmt: skip
    assert set(asdict(key.environment)) == {
        "torch", "torch_tensorrt", "tensorrt", "cuda", "gpu", "capability", "system", "machine",
    }  # fmt: skip
    assert key.weights_sha256 == fake.request().model.sha256
    assert key.name.startswith("live-64x64-b2-f16-nvidia-h100-80gb-hbm3-")


def test_stale_is_what_no_run_here_asks_for() -> None:
    document = key_of(fake.request(), fake.ENVIRONMENT, {}).document
    assert stale_reasons(document, {"torch": "2.13.0", "tensorrt": None}) == []
    assert stale_reasons(document, {"torch": "2.14.0"}) == ["torch 2.13.0 is now 2.14.0"]
    assert stale_reasons(document, {"graph_version": "2"}) == ["graph-version 1 is now 2"]


def test_versions_are_those_of_the_key() -> None:
    """`list` reads them without importing torch; a difference would make every engine stale."""
    assert libraries.versions()["torch"] == torch.__version__


# The store --------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def key() -> EngineKey:
    return key_of(fake.request(), fake.ENVIRONMENT, {})


def stored() -> StoredEngine:
    images = fake.pictures()[:2]
    return StoredEngine(b"plan" * 99, Probe(images, np.zeros((2, 32, 32), np.float32) + 0.25))


def test_what_is_written_is_read(store: EngineStore, key: EngineKey) -> None:
    assert store.read(key) is None
    path = store.write(key, stored(), {"seconds": 1})
    got = store.read(key)
    assert got is not None
    assert got.data == stored().data
    assert np.array_equal(got.probe.images, stored().probe.images)
    assert np.array_equal(got.probe.expected, stored().probe.expected)
    assert path.name == f"{key.name}.engine"
    assert oct(path.stat().st_mode)[-3:] == "600"
    assert oct(store.folder.stat().st_mode)[-3:] == "700"
    assert [p.name for p in store.folder.iterdir()] == [path.name]
    (entry,) = store.entries()
    assert (entry.state, entry.key, entry.facts) == ("ready", key.document, {"seconds": 1})


def flip(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return damage


def of_another_key(path: Path) -> None:
    head, line, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    header["key"]["environment"]["gpu"] = "another"
    path.write_bytes(b"\n".join((head, json.dumps(header).encode(), rest)))


def with_other_lengths(path: Path) -> None:
    head, line, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    header["lengths"][0] += 1
    header["lengths"][1] -= 1
    path.write_bytes(b"\n".join((head, json.dumps(header).encode(), rest)))


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS: dict[str, Callable[[Path], object]] = {
    "engine damaged": flip(-(2 * 64 * 64 * 3 + 2 * 32 * 32 * 4 + 9)),
    "probe damaged": flip(-5),
    "first line damaged": flip(3),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "truncated to its header": lambda path: os.truncate(path, 40),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "of another key": of_another_key,
    "of other lengths": with_other_lengths,
    "a link": a_link,
    "a folder": a_folder,
    "a pipe": a_fifo,
    "writable by all": lambda path: path.chmod(0o666),
    "unreadable JSON": lambda path: path.write_bytes(b"vidmatte engine 1\n[1\nx"),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_and_ours_is_not_used(
    fault: str, store: EngineStore, key: EngineKey, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.write(key, stored(), {})
    FAULTS[fault](path)
    assert store.read(key) is None
    assert "is not used" in caplog.text
    if fault not in ("of another key", "of other lengths"):  # whole, and only not what is asked for
        assert [entry.state for entry in store.entries()] == ["damaged"]
    if fault != "a folder":
        store.write(key, stored(), {})
        assert store.read(key) is not None, "it could not be built again"


@pytest.mark.fault
def test_a_stranger_s_file_is_not_used(
    store: EngineStore, key: EngineKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write(key, stored(), {})
    real = os.fstat

    def foreign(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[4] = 4242
        return os.stat_result(status)

    monkeypatch.setattr(store_module.os, "fstat", foreign)
    assert store.read(key) is None
    monkeypatch.undo()
    assert store.read(key) is not None
    assert path.exists()


@pytest.mark.fault
@pytest.mark.parametrize("mode", [0o777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(
    mode: int, store: EngineStore, key: EngineKey
) -> None:
    store.write(key, stored(), {})
    store.folder.chmod(mode)
    calls = (lambda: store.read(key), lambda: store.write(key, stored(), {}), store.entries,
             lambda: store.locked(key.name).__enter__(), lambda: store.rejection(key))  # fmt: skip
    for call in calls:
        with pytest.raises(BackendError, match="change the engines") as caught:
            call()
        assert caught.value.hint


@pytest.mark.fault
def test_a_full_disk_leaves_nothing(
    store: EngineStore, key: EngineKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(BackendError, match="No space left on device"):
        store.write(key, stored(), {})
    assert list(store.folder.iterdir()) == []


def test_a_rejection_is_of_its_key(store: EngineStore, key: EngineKey) -> None:
    store.reject(key, "it is wrong")
    assert store.rejection(key) == "it is wrong"
    assert store.rejection(replace(key, batch=9)) is None
    assert store.read(key) is None
    assert [entry.reason for entry in store.entries()] == ["it is wrong"]


def test_clean_leaves_what_is_wanted_and_what_is_being_built(
    store: EngineStore, key: EngineKey
) -> None:
    other, busy = replace(key, batch=8), replace(key, batch=9)
    kept, gone = store.write(key, stored(), {}), store.write(other, stored(), {})
    store.reject(busy, "before")
    (store.folder / "README.md").write_text("kept")
    (store.folder / f"{'a' * 20}.77.part").write_text("left by a build that was killed")
    with store.locked(busy.name):
        removed = store.clean(lambda entry: entry.path != kept)
        assert [entry.path for entry in removed] == [gone]
        assert store.rejection(busy) == "before"
    assert {p.name for p in store.folder.iterdir() if busy.name not in p.name} == {
        "README.md", kept.name,
    }  # fmt: skip


def test_the_folder_is_never_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(store_module.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkout = Path(store_module.__file__).parents[2]
    assert engine_folder() == checkout / "engines"
    monkeypatch.setattr(store_module, "__file__", str(tmp_path / "site" / "v" / "b" / "s.py"))
    assert engine_folder() == tmp_path / "cache" / "vidmatte" / "engines"
    monkeypatch.setenv(store_module.VARIABLE, "/somewhere")
    assert engine_folder() == Path("/somewhere")
    monkeypatch.setenv(store_module.VARIABLE, "engines")
    with pytest.raises(BackendError, match="depends on the current folder"):
        engine_folder()


# The gate and the build -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (np.full((2, 4, 4), 0.5), None),
        (np.full((2, 4, 4), 0.509), None),
        (np.full((2, 4, 4), 0.511), "from torch's"),
        (np.stack([np.full((4, 4), 0.5), np.full((4, 4), 0.515)]), "from torch's"),
        (np.full((2, 4, 4), np.nan), "NaN"),
        (np.full((2, 4, 4), np.inf), "NaN"),
        (np.full((2, 4, 5), 0.5), "shape"),
    ],
)
def test_the_gate(answers: np.ndarray, expected: str | None) -> None:
    """The worst picture counts: one that is wrong does not hide in the mean of all."""
    reason = why_not(answers, np.full((2, 4, 4), 0.5))
    assert (reason is None) if expected is None else (reason is not None and expected in reason)


def test_a_build_is_kept_and_found(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export is the real one."""
    compiler, request = fake.FakeCompiler(), fake.request()
    built = build(request, compiler, store, fake.pictures())
    assert not built.was_there
    assert built.difference <= 1e-6  # the fake is torch f32, as the gate's reference is
    assert compiler.engines[0].closed
    fake.without_export(monkeypatch)
    again = build(request, compiler, store, fake.pictures())
    assert (again.was_there, again.path, compiler.compiled) == (True, built.path, 1)
    found = store.read(key_of(request, compiler.environment, compiler.options))
    assert found is not None
    engine = open_engine(request, compiler, found)
    for count in (1, 2, 3):  # less than a batch, a batch, more
        images = fake.pictures()[:count]
        expected = fake.network()(torch.from_numpy(images)).detach().numpy()
        assert np.abs(engine.infer(images) - expected).max() <= 1e-6
    engine.close()
    engine.close()


@pytest.mark.fault
@pytest.mark.parametrize(("mode", "reason"), [("wrong", "from torch's"), ("nan", "NaN")])
def test_a_wrong_engine_is_rejected_once_and_for_all(
    mode: str, reason: str, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.without_export(monkeypatch)
    compiler, request = fake.FakeCompiler(mode), fake.request()
    for _ in range(2):
        with pytest.raises(BackendError, match=f"live is rejected: .*{reason}") as caught:
            build(request, compiler, store, fake.pictures())
        assert caught.value.hint
    assert compiler.compiled == 1
    assert [entry.state for entry in store.entries()] == ["rejected"]
    store.clean(lambda entry: True)
    with pytest.raises(BackendError):
        build(request, compiler, store, fake.pictures())
    assert compiler.compiled == 2


@pytest.mark.fault
def test_pictures_that_prove_nothing_are_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.without_export(monkeypatch)
    compiler = fake.FakeCompiler()
    with pytest.raises(BackendError, match="prove nothing"):
        build(fake.request(), compiler, store, np.zeros_like(fake.pictures()))
    assert compiler.compiled == 0


@pytest.mark.fault
def test_an_engine_that_fails_leaves_nothing(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been memory: not remembered as a rejection."""
    fake.without_export(monkeypatch)
    with pytest.raises(BackendError, match="cannot be loaded"):
        build(fake.request(), fake.FakeCompiler("unloadable"), store, fake.pictures())
    assert store.entries() == []


def test_two_builders_build_once(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock excludes open files, not processes: two threads race as two processes do."""
    fake.without_export(monkeypatch)
    compiler, request = fake.FakeCompiler(seconds=0.2), fake.request()
    built: list[Any] = []

    def race() -> None:
        built.append(build(request, compiler, store, fake.pictures()))

    fake.pictures()
    racers = [threading.Thread(target=race) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert compiler.compiled == 1
    assert sorted(b.was_there for b in built) == [False, True]


def _hold(folder: str, key: EngineKey, ready: Any) -> None:
    with EngineStore(Path(folder)).locked(key.name):
        ready.set()
        os._exit(9)


@pytest.mark.fault
def test_a_builder_that_dies_lets_go(store: EngineStore, key: EngineKey) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(store.folder), key, ready))
    process.start()
    process.join(30)
    assert ready.is_set()
    with store.locked(key.name):
        pass


@pytest.mark.fault
def test_a_probe_that_is_answered_wrongly_is_no_engine(store: EngineStore) -> None:
    """What was right when it was built may run wrong later: another driver, say."""
    request, compiler = fake.request(), fake.FakeCompiler("wrong")
    images = fake.pictures()[:2]
    expected = fake.network()(torch.from_numpy(images)).detach().numpy()
    stored_engine = StoredEngine(compiler.compile(None), Probe(images, expected))
    with pytest.raises(BackendError, match="answers wrongly"):
        open_engine(request, compiler, stored_engine)
    assert compiler.engines[0].closed


# Without the libraries --------------------------------------------------------------------------


def test_missing_libraries_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "missing_libraries", lambda: ["torch_tensorrt"])
    with pytest.raises(BackendError, match="no torch_tensorrt here") as caught:
        libraries.import_library("tensorrt")
    assert caught.value.hint


@pytest.mark.fault
def test_an_import_that_raises_and_prints_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As torch-tensorrt does without TensorRT's own libraries: a bare Exception, and prints."""
    (tmp_path / "torch_tensorrt.py").write_text(
        "print('noise')\nraise Exception('no\\nlibnvinfer')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(libraries, "missing_libraries", list)
    with pytest.raises(BackendError, match="torch_tensorrt cannot be imported: no libnvinfer"):
        libraries.import_library("torch_tensorrt")
    assert capfd.readouterr().out == ""
