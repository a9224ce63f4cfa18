"""Weights that are damaged, swapped, foreign or hostile: the real command names them and stops."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_here import CliHere
from conftest import REPOSITORY, Cli, decode, leftovers, make_clip
from faulty import refusal
from fuzz_weights import MODEL, make_weights

from vidmatte.models.table import WEIGHTS_FOLDER
from vidmatte.models.weights import sha256_of

pytestmark = pytest.mark.fault

REFUSED_S = 5.0
MEMORY_KB = 3 << 20  # of address space, which torch takes 1.5 GB of before it reads anything
LIVE = WEIGHTS_FOLDER / "live.safetensors"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


class TouchesCanary:
    """Unpickling this creates a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (self._canary,)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "s.mp4", 3)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of undamaged weights of every kind, with what is installed of u2netp."""
    folder = tmp_path_factory.mktemp("good")
    make_weights(folder)
    return folder


@pytest.fixture
def store(good: Path, tmp_path: Path, run_cli: Cli) -> Path:
    """The model folder that `run_cli` uses, with u2netp installed."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    for suffix in (".safetensors", ".json"):
        shutil.copy(good / f"{MODEL}{suffix}", folder)
    run_cli.env["VIDMATTE_MODEL_DIR"] = str(folder)
    return folder


def refused(cli: Cli, *arguments: object, cwd: Path | None = None) -> str:
    """Run what must be refused soon and in bounded memory; return the error line."""
    before = children_cpu_s()
    done = cli(*arguments, shell_prefix=f"ulimit -v {MEMORY_KB};", cwd=cwd)
    assert children_cpu_s() - before < REFUSED_S
    return refusal(done)


def children_cpu_s() -> float:
    """Seconds of CPU of all children so far: unlike those of a clock, other tests cost none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def refused_here(cli: CliHere, *arguments: object) -> str:
    """The same without the start of a process."""
    began = time.process_time()
    error = cli(*arguments).refusal
    assert time.process_time() - began < REFUSED_S
    return error


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swap_for_live(path: Path) -> None:
    shutil.copy(LIVE, path)


def make_page(path: Path) -> None:
    path.write_bytes(PAGE)


@pytest.mark.parametrize("harm", [flip_a_bit, halve, swap_for_live, make_page])
def test_an_installed_file_that_is_not_the_recorded_one_is_not_used(
    harm: Callable[[Path], None], store: Path, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    harm(store / f"{MODEL}.safetensors")
    error = refused(run_cli, "run", clip, tmp_path / "o.mp4", "--model", MODEL)
    assert f"{MODEL}.safetensors is damaged" in error
    assert leftovers(tmp_path) == ["store"]


def test_another_model_under_a_name_is_not_used_even_with_its_record(
    store: Path, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    swap_for_live(store / f"{MODEL}.safetensors")
    (store / f"{MODEL}.json").write_text(json.dumps({"sha256": sha256_of(LIVE.read_bytes())}))
    error = refused(run_cli, "run", clip, tmp_path / "o.mp4", "--model", MODEL)
    assert f"{MODEL}.safetensors holds no weights" in error
    assert leftovers(tmp_path) == ["store"]


def test_a_store_that_others_may_change_is_not_used(
    store: Path, clip: Path, tmp_path: Path, run_cli: Cli, good: Path
) -> None:
    run = ("run", clip, tmp_path / "o.mp4", "--model", MODEL)
    store.chmod(0o777)
    assert "everybody may write" in refused(run_cli, *run)
    assert "everybody may write" in refused(run_cli, "models", "import", good / "u2netp.pth")
    store.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(store, 12345, 12345)
        assert "belongs to another user" in refused(run_cli, *run)
    assert leftovers(tmp_path) == ["store"]


def test_a_new_store_is_for_this_user_alone(tmp_path: Path, good: Path, run_cli: Cli) -> None:
    folder = tmp_path / "new" / "store"
    run_cli.env["VIDMATTE_MODEL_DIR"] = str(folder)
    weights = good / f"{MODEL}.safetensors"
    done = run_cli("models", "import", weights, "--name", MODEL, shell_prefix="umask 0;")
    assert done.returncode == 0, done.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    assert leftovers(folder) == [f"{MODEL}.json", f"{MODEL}.safetensors"]


def test_links_and_pipes_in_the_store(
    store: Path, clip: Path, tmp_path: Path, run_cli: Cli, good: Path
) -> None:
    weights, precious = store / f"{MODEL}.safetensors", tmp_path / "precious"
    run = ("run", clip, tmp_path / "o.mp4", "--model", MODEL)
    precious.write_text("precious")
    weights.unlink()
    weights.symlink_to(precious)  # what it leads to is hashed like any other file
    assert f"{weights} is damaged" in refused(run_cli, *run)
    done = run_cli("models", "import", good / weights.name, "--name", MODEL)
    assert done.returncode == 0, done.stderr
    assert not weights.is_symlink()
    assert precious.read_text() == "precious"
    weights.unlink()
    os.mkfifo(weights)
    assert f"the weights of {MODEL} are not installed" in refused(run_cli, *run)
    assert leftovers(tmp_path) == ["precious", "store"]


def test_a_part_of_an_import_that_was_killed_does_no_harm(
    store: Path, good: Path, run_cli: Cli
) -> None:
    (store / f"{MODEL}.safetensors.123.part").write_bytes(b"half")
    (store / f"{MODEL}.pth.part").write_bytes(b"half of a download")
    assert run_cli("models", "list").returncode == 0
    weights = good / f"{MODEL}.safetensors"
    assert run_cli("models", "import", weights, "--name", MODEL).returncode == 0


def test_embedded_weights_with_a_flipped_bit_are_not_used(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    shutil.copytree(REPOSITORY / "vidmatte", tmp_path / "vidmatte",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    flip_a_bit(tmp_path / "vidmatte" / "weights" / LIVE.name)
    run_cli.env["PYTHONPATH"] = str(tmp_path)
    error = refused(run_cli, "run", clip, tmp_path / "o.mp4", cwd=tmp_path)  # where `-m` looks
    assert f"{LIVE.name} is damaged" in error
    assert leftovers(tmp_path) == ["vidmatte"]


def as_pickle(canary: Path) -> bytes:
    return pickle.dumps({"outconv.weight": TouchesCanary(canary)})


def as_zip(canary: Path) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"outconv.weight": TouchesCanary(canary)}, file)
    return file.getvalue()


def as_old_file(canary: Path) -> bytes:
    import torch

    file = io.BytesIO()
    state = {"outconv.weight": TouchesCanary(canary)}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_oldest_file(canary: Path) -> bytes:
    """A tar of pickles, as torch wrote before 0.2 and still reads."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = as_pickle(canary)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def as_script(canary: Path) -> bytes:
    """A zip that says it is TorchScript, with the pickle where torch looks for it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", as_pickle(canary))
        archive.writestr("m/constants.pkl", as_pickle(canary))
        archive.writestr("m/version", "3\n")
    return file.getvalue()


KINDS = [as_pickle, as_zip, as_old_file, as_oldest_file, as_script]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_the_canary_sings_for_a_careless_reader(
    kind: Callable[[Path], bytes], tmp_path: Path
) -> None:
    import torch

    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    path.write_bytes(kind(canary))
    with contextlib.suppress(RuntimeError, TypeError):  # it is no state dict, but by then it ran
        torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_of_a_weights_file_runs(
    kind: Callable[[Path], bytes], clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    path.write_bytes(kind(canary))
    error = refused(run_cli, "run", clip, tmp_path / "o.mp4", "--weights", path)
    assert "w.pth is damaged or holds more than weights, and was not run" in error
    assert leftovers(tmp_path) == ["w.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".onnx"])
def test_no_code_runs_under_any_suffix_by_import(suffix: str, tmp_path: Path, run_cli: Cli) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"{MODEL}{suffix}"
    path.write_bytes(as_zip(canary))
    assert path.name in refused(run_cli, "models", "import", path)
    assert leftovers(tmp_path) == [path.name]


def test_no_code_runs_out_of_the_store(
    store: Path, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    data = as_zip(tmp_path / "canary")
    (store / f"{MODEL}.safetensors").write_bytes(data)
    (store / f"{MODEL}.json").write_text(json.dumps({"sha256": sha256_of(data)}))
    error = refused(run_cli, "run", clip, tmp_path / "o.mp4", "--model", MODEL)
    assert f"{MODEL}.safetensors is damaged" in error
    assert leftovers(tmp_path) == ["store"]


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "size 2^63": safetensors(b"{}", size=1 << 63),
    "size 2^64-1": safetensors(b"{}", size=(1 << 64) - 1),
    "size just under the limit": safetensors(b"{}", size=99_000_000),
    "overlap": safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "hole": safetensors({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)),
    "backwards": safetensors({"a": tensor([1], 4, 0)}, bytes(4)),
    "behind the end": safetensors({"a": tensor([1 << 40], 0, 4 << 40)}, bytes(4)),
    "shape that overflows": safetensors({"a": tensor([1 << 32, 1 << 32], 0, 0)}),
    "shape and size": safetensors({"a": tensor([1 << 20, 1 << 20], 0, 4)}, bytes(4)),
    "negative": safetensors({"a": tensor([-1], 0, 4)}, bytes(4)),
    "depth": safetensors(b'{"a":' + b"[" * 1_000_000),
    "no tensors": safetensors({}),
}


def test_a_safetensors_header_that_lies_is_one_line(
    tmp_path: Path, cli_here: CliHere, run_cli: Cli
) -> None:
    for name, data in LIES.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        arguments = ("models", "import", path, "--name", MODEL)
        assert path.name in refused_here(cli_here, *arguments), name
        if "size" in name:
            assert path.name in refused(run_cli, *arguments), name
        path.unlink()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("command", ["run", "import"])
def test_what_is_no_weights_file_is_one_line(
    command: str, clip: Path, tmp_path: Path, good: Path, cli_here: CliHere
) -> None:
    """Pages, halves, pipes, folders and devices, by both doors."""
    (tmp_path / "page.safetensors").write_bytes(PAGE)
    (tmp_path / "page.pth").write_bytes(PAGE)
    shutil.copy(good / "u2netp.pth", tmp_path / "half.pth")
    shutil.copy(LIVE, tmp_path / "half.safetensors")
    for half in tmp_path.glob("half.*"):
        halve(half)
    os.mkfifo(tmp_path / "fifo.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    names = [p.name for p in tmp_path.iterdir()]
    for path in [*(tmp_path / name for name in names), Path("/dev/zero")]:
        if command == "run":
            arguments = ("run", clip, tmp_path / "o.mp4", "--weights", path)
        else:
            arguments = ("models", "import", path, "--name", MODEL)
        assert str(path) in refused_here(cli_here, *arguments)
    assert leftovers(tmp_path, *names) == []


def test_a_flipped_bit_in_the_users_own_file_is_told_by_its_hash(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Nobody but the user knows the right hash: it is printed."""
    path = tmp_path / "own.safetensors"
    shutil.copy(LIVE, path)
    flip_a_bit(path)
    done = run_cli("run", clip, tmp_path / "o.mp4", "--weights", path)
    if done.returncode:
        refusal(done)
    else:
        assert sha256_of(path.read_bytes()) in done.stderr
        assert len(decode(tmp_path / "o.mp4")) == 3


def test_onnx_that_keeps_its_weights_elsewhere_reads_nothing_there(
    tmp_path: Path, run_cli: Cli, good: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string((good / "u2netp.onnx").read_bytes())
    bait = tmp_path / "bait.bin"
    os.mkfifo(bait)  # whoever opened it would wait for ever
    for constant in model.graph.initializer:
        constant.ClearField("raw_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value=str(bait))
    (tmp_path / "u2netp.onnx").write_bytes(model.SerializeToString())
    error = refused(run_cli, "models", "import", tmp_path / "u2netp.onnx")
    assert "keeps its weights in another file" in error
    (tmp_path / "cut.onnx").write_bytes((good / "u2netp.onnx").read_bytes()[:-1000])
    assert "cut.onnx" in refused(run_cli, "models", "import", tmp_path / "cut.onnx")
    assert leftovers(tmp_path, "bait.bin") == ["cut.onnx", "u2netp.onnx"]
