"""One contract for every backend: the modules found in the folder are what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vidmatte import backends
from vidmatte.backends import Backend, Precision, open_backend
from vidmatte.errors import BackendError, ModelError
from vidmatte.models.registry import Model, from_file, resolve_model
from vidmatte.models.table import convolutions, models, network_size

SHARED = Path(os.environ.get("VIDMATTE_SHARED", Path(__file__).parents[2] / "shared"))
U2NETP = SHARED / "weights" / "u2netp_folded.safetensors"
OFFICIAL = SHARED / "official"
Images = NDArray[np.uint8]

# The bounds on mean |Δα| against torch f32.
TOLERANCE = {"f32": 1e-4, "f16": 0.01, "bf16": 0.01, "int8": 0.02}
# Our u2netp weights are fp16 and the official result pictures 8 bits.
OFFICIAL_TOLERANCE = 0.004

# Those that this machine can open; what runs on CUDA alone has tests of its own.
NETWORKS = [name for name in backends.names()
            if name != "null" and "cpu" in backends.module(name).PRECISIONS]  # fmt: skip
ON_CPU: list[tuple[str, Precision]] = [
    (name, precision)
    for name in NETWORKS
    for precision in backends.module(name).PRECISIONS.get("cpu", ())
]


def read_rgb(path: Path) -> Images:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert picture is not None, path
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


@cache
def photographs() -> tuple[Images, ...]:
    """Two of scikit-image's, two of the generated clip, and the official ones where they are."""
    from skimage import data

    from vidmatte.sources.synthetic import SyntheticClip

    clip = SyntheticClip(width=640, height=360, frame_count=30)
    found = [data.chelsea(), data.rocket(), clip.render(0).image, clip.render(29).image]
    if OFFICIAL.is_dir():
        names = sorted(p for p in OFFICIAL.iterdir() if ".u2netp." not in p.name)
        found += [read_rgb(path) for path in names]
    return tuple(found)


@cache
def batch_of(height: int, width: int, count: int) -> Images:
    pictures = photographs()
    resized = [
        cv2.resize(pictures[i % len(pictures)], (width, height), interpolation=cv2.INTER_AREA)
        for i in range(count)
    ]
    return np.ascontiguousarray(np.stack(resized), np.uint8)


@cache
def model_named(name: str) -> Model:
    if name == "live":
        return resolve_model("live")
    if not U2NETP.is_file():
        pytest.skip("the u2netp weights are not beside this checkout (../shared)")
    return from_file(U2NETP)


@cache
def reference(name: str, height: int, width: int, count: int) -> NDArray[np.float32]:
    """torch f32, one picture at a time."""
    model = model_named(name)
    images = batch_of(height, width, count)
    backend = opened(model, (height, width), "torch", "f32")
    return np.stack([backend.infer(images[i : i + 1])[0].copy() for i in range(count)])


def opened(
    model: Model, size: tuple[int, int], name: str, precision: Precision = "auto", batch: int = 1
) -> Backend:
    return open_backend(
        model, size=size, backend=name, device="cpu", precision=precision, batch=batch, threads=2
    )


@pytest.mark.parametrize("model_name", ["live", "u2netp"])
@pytest.mark.parametrize(("name", "precision"), ON_CPU)
def test_probability_is_torch_f32_s(name: str, precision: Precision, model_name: str) -> None:
    model = model_named(model_name)
    try:
        backend = opened(model, (192, 320), name, precision)
    except BackendError as exc:
        if precision == "bf16" and "no bf16 arithmetic" in str(exc):
            pytest.skip(str(exc))
        raise
    count = len(photographs())
    images = batch_of(192, 320, count)
    got = np.stack([backend.infer(images[i : i + 1])[0].copy() for i in range(count)])
    expected = reference(model_name, 192, 320, count)
    stride = model.row.network.output_stride
    assert got.shape == (count, 192 // stride, 320 // stride)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert got.min() >= 0
    assert got.max() <= 1
    assert np.abs(got - expected).mean() <= TOLERANCE[precision]
    assert expected.std() > 0.2, "a flat reference would accept a flat result"
    assert precision in backend.description
    backend.close()
    backend.close()


def test_int8_needs_ranges_of_these_weights(u2net: Model) -> None:
    with pytest.raises(ModelError, match="no int8 ranges for u2net"):
        opened(u2net, (64, 64), "openvino", "int8")
    live = model_named("live")
    other = {key: value * np.float32(1.01) for key, value in live.load().items()}
    with pytest.raises(ModelError, match="of other weights"):
        opened(replace(live, tensors=other), (64, 64), "openvino", "int8")


def test_int8_runs_in_8_bits() -> None:
    """Not f32 under another name: OpenVINO itself says in which type each convolution runs."""
    backend: Any = opened(model_named("live"), (64, 64), "openvino", "int8")
    compiled = backend._request.get_compiled_model()
    kinds = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and facts["layerType"].astype(str) == "Convolution":
            kinds.append(facts["primitiveType"].astype(str))
    assert len(kinds) == 120
    assert sum(kind.endswith("_I8") for kind in kinds) >= 100, kinds


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_equal_single_pictures(name: str) -> None:
    """Also a batch that is not full, in the buffer of a full one."""
    images = batch_of(128, 192, 8)
    single = reference("live", 128, 192, 8)
    for batch in (1, 2, 3, 5, 8):
        backend = opened(model_named("live"), (128, 192), name, "f32", batch)
        for count in (batch, max(1, batch - 1)):
            got = backend.infer(images[:count])
            assert got.shape == (count, 64, 96)
            assert np.abs(got - single[:count]).max() <= TOLERANCE["f32"]
        backend.close()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("aspect", [(3840, 20), (20, 3840), (1000, 700), (333, 517)])
def test_odd_aspect_ratios(name: str, aspect: tuple[int, int]) -> None:
    width, height = network_size(*aspect, models()["live"])
    backend = opened(model_named("live"), (height, width), name, "f32")
    got = backend.infer(batch_of(height, width, 1))
    assert np.abs(got - reference("live", height, width, 1)).max() <= TOLERANCE["f32"]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_instances_do_not_disturb_each_other(name: str) -> None:
    small = opened(model_named("live"), (64, 64), name, "f32")
    large = opened(model_named("live"), (128, 192), name, "f32")
    images_small, images_large = batch_of(64, 64, 1), batch_of(128, 192, 1)
    first = small.infer(images_small).copy()
    large.infer(images_large)
    assert np.array_equal(small.infer(images_small), first)
    small.close()
    got = large.infer(images_large)
    assert np.abs(got - reference("live", 128, 192, 1)).max() <= TOLERANCE["f32"]


def random_u2net() -> Model:
    """u2net's weights cannot be had here: seeded noise of the right shapes, for shape only."""
    row = models()["u2net"]
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for conv in convolutions(row.network):
        spread = np.sqrt(2 / (conv.in_channels * conv.kernel**2))
        noise = rng.standard_normal(conv.weight_shape, np.float32)
        tensors[conv.weight_key] = noise * np.float32(spread)
        tensors[conv.bias_key] = np.zeros(conv.out_channels, np.float32)
    return Model(row, Path("random.safetensors"), "file", "", tensors=tensors)


@pytest.fixture(scope="module")
def u2net() -> Model:
    return random_u2net()


@pytest.mark.parametrize("name", NETWORKS)
def test_u2net_has_the_right_shape(name: str, u2net: Model) -> None:
    backend = opened(u2net, (64, 96), name, "f32", batch=2)
    got = backend.infer(batch_of(64, 96, 2))
    assert got.shape == (2, 64, 96)
    assert np.isfinite(got).all()
    assert got.std() > 0


def official_input(picture: Images) -> NDArray[np.float64]:
    """The official test script's RescaleT(320): bilinear, no anti-aliasing, kept as float."""
    from skimage import transform

    resized = transform.resize(picture, (320, 320), mode="constant", anti_aliasing=False, order=1)
    return np.asarray(resized, np.float64)


def official_result(picture: Images) -> NDArray[np.float64]:
    """What the official test script makes of `picture` with u2netp, in 0..1 at its size."""
    import torch

    from vidmatte.models.network import folded_network

    model = model_named("u2netp")
    scaled = official_input(picture)
    x = (scaled / scaled.max() - np.array(model.row.mean)) / np.array(model.row.std)
    network = folded_network(model.row.network, model.load())
    with torch.inference_mode():
        x_N3HW = torch.from_numpy(x).float().permute(2, 0, 1)[None]
        alpha = network(x_N3HW)[0].sigmoid()[0, 0].numpy()
    alpha = (alpha - alpha.min()) / (alpha.max() - alpha.min())
    # The official script truncates to 8 bits before it enlarges.
    truncated = (alpha * 255).astype(np.uint8)
    height, width = picture.shape[:2]
    enlarged = cv2.resize(truncated, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged / 255.0, np.float64)


def test_official_results_are_reproduced() -> None:
    """The mean over the six pictures; alone, boat.jpg is at .0059 and the others below .004."""
    if not OFFICIAL.is_dir():
        pytest.skip("the official pictures are not beside this checkout (../shared)")
    errors = {}
    for path in sorted(OFFICIAL.glob("*.u2netp.png")):
        name = path.name.removesuffix(".u2netp.png")
        (source,) = (p for p in OFFICIAL.glob(f"{name}.*") if p != path)
        expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert expected is not None
        errors[name] = np.abs(official_result(read_rgb(source)) - expected / 255.0).mean()
    assert len(errors) == 6
    assert np.mean(list(errors.values())) <= OFFICIAL_TOLERANCE, errors
    assert max(errors.values()) <= 2 * OFFICIAL_TOLERANCE, errors


def test_null_is_all_ones_and_needs_no_weights(tmp_path: Path) -> None:
    model = Model(models()["u2net"], tmp_path / "none", "installed", "")
    backend = open_backend(model, size=(64, 96), backend="null", batch=3)
    got = backend.infer(batch_of(64, 96, 2))
    assert got.shape == (2, 64, 96)
    assert (got == 1).all()
    backend.close()


def test_null_disc_moves_and_is_repeatable() -> None:
    images = batch_of(128, 192, 2)
    one = open_backend(model_named("live"), size=(128, 192), backend="null:disc", batch=2)
    two = open_backend(model_named("live"), size=(128, 192), backend="null:disc")
    first, second = one.infer(images).copy()
    assert first.shape == (64, 96)
    assert 0 <= first.min() < 0.01
    assert 0.99 < first.max() <= 1
    assert first.mean() == pytest.approx(np.pi * 16**2 / (64 * 96), rel=0.02)
    assert np.abs(first - second).max() > 0.1
    assert np.array_equal(two.infer(images[:1])[0], first)
    assert np.array_equal(two.infer(images[:1])[0], second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "there is no backend 'onnx'"),
        ({"backend": "null:stripes"}, "there is no null backend 'stripes'"),
        ({"device": "gpu"}, "there is no device 'gpu'"),
        ({"size": (100, 320)}, "multiples of 64"),
        ({"size": (0, 320)}, "multiples of 64"),
        ({"backend": "openvino", "device": "cuda"}, "openvino does not run on cuda"),
        ({"backend": "openvino", "precision": "f16"}, "openvino does not run f16 on cpu"),
        ({"backend": "torch", "device": "cpu", "precision": "int8"}, "torch does not run int8"),
    ],
)
def test_what_cannot_be_had_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(model_named("live"), **{"size": (64, 64), **options})


def test_a_missing_gpu_is_an_error_that_says_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for name in ("torch", "auto"):
        with pytest.raises(BackendError, match="cuda") as caught:
            open_backend(model_named("live"), size=(64, 64), backend=name, device="cuda:0")
        assert caught.value.hint


def test_auto_takes_openvino_on_the_cpu() -> None:
    backend = open_backend(model_named("live"), size=(64, 64), device="cpu", threads=1)
    assert backend.name == "openvino"
    assert backend.description in (
        "OpenVINO bf16 on CPU, 1 thread",
        "OpenVINO f32 on CPU, 1 thread",
    )


@pytest.mark.parametrize(
    ("driver", "why"),
    [(False, "no NVIDIA driver is loaded"), (True, "torch sees no usable NVIDIA GPU")],
)
def test_auto_device_says_why(monkeypatch: pytest.MonkeyPatch, driver: bool, why: str) -> None:
    import torch

    monkeypatch.setattr(backends, "_nvidia_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backend = open_backend(model_named("live"), size=(64, 64), threads=1)
    assert backend.name == "openvino"
    assert backend.description.endswith(f" on CPU, 1 thread (auto: {why})")


def test_auto_says_what_it_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not silent: a broken OpenVINO leads to torch and to a description that tells so."""
    from vidmatte.backends import openvino

    def broken() -> Any:
        raise BackendError("OpenVINO cannot be imported: no module")

    monkeypatch.setattr(openvino, "import_openvino", broken)
    backend = open_backend(model_named("live"), size=(64, 64), device="cpu", threads=1)
    assert backend.name == "torch"
    assert "not openvino: OpenVINO cannot be imported" in backend.description


WATCHED = """
import os, subprocess, sys
seen = []
def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec")):
        seen.append(event)
sys.addaudithook(watch)
{body}
import time, threading
time.sleep(0.3)
print("EVENTS", [e for e in seen if e not in ("socket.__new__.quiet",)])
print("MODULES", [m for m in ("torch", "av", "openvino_telemetry") if m in sys.modules])
print("FILES", sorted(str(p) for p in __import__("pathlib").Path(os.environ["HOME"]).rglob("*")))
"""


def watched(body: str, home: Path) -> str:
    """Run `body` in a process whose sockets, children and home folder are watched.

    The variables by which telemetry spots a CI machine (and stays quiet) are removed.
    """
    ci = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "GITLAB_CI", "TRAVIS", "BUILD_ID")
    environment = {key: value for key, value in os.environ.items() if key not in ci}
    environment |= {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.format(body=body)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout


def test_openvino_opens_no_socket_and_writes_no_file(tmp_path: Path) -> None:
    body = """
import numpy as np
from vidmatte.models.registry import resolve_model
from vidmatte.backends import open_backend
backend = open_backend(resolve_model(), size=(64, 64), backend="openvino", threads=1)
backend.infer(np.zeros((1, 64, 64, 3), np.uint8))
"""
    out = watched(body, tmp_path)
    assert "EVENTS []" in out
    assert "MODULES []" in out
    assert "FILES []" in out


def test_the_watch_sees_what_plain_openvino_does(tmp_path: Path) -> None:
    """The control: without our guard the telemetry package is at work."""
    pytest.importorskip("openvino_telemetry")
    out = watched("import openvino", tmp_path)
    assert "openvino_telemetry" in out.split("MODULES")[1].split("FILES")[0]
    assert "FILES []" not in out or "EVENTS []" not in out


def test_the_null_path_imports_no_network() -> None:
    code = """
import sys
import numpy as np
from vidmatte.models.registry import resolve_model
from vidmatte.backends import open_backend
backend = open_backend(resolve_model(), size=(64, 64), backend="null")
backend.infer(np.zeros((1, 64, 64, 3), np.uint8))
assert not {"torch", "openvino", "cv2", "av"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
