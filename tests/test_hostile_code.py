"""What the code may never do, read off its syntax; and a model folder that strangers cannot use."""

from __future__ import annotations

import ast
import grp
import json
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY
from safetensors.numpy import load_file, save
from traps import Bait

from vidmatte.errors import ModelError
from vidmatte.models import install as install_module
from vidmatte.models import registry
from vidmatte.models.install import install, write_whole
from vidmatte.models.registry import find, resolve_model
from vidmatte.models.table import WEIGHTS_FOLDER, models
from vidmatte.models.weights import read_bytes, sha256_of

pytestmark = pytest.mark.fault

FILES = sorted((REPOSITORY / "vidmatte").rglob("*.py"))
# Calls that run what a file or a name says.
FORBIDDEN = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.spawn*", "os.exec*",
    "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.*", "dill.*", "joblib.*",
    "shelve.*", "marshal.load*", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.jit.load", "torch.hub.*", "torch.package.*", "numpy.lib.format.*", "tempfile.mktemp",
    "runpy.*",
)  # fmt: skip
ALLOWED = {"re.compile", "torch.compile"}


def calls_in(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the full name of what it calls, as far as the imports tell."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.partition(".")[0]
                names[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield ".".join(filter(None, [names.get(first, first), rest])), node


def constant(call: ast.Call, name: str) -> object:
    """The value of a keyword that is written out, else None."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


def crimes(text: str) -> list[str]:
    """Say every forbidden thing that a piece of code does."""
    found = []
    for name, call in calls_in(ast.parse(text)):
        plain = name.removeprefix("self._").removeprefix("self.")
        for pattern in FORBIDDEN:
            start, star, _ = pattern.partition("*")
            if name not in ALLOWED and (plain == pattern or (star and plain.startswith(start))):
                found.append(f"{call.lineno}: {name}")
        if plain == "torch.load" and constant(call, "weights_only") is not True:
            found.append(f"{call.lineno}: torch.load without weights_only=True")
        if plain.split(".")[-1] == "load" and constant(call, "allow_pickle"):
            found.append(f"{call.lineno}: {name} unpickles")
        if constant(call, "shell"):
            found.append(f"{call.lineno}: {name} with a shell")
        if plain.startswith("subprocess.") and not _is_list(call):
            found.append(f"{call.lineno}: {name} of a string")
    return found


def _is_list(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    return not isinstance(first, ast.Constant | ast.JoinedStr | ast.BinOp)


@pytest.mark.parametrize(
    "text",
    ["import os\nos.system('x')", "from os import system as s\ns('x')", "eval('1')",
     "import subprocess\nsubprocess.run('ls', shell=True)",
     "import subprocess\nsubprocess.run('ls')",
     "import subprocess as s\ns.Popen(f'ls {x}')", "import pickle\npickle.load(f)",
     "from pickle import loads\nloads(b)", "import torch\ntorch.load(f)",
     "import torch\ntorch.load(f, weights_only=False)", "import yaml\nyaml.load(t)",
     "import numpy as np\nnp.load(f, allow_pickle=True)", "import os\nos.execvp('a', [])"],
)  # fmt: skip
def test_a_crime_is_seen(text: str) -> None:
    assert crimes(text)


def test_honest_code_is_not_accused() -> None:
    honest = "import re, torch\nre.compile('x')\ntorch.load(f, weights_only=True)\nnp.load(f)"
    assert crimes(honest) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY / "vidmatte")))
def test_no_file_runs_what_it_reads(path: Path) -> None:
    assert crimes(path.read_text("utf-8")) == []


def test_ffmpeg_never_gets_a_name_that_it_could_resolve() -> None:
    """`av.open` is given a descriptor, or for clips of our own making a path behind `file:`."""
    opened = {}
    for path in FILES:
        for name, call in calls_in(ast.parse(path.read_text("utf-8"))):
            if name == "av.open":
                where = str(path.relative_to(REPOSITORY / "vidmatte"))
                opened.setdefault(where, []).append(ast.unparse(call.args[0]))
    ours = {
        "sources/_shared.py": ["'fd:'"],
        "sinks/file.py": ["self._address"],  # pipe:N or file:/dev/fd/N
        "sinks/gif.py": ["f'file:/dev/fd/{descriptor}'"],
        "sources/synthetic.py": ["f'file:{path}'", "f'file:{alpha_path}'"],
    }
    assert {where: opened.get(where) for where in ours} == ours
    # A camera, or a virtual one, is asked for explicitly: a device and its one format.
    asked_for_explicitly = {where for where in opened if re.search("camera|virtualcam", where)}
    assert set(opened) - set(ours) == asked_for_explicitly


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "data" / "models"))
    return tmp_path / "data" / "models"


def put_weights(folder: Path, scale: float = 1.0) -> bytes:
    """Install weights of `live` as those of a row that is not embedded; return their bytes."""
    tensors = load_file(WEIGHTS_FOLDER / "live.safetensors")
    data = bytes(save({k: (v * scale).astype(v.dtype) for k, v in tensors.items()}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u2netp.safetensors").write_bytes(data)
    (folder / "u2netp.json").write_text(json.dumps({"sha256": sha256_of(data)}))
    return data


def test_the_folder_is_made_for_this_user_alone(folder: Path) -> None:
    mask = os.umask(0)
    try:
        write_whole(folder / "x.safetensors", b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [p.name for p in folder.iterdir()] == ["x.safetensors"]


def test_a_folder_that_everybody_may_write_to_is_not_used(folder: Path) -> None:
    put_weights(folder)
    folder.chmod(0o777)
    for use in (lambda: find("u2netp"), lambda: write_whole(folder / "x", b"x")):
        with pytest.raises(ModelError, match="everybody may write into it") as caught:
            use()
        assert "chmod o-w" in str(caught.value.hint)
    folder.chmod(0o755)
    assert find("u2netp") is not None
    assert resolve_model().name == "live"  # the embedded one needs no folder


def test_a_folder_that_a_group_of_several_may_write_to_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group that a system makes for one user alone is no other than the user."""
    put_weights(folder)
    folder.chmod(0o770)
    user = SimpleNamespace(pw_name="me")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    for name, members, is_used in (
        ("me", [], True), ("me", ["me"], True), ("me", ["me", "you"], False), ("staff", [], False),
    ):  # fmt: skip
        group = SimpleNamespace(gr_name=name, gr_mem=members)
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: group)
        if is_used:
            assert find("u2netp") is not None
            continue
        with pytest.raises(ModelError, match="its group may write into it") as caught:
            find("u2netp")
        assert "chmod g-w" in str(caught.value.hint)


def test_a_folder_of_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_weights(folder)
    if os.geteuid() == 0:
        os.chown(folder, 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 1234567)
    with pytest.raises(ModelError, match="belongs to another user"):
        find("u2netp")
    with pytest.raises(ModelError, match="belongs to another user"):
        write_whole(folder / "x.safetensors", b"x")


def test_a_link_in_place_of_the_weights_is_replaced_and_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folder.mkdir(parents=True)
    (folder / "x.safetensors").symlink_to(precious)
    write_whole(folder / "x.safetensors", b"new")
    assert precious.read_bytes() == b"precious"
    assert not (folder / "x.safetensors").is_symlink()
    assert (folder / "x.safetensors").read_bytes() == b"new"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    fails: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(folder / "x.safetensors", b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(install_module.os, fails, full)
    with pytest.raises(ModelError, match="No space left"):
        write_whole(folder / "x.safetensors", b"new")
    assert [p.name for p in folder.iterdir()] == ["x.safetensors"]
    assert (folder / "x.safetensors").read_bytes() == b"old"


def test_the_bytes_that_are_hashed_are_those_that_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone swaps the file as soon as it has been read."""
    twin = replace(models()["u2netp"], network=models()["live"].network)
    monkeypatch.setitem(models(), "u2netp", twin)
    put_weights(folder)
    model = find("u2netp")
    assert model is not None
    expected = resolve_model().load()
    readings = []

    def read_and_swap(path: Path) -> bytes:
        data = read_bytes(path)
        readings.append(path)
        path.write_bytes(bytes(save({k: v * 3 for k, v in load_file(path).items()})))
        return data

    monkeypatch.setattr(registry, "read_bytes", read_and_swap)
    loaded = model.load()
    assert readings == [folder / "u2netp.safetensors"]
    assert all(np.array_equal(expected[key], loaded[key]) for key in expected)
    with pytest.raises(ModelError, match="is damaged"):
        model.load()


def test_weights_are_opened_once(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"x" * 1000)
    trap = Bait(path)
    assert read_bytes(path) == b"x" * 1000
    opened = trap.bites()
    path.read_bytes()
    assert opened == trap.bites()  # one opening and its readings
    trap.close()


def test_weights_that_are_no_file_neither_block_nor_flood(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pth")
    for path in (tmp_path / "fifo.pth", tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelError):
            read_bytes(path)
    with (tmp_path / "sparse.pth").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="too large"):
        install(tmp_path / "sparse.pth")
