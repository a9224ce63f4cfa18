"""Ways to make models, downloads and backends say something."""

from __future__ import annotations

import io
import json
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
from message_tools import Patch, Prepare, Scenario, both, failing, nothing, without, write
from safetensors.numpy import load_file, save

from vidmatte.backends import Precision
from vidmatte.backends.openvino import _precision as choose_precision
from vidmatte.models import download as download_module
from vidmatte.models.table import WEIGHTS_FOLDER, models

LIVE = WEIGHTS_FOLDER / "live.safetensors"


def weights(name: str, **changes: Any) -> Prepare:
    """Weights of `live` with some tensors changed, or left out where None."""
    tensors = {k: v for k, v in (load_file(LIVE) | changes).items() if v is not None}
    return write(name, bytes(save(tensors)))


def torch_file(value: Any) -> bytes:
    import torch

    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def installed(sha256: object = "0" * 64) -> Prepare:
    def prepare(folder: Path, patch: Patch) -> None:
        (folder / "models").mkdir()
        (folder / "models" / "u2netp.safetensors").write_bytes(b"x")
        (folder / "models" / "u2netp.json").write_text(json.dumps({"sha256": sha256}))

    return prepare


def open_to_all(folder: Path, patch: Patch) -> None:
    installed()(folder, patch)
    (folder / "models").chmod(0o777)


def of_a_stranger(folder: Path, patch: Patch) -> None:
    installed()(folder, patch)
    if os.geteuid() == 0:
        os.chown(folder / "models", 4242, -1)
    patch.setattr(os, "geteuid", lambda: 1234567)


def family(name: str) -> Prepare:
    """A whole file of random u2netp weights."""

    def prepare(folder: Path, patch: Patch) -> None:
        import torch

        from vidmatte.models.network import U2Net

        torch.manual_seed(0)
        state = U2Net(models()["u2netp"].network).state_dict()
        (folder / name).write_bytes(torch_file(state))

    return prepare


def twins(folder: Path, patch: Patch) -> None:
    from dataclasses import replace

    family("w.pth")(folder, patch)
    twin = replace(models()["u2net"], network=models()["u2netp"].network)
    patch.setitem(models(), "u2net", twin)


def sparse(folder: Path, patch: Patch) -> None:
    with (folder / "w.pth").open("wb") as file:
        file.truncate(1 << 31)


def model_folder_in_a_file(folder: Path, patch: Patch) -> None:
    family("w.pth")(folder, patch)
    patch.setenv("VIDMATTE_MODEL_DIR", str(folder / "s.mp4" / "models"))


def tampered(folder: Path, patch: Patch) -> None:
    """A download that somebody swaps after it was checked."""
    patch.setattr(download_module, "download", lambda source, path, report: (
        path.parent.mkdir(), path.write_bytes(b"other")))  # fmt: skip


def onnx_file(change: str) -> Prepare:
    def prepare(folder: Path, patch: Patch) -> None:
        from onnx import TensorProto, helper, numpy_helper

        from vidmatte.models.table import convolutions

        nodes, constants = [], []
        for number, conv in enumerate(convolutions(models()["u2netp"].network)):
            kernel = numpy_helper.from_array(np.zeros(conv.weight_shape, np.float32), f"w{number}")
            if change == "external":
                kernel.data_location = TensorProto.EXTERNAL
            nodes.append(helper.make_node("Conv", ["x", f"w{number}", f"b{number}"], [f"y{number}"],
                                          dilations=[conv.dilation] * 2))  # fmt: skip
            constants.append(kernel)
        if change == "short":
            nodes.pop()
        graph = helper.make_graph(nodes, "g", [], [], constants)
        (folder / "w.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    return prepare


class Answer(io.BytesIO):
    """What a server answers."""

    status, length = 200, None

    def __init__(self, data: bytes = b"", content_type: str = "application/octet-stream") -> None:
        super().__init__(data)
        self.headers = Message()
        self.headers["Content-Type"] = content_type


def server(answer: Callable[[], Any]) -> Prepare:
    """Have every request answered by `answer`, or fail with what it raises."""

    def prepare(folder: Path, patch: Patch) -> None:
        patch.setattr(urllib.request.OpenerDirector, "open", lambda *_, **__: answer())

    return prepare


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> None:
        raise error

    return answer


def not_found() -> Any:
    raise urllib.error.HTTPError("u", 404, "Not Found", Message(), io.BytesIO())


def astray(folder: Path, patch: Patch) -> None:
    def opened(self: Any, request: Any, **_: object) -> None:
        handler = next(h for h in self.handlers if isinstance(h, download_module._Redirects))
        handler.redirect_request(request, io.BytesIO(), 302, "", Message(), "http://elsewhere/w")

    patch.setattr(urllib.request.OpenerDirector, "open", opened)


def flooding(folder: Path, patch: Patch) -> None:
    patch.setattr(download_module, "MAX_BYTES", 10)
    server(lambda: Answer(bytes(100)))(folder, patch)


def dripping(folder: Path, patch: Patch) -> None:
    patch.setattr(download_module, "SLOW_S", -1.0)
    server(lambda: Answer(bytes(100)))(folder, patch)


def refuse_bf16(wanted: Precision, *, fast_bf16: bool) -> Precision:
    return choose_precision(wanted, fast_bf16=False)


def cuda_torch(folder: Path, patch: Patch) -> None:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.version, "cuda", "13.0")


RUN = "run s.mp4 o.mp4"
MODELS = {
    "model unknown": Scenario(f"{RUN} --model u3net"),
    "model not installed": Scenario(f"{RUN} --model u2net"),
    "model without address": Scenario("models download u2net_human_seg"),
    "model here already": Scenario("models download live"),
    "model embedded": Scenario("models import w.pth --name live", family("w.pth")),
    "model twins": Scenario("models import w.pth", twins),
    "record damaged": Scenario(f"{RUN} --model u2netp", installed("nonsense")),
    "weights swapped": Scenario(f"{RUN} --model u2netp --backend openvino", installed()),
    "model folder open to all": Scenario(f"{RUN} --model u2netp", open_to_all),
    "model folder of a stranger": Scenario(f"{RUN} --model u2netp", of_a_stranger),
    "model folder in a file": Scenario("models import w.pth", model_folder_in_a_file),
    "model disk full": Scenario(
        "models import w.pth",
        both(family("w.pth"), failing("os", "fsync", OSError(28, "No space left on device"))),
    ),
    "weights missing": Scenario(f"{RUN} --weights none.pth"),
    "weights a folder": Scenario(f"{RUN} --weights ."),
    "weights unreadable": Scenario("models import w.pth", both(write("w.pth", "x"),
        failing("os", "open", PermissionError(13, "Permission denied")))),
    "weights huge": Scenario(f"{RUN} --weights w.pth", sparse),
    "weights a page": Scenario(f"{RUN} --weights w.pth", write("w.pth", "<html>not found</html>")),
    "weights a text": Scenario(f"{RUN} --weights w.txt", write("w.txt", "words")),
    "weights cut": Scenario(
        f"{RUN} --weights w.safetensors", write("w.safetensors", LIVE.read_bytes()[:5000])
    ),
    "weights a program": Scenario(
        f"{RUN} --weights w.pth", write("w.pth", pickle.dumps({"a": os.system}))
    ),
    "weights a list": Scenario(f"{RUN} --weights w.pth", write("w.pth", torch_file([1, 2]))),
    "weights foreign": Scenario(f"{RUN} --weights w.safetensors",
                                write("w.safetensors", bytes(save({"a": np.zeros(1)})))),
    "weights infinite": Scenario(
        f"{RUN} --weights w.safetensors --backend openvino",
        weights("w.safetensors", **{"outconv.bias": np.full(1, np.inf, np.float32)}),
    ),
    "weights without statistics": Scenario(
        "models import w.pth",
        lambda folder, patch: (family("w.pth")(folder, patch), drop_statistics(folder / "w.pth")),
    ),
    "own weights": Scenario(f"{RUN} --weights w.safetensors", weights("w.safetensors")),
    "onnx damaged": Scenario("models import w.onnx", write("w.onnx", b"\xff" * 50)),
    "onnx foreign": Scenario("models import w.onnx", onnx_file("short")),
    "onnx lacks a constant": Scenario("models import w.onnx", onnx_file("lacks")),
    "onnx with weights elsewhere": Scenario("models import w.onnx", onnx_file("external")),
    "onnx not installed": Scenario("models import w.onnx", both(write("w.onnx", "x"),
                                                                without("onnx"))),
    "download offline": Scenario("models download u2netp", server(raising(
        urllib.error.URLError("Name or service not known")))),
    "download cut": Scenario("models download u2netp", server(raising(
        ConnectionResetError(104, "Connection reset by peer")))),
    "download not found": Scenario("models download u2netp", server(not_found)),
    "download a page": Scenario(
        "models download u2netp", server(lambda: Answer(b"<html>", "text/html"))
    ),
    "download of another file": Scenario("models download u2netp", server(lambda: Answer(b"x"))),
    "download astray": Scenario("models download u2netp", astray),
    "download without end": Scenario("models download u2netp", flooding),
    "download that drips": Scenario("models download u2netp", dripping),
    "download swapped": Scenario("models download u2netp", tampered),
    "download on a full disk": Scenario("models download u2netp", both(
        server(lambda: Answer(b"x")),
        failing("os", "replace", OSError(28, "No space left on device")),
        lambda folder, patch: patch.setattr(download_module, "_check", nothing))),
    "backend unknown": Scenario(f"{RUN} --backend nosuch"),
    "backend null unknown": Scenario(f"{RUN} --backend null:nosuch"),
    "device unknown": Scenario(f"{RUN} --device tpu --backend auto"),
    "device named twice": Scenario(f"{RUN} --device cuda:0,1,0"),
    "device not of the backend": Scenario(f"{RUN} --device cuda --backend openvino"),
    "precision not of the backend": Scenario(f"{RUN} --precision int8 --backend torch"),
    "no CUDA": Scenario(f"{RUN} --device cuda --backend torch"),
    "no second GPU": Scenario(f"{RUN} --device cuda:5 --backend torch", cuda_torch),
    "nothing runs it": Scenario(f"{RUN} --device cuda --backend auto"),
    "no OpenVINO": Scenario(f"{RUN} --backend openvino", without("openvino")),
    "no torch": Scenario(f"{RUN} --backend torch", without("torch")),
    "no bf16": Scenario(f"{RUN} --backend openvino --precision bf16", lambda folder, patch:
                        patch.setattr("vidmatte.backends.openvino._precision", refuse_bf16)),
    "int8 ranges missing": Scenario(
        f"{RUN} --weights w.pth --precision int8 --backend openvino", family("w.pth")
    ),
    "int8 ranges of other weights": Scenario(
        f"{RUN} --weights w.safetensors --precision int8 --backend openvino",
        both(weights("w.safetensors"), lambda folder, patch: other_ranges(folder)),
    ),
    "int8 ranges damaged": Scenario(
        f"{RUN} --weights w.safetensors --precision int8 --backend openvino",
        both(weights("w.safetensors"), write("w_int8.json", "[]")),
    ),
}  # fmt: skip


def other_ranges(folder: Path) -> None:
    facts = json.loads((WEIGHTS_FOLDER / "live_int8.json").read_text())
    facts["mean_magnitude"] *= 2
    (folder / "w_int8.json").write_text(json.dumps(facts))


def drop_statistics(path: Path) -> None:
    import torch

    state = torch.load(path, weights_only=True)
    name = next(key for key in state if key.endswith("running_mean"))
    del state[name]
    path.write_bytes(torch_file(state))
