"""The family's table, the torch module, and reading weights from files nobody vouches for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from vidmatte.errors import ModelError
from vidmatte.models.network import U2Net, folded_network
from vidmatte.models.registry import find, from_file, resolve_model
from vidmatte.models.table import (
    WEIGHTS_FOLDER,
    convolutions,
    models,
    multiply_adds,
    network_size,
    parameter_count,
)
from vidmatte.models.weights import MAX_BYTES, folded, parse_tensors, recognise

LIVE = WEIGHTS_FOLDER / "live.safetensors"
# Folding multiplies and divides each weight once more in float32; the deepest path has 30 layers.
FOLD_TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _empty_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "models"))


@pytest.mark.parametrize(
    ("name", "parameters", "giga_320", "keys"),
    [
        # Parameters and keys: the official module's; multiply-adds: counted at 320×320.
        ("u2net", 44_009_869, 58.6, 798),
        ("u2net_human_seg", 44_009_869, 58.6, 798),
        ("u2netp", 1_131_181, 19.8, 798),
        ("live", 1_415_821, 1.473, 805),
    ],
)
def test_counts_are_the_official_ones(
    name: str, parameters: int, giga_320: float, keys: int
) -> None:
    network = models()[name].network
    with torch.device("meta"):
        module = U2Net(network)
    assert parameter_count(network) == parameters
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert len(module.state_dict()) == keys
    digits = len(str(giga_320).partition(".")[2])
    assert round(multiply_adds(network, 320, 320) / 1e9, digits) == giga_320


def test_counted_multiply_adds_are_the_module_s() -> None:
    network = models()["live"].network
    counted = 0

    def count(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * output[0, 0].numel()  # type: ignore[operator]

    with torch.device("meta"):
        module = U2Net(network)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count)
        module(torch.empty(1, 3, 192, 320))
    assert counted == multiply_adds(network, 320, 192) == 883_741_680


def test_names_and_shapes_are_the_module_s() -> None:
    for row in models().values():
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in U2Net(row.network).state_dict().items()}
        for conv in convolutions(row.network):
            assert shapes[conv.weight_key] == conv.weight_shape
            assert shapes[conv.bias_key] == (conv.out_channels,)
            assert (conv.bn_key("running_var") in shapes) == conv.normalised


def test_official_names_load_unchanged() -> None:
    """Names written out from the official model/u2net.py, one of each kind."""
    with torch.device("meta"):
        keys = set(U2Net(models()["u2net"].network).state_dict())
    assert {
        "stage1.rebnconvin.conv_s1.weight",
        "stage1.rebnconv7.bn_s1.running_mean",
        "stage5.rebnconv4.conv_s1.bias",
        "stage6.rebnconv3d.bn_s1.num_batches_tracked",
        "stage2d.rebnconv5d.bn_s1.weight",
        "side6.weight",
        "outconv.bias",
    } <= keys


def test_live_loads_into_the_training_module_strictly() -> None:
    state = {k: torch.from_numpy(v).float() for k, v in load_file(LIVE).items()}
    module = U2Net(models()["live"].network)
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)


def test_fold_changes_nothing() -> None:
    row = models()["live"]
    unfolded = U2Net(row.network).eval()
    state = {k: torch.from_numpy(v).float() for k, v in load_file(LIVE).items()}
    unfolded.load_state_dict(state, strict=False)
    x = torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = unfolded(x)
        after = folded_network(row.network, folded(row.network, load_file(LIVE)))(x)
    for a, b in zip(before, after, strict=True):
        assert (a.sigmoid() - b.sigmoid()).abs().max() <= FOLD_TOLERANCE


def test_folding_folded_weights_is_the_identity() -> None:
    row = models()["live"]
    once = folded(row.network, load_file(LIVE))
    twice = folded(row.network, once)
    assert all(np.array_equal(once[key], twice[key]) for key in once)
    assert {v.dtype for v in once.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 720), (320, 192)),
        ((720, 1280), (192, 320)),
        ((1920, 1080), (320, 192)),
        ((512, 512), (320, 320)),
        ((3840, 2), (320, 64)),
        ((1, 1), (320, 320)),
    ],
)
def test_network_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert network_size(*size, models()["live"]) == expected


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(64, 640))
def test_network_size_keeps_multiples_and_aspect(width: int, height: int, longer: int) -> None:
    for row in models().values():
        step = row.multiple_of
        w, h = network_size(width, height, row, longer)
        assert w % step == 0 == h % step
        assert min(w, h) >= step
        scale = longer / max(width, height)
        assert abs(w - width * scale) <= step / 2 or w == step
        assert abs(h - height * scale) <= step / 2 or h == step


def test_embedded_weights_are_pinned() -> None:
    model = resolve_model()
    assert model.name == "live"
    assert hashlib.sha256(LIVE.read_bytes()).hexdigest() == model.sha256
    assert model.sha256 == "2d523f19bf555e2da487e6e1f5c3dd14883a6d6dabeffc86abc785191ef6c2af"


@pytest.mark.fault
def test_a_flipped_bit_in_embedded_weights_is_found(tmp_path: Path) -> None:
    data = bytearray(LIVE.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "live.safetensors"
    path.write_bytes(data)
    model = resolve_model()
    damaged = type(model)(model.row, path, "embedded", model.sha256)
    with pytest.raises(ModelError, match="damaged"):
        damaged.load()


def write_pth(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def live_state() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in load_file(LIVE).items()}


@pytest.mark.parametrize("wrapped", ["plain", "module.", "state_dict"])
def test_a_pth_is_recognised(tmp_path: Path, wrapped: str) -> None:
    state: Any = live_state()
    if wrapped == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    if wrapped == "state_dict":
        state = {"state_dict": state, "step": 3}
    path = write_pth(tmp_path / "mine.pth", state)
    model = from_file(path)
    assert model.name == "live"
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    reference = resolve_model().load()
    loaded = model.load()
    assert all(np.array_equal(reference[key], loaded[key]) for key in reference)


class Runs:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.fault
@pytest.mark.parametrize("save_with", ["torch", "pickle"])
def test_a_pickle_with_code_does_not_run(tmp_path: Path, save_with: str) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "ran"
    if save_with == "torch":
        write_pth(path, {"a": Runs(target)})
    else:
        path.write_bytes(pickle.dumps({"a": Runs(target)}))
    with pytest.raises(ModelError, match="was not run"):
        from_file(path)
    assert not target.exists()


def safetensors_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.safetensors", b""),
        ("short.safetensors", LIVE.read_bytes()[:5000]),
        ("cut.safetensors", LIVE.read_bytes()[:-1]),
        ("page.safetensors", b"<!DOCTYPE html><html>404</html>"),
        ("page.pth", b"\n  <html><body>Google Drive - Quota exceeded</body></html>"),
        ("huge.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("json.safetensors", safetensors_header(b"[not json")),
        ("noise.pth", bytes(range(256)) * 20),
        ("empty.pth", b""),
        ("list.pth", pickle.dumps([1, 2, 3])),
        ("weights.txt", b"hello"),
        ("bf16.safetensors", b""),
    ],
)
def test_what_is_not_weights_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        from_file(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.fault
def test_a_cut_pth_is_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(live_state(), whole)
    path = tmp_path / "cut.pth"
    path.write_bytes(whole.getvalue()[:-1000])
    with pytest.raises(ModelError, match=r"cut\.pth"):
        from_file(path)


@pytest.mark.fault
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_pth_never_ends_in_another_error(tmp_path: Path, legacy: bool) -> None:
    whole = io.BytesIO()
    tensors = {"outconv.weight": torch.zeros(1, 6, 1, 1), "outconv.bias": torch.zeros(1)}
    torch.save(tensors, whole, _use_new_zipfile_serialization=not legacy)
    good = whole.getvalue()
    rng = np.random.default_rng(0)
    path = tmp_path / "bits.pth"
    for _ in range(100):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        with pytest.raises(ModelError):
            from_file_bytes(path, bytes(data))


def from_file_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    from_file(path)


@pytest.mark.fault
def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        from_file(tmp_path / "none.pth")
    with pytest.raises(ModelError, match="is not a file"):
        from_file(tmp_path)
    sparse = tmp_path / "huge.pth"
    with sparse.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ModelError, match="too large"):
        from_file(sparse)


@pytest.mark.fault
@pytest.mark.parametrize("text", ["", "[]", '{"ranges": {}, "mean_magnitude": 1}', '{"ranges": 3}'])
def test_damaged_int8_ranges_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(LIVE.read_bytes())
    path.with_name("mine_int8.json").write_text(text)
    model = from_file(path)
    with pytest.raises(ModelError, match="holds no int8 ranges"):
        model.int8_ranges(model.load())


def edited(change: Any) -> bytes:
    tensors = dict(load_file(LIVE))
    change(tensors)
    return save(tensors)


@pytest.mark.fault
def test_foreign_shapes_are_named(tmp_path: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        tensors["stage3.rebnconv2.conv_s1.weight"] = np.zeros((17, 16, 3, 3), np.float16)

    path = tmp_path / "wide.safetensors"
    path.write_bytes(edited(widen))
    with pytest.raises(ModelError, match=r"live: stage3\.rebnconv2\.conv_s1\.weight is \(17, 16"):
        from_file(path)


@pytest.mark.fault
def test_weights_for_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="u2netp: "):
        from_file(LIVE, "u2netp")


@pytest.mark.fault
def test_missing_bn_statistics_and_nan_are_refused() -> None:
    row = models()["live"]
    tensors = dict(load_file(LIVE))
    del tensors["stage1.rebnconvin.bn_s1.running_mean"]
    with pytest.raises(ModelError, match=r"lack stage1\.rebnconvin\.bn_s1\.running_mean"):
        folded(row.network, tensors)
    tensors = dict(load_file(LIVE))
    tensors["outconv.bias"] = np.array([np.nan], np.float16)
    with pytest.raises(ModelError, match="outconv"):
        folded(row.network, tensors)


def test_recognise_tells_the_family_apart() -> None:
    networks = list({r.network.name: r.network for r in models().values()}.values())
    for network in networks:
        shapes = {
            key: np.broadcast_to(np.float32(0), shape)
            for c in convolutions(network)
            for key, shape in (
                (c.weight_key, c.weight_shape),
                (c.bias_key, (c.out_channels,)),
            )
        }
        assert recognise(shapes, networks, Path("x")).name == network.name


def install_record(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_cuda_takes_the_best_installed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(folder))
    assert resolve_model(device="cuda").reason == (
        "cuda default: live (u2net, u2netp not installed)"
    )
    install_record(folder, "u2netp", b"x")
    assert resolve_model(device="cuda:1").reason == ("cuda default: u2netp (u2net not installed)")
    install_record(folder, "u2net", b"y")
    assert resolve_model(device="cuda").reason == "cuda default: u2net"
    assert resolve_model(device="cpu").name == "live"


@pytest.mark.fault
def test_installed_weights_are_checked_against_their_record(tmp_path: Path) -> None:
    install_record(tmp_path / "models", "u2netp", b"x")
    (tmp_path / "models" / "u2netp.safetensors").write_bytes(b"z")
    model = find("u2netp")
    assert model is not None
    with pytest.raises(ModelError, match="damaged"):
        model.load()


def test_names_that_are_not_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model 'u3net'"):
        resolve_model("u3net")
    with pytest.raises(ModelError, match="u2net_human_seg are not installed") as caught:
        resolve_model("u2net_human_seg")
    assert "vidmatte models import" in str(caught.value.hint)


def test_safetensors_are_read_without_torch_and_models_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import vidmatte.models.registry, vidmatte.backends\n"
        "heavy = {'torch', 'openvino', 'cv2', 'av', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "vidmatte.models.registry.resolve_model().load()\n"
        "assert not {'torch', 'openvino', 'cv2', 'av'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.fault
def test_a_parsed_file_is_never_taken_for_another_format(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        parse_tensors(LIVE.read_bytes(), tmp_path / "live.pth")
