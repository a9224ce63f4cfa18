"""Downloads against a local server that misbehaves, and the `models` commands around them."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from weights_server import BODY, Server, serve

from vidmatte.cli.models import models as models_command
from vidmatte.errors import ModelError
from vidmatte.models import download as download_module
from vidmatte.models.download import download
from vidmatte.models.install import install
from vidmatte.models.network import U2Net
from vidmatte.models.registry import resolve_model
from vidmatte.models.table import Download, convolutions, models
from vidmatte.models.weights import folded


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def silent(done: int, total: int | None) -> None:
    """Report to nobody."""


def test_a_whole_download(server: Server, folder: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    download(server.source(), folder / "w.pth", lambda done, total: heard.append((done, total)))
    assert (folder / "w.pth").read_bytes() == BODY
    assert heard[0] == (0, len(BODY))
    assert heard[-1] == (len(BODY), len(BODY))
    assert [p.name for p in folder.iterdir()] == ["w.pth"]


def test_a_server_that_tells_no_length(server: Server, folder: Path) -> None:
    server.behaviour.length = False
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY


@pytest.mark.fault
def test_a_cut_connection_is_taken_up_where_it_was_cut(server: Server, folder: Path) -> None:
    server.behaviour.cut_after = [300_000, 100_000]
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY
    assert server.behaviour.asked == [None, "bytes=300000-", "bytes=400000-"]


def test_a_later_run_continues(server: Server, folder: Path) -> None:
    server.behaviour.cut_after = [1000] * download_module.ATTEMPTS
    with pytest.raises(ModelError, match="cut after 3000 bytes") as caught:
        download(server.source(), folder / "w.pth", silent)
    assert "run the same command again" in str(caught.value.hint)
    assert not (folder / "w.pth").exists()
    assert (folder / "w.pth.part").read_bytes() == BODY[:3000]
    download(server.source(), folder / "w.pth", silent)
    assert server.behaviour.asked[-1] == "bytes=3000-"
    assert (folder / "w.pth").read_bytes() == BODY


@pytest.mark.fault
def test_a_server_without_ranges_starts_again(server: Server, folder: Path) -> None:
    server.behaviour.ranges = False
    folder.mkdir()
    (folder / "w.pth.part").write_bytes(BODY[:5000])
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY


def test_a_part_that_is_whole_already(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "w.pth.part").write_bytes(BODY)
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY


@pytest.mark.fault
@pytest.mark.parametrize("stale", [b"", b"something else", BODY + b"more"])
def test_a_wrong_hash_installs_nothing(server: Server, folder: Path, stale: bytes) -> None:
    """Also where the part left over was of another file."""
    folder.mkdir()
    if stale:
        (folder / "w.pth.part").write_bytes(stale)
    else:
        server.behaviour.body = BODY[:-1] + b"!"
    with pytest.raises(ModelError, match="not the expected one"):
        download(server.source(), folder / "w.pth", silent)
    assert list(folder.iterdir()) == []


@pytest.mark.fault
def test_a_web_page_is_not_taken_for_weights(server: Server, folder: Path) -> None:
    server.behaviour.content_type = "text/html; charset=utf-8"
    with pytest.raises(ModelError, match="web page instead of the file"):
        download(server.source(), folder / "w.pth", silent)
    assert list(folder.iterdir()) == []


@pytest.mark.fault
def test_not_found(server: Server, folder: Path) -> None:
    with pytest.raises(ModelError, match="answered 404"):
        download(server.source("missing"), folder / "w.pth", silent)


@pytest.mark.fault
def test_offline_is_said_in_one_line(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    source = Download(f"http://127.0.0.1:{port}/w", "0" * 64, "this test")
    with pytest.raises(ModelError, match=r"cannot reach 127\.0\.0\.1") as caught:
        download(source, folder / "w.pth", silent)
    assert "check the network" in str(caught.value.hint)


@pytest.mark.fault
def test_a_full_disk_is_said_in_one_line(server: Server, folder: Path) -> None:
    """A file size limit makes write() fail in the middle, as a full disk does."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from vidmatte.errors import ModelError
from vidmatte.models.download import download
from vidmatte.models.table import Download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    download(Download(*{tuple(server.source())!r}), Path({str(folder / "w.pth")!r}), print)
except ModelError as exc:
    print("ERROR", exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"ERROR cannot write {folder / 'w.pth.part'}: File too large" in done.stdout
    assert not (folder / "w.pth").exists()
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY


def u2netp_pth(path: Path) -> Path:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(U2Net(models()["u2netp"].network).state_dict(), path)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models_command, list(arguments))


def test_download_command_installs(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behaviour.body = u2netp_pth(tmp_path / "w.pth").read_bytes()
    row = models()["u2netp"]
    source = server.source(body=server.behaviour.body)
    monkeypatch.setitem(models(), "u2netp", replace(row, download=source))
    result = run("download", "u2netp")
    assert result.exit_code == 0, result.exception
    assert sorted(p.name for p in folder.iterdir()) == ["u2netp.json", "u2netp.safetensors"]
    model = resolve_model("u2netp")
    assert model.origin == "installed"
    assert f"SHA-256 {model.sha256}" in result.output
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == model.sha256
    again = run("download", "u2netp")
    assert isinstance(again.exception, ModelError)
    assert "here already" in str(again.exception)


def test_download_of_what_has_no_address_says_how_to_get_it() -> None:
    for name in ("u2net_human_seg",):
        result = run("download", name)
        assert isinstance(result.exception, ModelError)
        assert "vidmatte models import" in str(result.exception.hint)


def test_every_download_is_pinned_and_cited() -> None:
    for row in models().values():
        if row.download is not None:
            assert row.download.url.startswith("https://")
            assert re.fullmatch(r"[0-9a-f]{64}", row.download.sha256)
            assert row.download.cited


def test_import_keeps_every_value(tmp_path: Path) -> None:
    path = u2netp_pth(tmp_path / "official.pth")
    model = install(path)
    state = torch.load(path, weights_only=True)
    stored = load_file(model.path)
    assert set(stored) == {k for k in state if not k.endswith("num_batches_tracked")}
    assert all(np.array_equal(stored[key], state[key].numpy()) for key in stored)
    record = json.loads(model.path.with_suffix(".json").read_text())
    assert record["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(model.load()) == {
        key for c in convolutions(model.row.network) for key in (c.weight_key, c.bias_key)
    }


def test_import_command_names_what_it_made(tmp_path: Path) -> None:
    result = run("import", str(u2netp_pth(tmp_path / "w.pth")))
    assert result.exit_code == 0, result.exception
    assert "u2netp.safetensors" in result.output


@pytest.mark.fault
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "none.pth"), "does not exist"),
        (("import", "none.pth", "--name", "live"), "does not exist|embedded"),
        (("import", "none.pth", "--name", "u3net"), "does not exist|no model"),
        (("download", "u3net"), "no model 'u3net'"),
    ],
)
def test_commands_fail_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, ModelError)
    assert re.search(message, str(result.exception))


def test_import_does_not_replace_the_embedded_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="embedded"):
        install(u2netp_pth(tmp_path / "w.pth"), "live")


def test_import_asks_which_of_two_models_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with u2net and u2net_human_seg: only the file's name or the user can tell them apart."""
    twin = replace(models()["u2net"], network=models()["u2netp"].network)
    monkeypatch.setitem(models(), "u2net", twin)
    unclear, clear = u2netp_pth(tmp_path / "full_weights.pth"), u2netp_pth(tmp_path / "u2net.pth")
    with pytest.raises(ModelError, match="may be any of u2netp, u2net"):
        install(unclear)
    assert install(clear).name == "u2net"
    assert install(unclear, "u2netp").name == "u2netp"


@pytest.mark.fault
def test_import_into_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "file" / "models"))
    with pytest.raises(ModelError, match="cannot write into"):
        install(u2netp_pth(tmp_path / "w.pth"))


def test_list_tells_everything(tmp_path: Path) -> None:
    install(u2netp_pth(tmp_path / "w.pth"))
    facts = {fact["name"]: fact for fact in json.loads(run("list", "--json").stdout)}
    assert set(facts) == set(models())
    assert facts["live"]["origin"] == "embedded"
    assert facts["live"]["sha256"] == resolve_model("live").sha256
    assert facts["u2netp"]["bytes"] == resolve_model("u2netp").path.stat().st_size
    assert facts["u2netp"]["multiply_adds"] == 19_756_089_600
    assert facts["u2net"]["where"] is None
    assert facts["u2net"]["get"] == "run: vidmatte models download u2net"
    text = run("list").stdout
    for word in ("44.01 M", "Apache-2.0", "58.60 G", "SHA-256 2d523f19", "not here"):
        assert word in text


def onnx_of(name: str, *, bn: bool) -> tuple[bytes, dict[str, Any]]:
    """Build an export as torch's exporters do: convolutions in order, renamed if BN is folded."""
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(3)
    nodes, constants, expected = [], [], {}

    def constant(label: str, array: Any, key: str) -> str:
        constants.append(onnx.numpy_helper.from_array(array, label))
        expected[key] = array
        return label

    for i, conv in enumerate(convolutions(models()[name].network)):
        weight = rng.standard_normal(conv.weight_shape, np.float32)
        inputs = [
            f"x{i}",
            constant(f"onnx::Conv_{2 * i}", weight, conv.weight_key),
            constant(
                f"onnx::Conv_{2 * i + 1}",
                rng.standard_normal(conv.out_channels, np.float32),
                conv.bias_key,
            ),
        ]
        dilations = [conv.dilation] * 2
        nodes.append(onnx.helper.make_node("Conv", inputs, [f"y{i}"], dilations=dilations))
        if bn and conv.normalised:
            parts = ("weight", "bias", "running_mean", "running_var")
            names = [
                constant(
                    f"bn{i}{part}", rng.random(conv.out_channels, np.float32), conv.bn_key(part)
                )
                for part in parts
            ]
            nodes.append(onnx.helper.make_node("BatchNormalization", [f"y{i}", *names], [f"z{i}"]))
    value = onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    graph = onnx.helper.make_graph(nodes, "u2", [value], [value], constants)
    return onnx.helper.make_model(graph).SerializeToString(), expected


@pytest.mark.parametrize("bn", [False, True])
def test_import_of_onnx(tmp_path: Path, bn: bool) -> None:
    data, expected = onnx_of("u2netp", bn=bn)
    path = tmp_path / "u2netp.onnx"
    path.write_bytes(data)
    model = install(path)
    stored = load_file(model.path)
    assert model.name == "u2netp"
    assert set(stored) == set(expected)
    assert all(np.array_equal(stored[key], expected[key]) for key in stored)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_of_torch_s_exporter(tmp_path: Path) -> None:
    """The real exporter's names and order: every folded layer must come back."""
    pytest.importorskip("onnx")
    torch.manual_seed(1)
    network = models()["u2netp"].network
    module = U2Net(network).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
    path = tmp_path / "w.onnx"
    torch.onnx.export(module, (torch.zeros(1, 3, 64, 64),), str(path), dynamo=False)
    got = install(path).load()
    expected = folded(network, {k: v.numpy() for k, v in module.state_dict().items()})
    for key, value in expected.items():
        assert np.allclose(got[key], value, rtol=1e-4, atol=1e-5), key


@pytest.mark.fault
def test_onnx_that_is_not_ours(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "w.onnx"
    path.write_bytes(b"\x00garbage\xff" * 50)
    with pytest.raises(ModelError, match="damaged or no ONNX file"):
        install(path)
    model = onnx.load_model_from_string(onnx_of("u2netp", bn=False)[0])
    del model.graph.node[7]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="118 convolutions"):
        install(path)


@pytest.mark.fault
def test_onnx_never_reads_another_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(onnx_of("u2netp", bn=False)[0])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    path = tmp_path / "w.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="another file"):
        install(path)


def test_without_onnx_the_repair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "w.onnx"
    path.write_bytes(b"x")
    with pytest.raises(ModelError) as caught:
        install(path)
    assert caught.value.hint == "pip install 'vidmatte[onnx]'"


def test_the_command_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, vidmatte.cli.models\n"
        "found = {'torch', 'openvino', 'cv2', 'av', 'numpy', 'onnx'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
