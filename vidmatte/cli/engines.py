"""`vidmatte engines`: build, list, verify and clean TensorRT's engines."""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from vidmatte.errors import UsageError, VidmatteError, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.backends import Backend, Request
    from vidmatte.backends._tensorrt_build import Built
    from vidmatte.backends._tensorrt_compiler import Compiler
    from vidmatte.backends._tensorrt_store import EngineStore, Entry
    from vidmatte.models.registry import Model

    Pictures = NDArray[np.uint8]

PICTURES = 8  # that the gate compares
_EVERY = 10  # pictures of a clip from one that is compared to the next
_TIMED = 20  # batches
_LOW_PRIORITY = 10  # niceness
_DEFAULT_SHAPE = (1920, 1080)


@click.group()
def engines() -> None:
    """Build, list, verify and clean TensorRT's engines.

    Example: vidmatte engines verify
    """


@engines.command()
@click.option("--model", metavar="NAME", help="Model; see `vidmatte models`. Default: the GPU's.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
              help="Your own weights file.")  # fmt: skip
@click.option("--size", metavar="WxH", help="Size of the network's picture. Default: for 16:9.")
@click.option("--clip", type=click.Path(path_type=Path), metavar="FILE",
              help="A video: its shape gives the size, its pictures are compared.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 64), help="Pictures at once. Default: a file's.")
@click.option("--device", default="cuda", show_default=True, help="cuda or cuda:N.")
@click.option("--low-priority", is_flag=True, hidden=True, help="Leave the CPU to others.")
def build(
    model: str | None,
    weights: Path | None,
    size: str | None,
    clip: Path | None,
    batch: int | None,
    device: str,
    low_priority: bool,
) -> None:
    """Build the engine of a network and check it against torch.

    Example: vidmatte engines build --model u2netp --clip holiday.mp4
    """
    from vidmatte.backends._tensorrt_build import build as build_engine
    from vidmatte.backends._tensorrt_store import EngineStore, engine_folder
    from vidmatte.models.registry import resolve_model

    if low_priority:
        os.nice(_LOW_PRIORITY)
    compiler = _open_compiler(device)
    found = resolve_model(model, weights=weights, device=device)
    shape = None if size is None else _size_of(size, found)
    if clip is not None:
        if shape is not None:
            raise UsageError("--size and --clip both give a size", hint="leave one out")
        shape, pictures = _from_clip(clip, found)
    else:
        shape = shape or _default_size(found)
        pictures = _generated(shape)
    request = _request(found, shape, batch, device)
    click.echo(f"building {found.name} for {shape[1]}x{shape[0]}: this takes minutes", err=True)
    built = build_engine(request, compiler, EngineStore(engine_folder()), pictures)
    click.echo(printable(_sentence(built)))


def _sentence(built: Built) -> str:
    if built.was_there:
        return f"already there: {built.path}"
    return (
        f"built in {built.seconds:.0f} s, {built.difference:.4f} from torch f32 "
        f"(mean |Δα| of the worst picture): {built.path}"
    )


def _open_compiler(device: str) -> Compiler:
    """Open TensorRT first of all: without it there is nothing to do."""
    from vidmatte.backends import tensorrt

    return tensorrt.open_compiler(device)


def _request(model: Model, size: tuple[int, int], batch: int | None, device: str) -> Request:
    from vidmatte.backends import Request, usable_cores
    from vidmatte.matting import GPU_BATCH

    return Request(model, device, size, batch or GPU_BATCH, "f16", usable_cores())


def _size_of(text: str, model: Model) -> tuple[int, int]:
    """Turn "320x192" into (height, width)."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    step = model.row.multiple_of
    if match is None or any(int(side) % step or not int(side) for side in match.groups()):
        height, width = _default_size(model)
        raise UsageError(
            f"--size {text} is no size in multiples of {step}, as {model.name} takes them",
            hint=f"like --size {width}x{height}",
        )
    return int(match[2]), int(match[1])


def _default_size(model: Model) -> tuple[int, int]:
    from vidmatte.models.table import network_size

    width, height = network_size(*_DEFAULT_SHAPE, model.row)
    return height, width


def _generated(size: tuple[int, int]) -> Pictures:
    """Render a person before the generated clip's backgrounds, at the network's size."""
    from vidmatte.sources.synthetic import SyntheticClip

    height, width = size
    clips = (SyntheticClip(width=width, height=height, seed=seed) for seed in range(PICTURES))
    return np.stack([clip.render(clip.frame_count // 2).image for clip in clips])


def _from_clip(path: Path, model: Model) -> tuple[tuple[int, int], Pictures]:
    """Return the network's (height, width) for a clip, and pictures of it prepared so."""
    from vidmatte.compute.cpu.conform import Conformer
    from vidmatte.compute.cpu.prepare import Preparer
    from vidmatte.inputs import source_of
    from vidmatte.models.table import network_size
    from vidmatte.renders import working_layout

    with source_of(str(path)) as source:
        info = source.info
        width, height = network_size(*info.upright_size, model.row)
        preparer = Preparer(info, (height, width))
        conformer = Conformer(info, working_layout(info, needs_alpha=False))
        frames = list(islice(source, 0, PICTURES * _EVERY, _EVERY))
        pictures = np.empty((len(frames), height, width, 3), np.uint8)
        for frame, out in zip(frames, pictures, strict=True):
            preparer.prepare(conformer.conform(frame).picture, out)
    return (height, width), pictures


@engines.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_(as_json: bool) -> None:
    """List the engines: what they are for, their state, size and file.

    Example: vidmatte engines list --json
    """
    store = _store()
    facts = [_describe(entry) for entry in store.entries()]
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for fact in facts:
        click.echo("\n".join(printable(line) for line in _lines(fact)))
    if not facts:
        click.echo(printable(f"no engines in {store.folder}"), err=True)


def _store() -> EngineStore:
    from vidmatte.backends._tensorrt_store import EngineStore, engine_folder

    return EngineStore(engine_folder())


def _describe(entry: Entry) -> dict[str, Any]:
    """Return one engine's facts, JSON-ready."""
    stale = _stale(entry)
    return {
        "path": str(entry.path),
        "state": "stale" if stale else entry.state,
        "reason": "; ".join(stale) or entry.reason,
        "bytes": entry.size,
        "key": entry.key,
        "facts": entry.facts,
    }


def _lines(fact: dict[str, Any]) -> list[str]:
    key, facts = fact["key"], fact["facts"]
    lines = [f"{Path(fact['path']).name}: {fact['state']}, {fact['bytes'] / 1e6:.1f} MB"]
    if fact["reason"]:
        lines.append(f"  {fact['reason']}")
    if key:
        lines.append(
            f"  {key.get('model')} {key.get('width')}x{key.get('height')}, batch "
            f"{key.get('batch')}, {key.get('precision')}, for {key['environment'].get('gpu')}"
        )
    if "difference" in facts:
        lines.append(
            f"  built {facts['built']} in {facts['seconds']} s, "
            f"{facts['difference']:.4f} from torch f32"
        )
    return lines


def _stale(entry: Entry) -> list[str]:
    """Say why no run here will use a sound engine again."""
    from vidmatte.backends._tensorrt_key import stale_reasons
    from vidmatte.backends._tensorrt_libraries import versions
    from vidmatte.models.registry import find

    if entry.state == "damaged":
        return []
    present = versions()
    if entry.facts.get("origin") in ("embedded", "installed"):
        model = find(str(entry.key.get("model")))
        present["weights_sha256"] = "gone" if model is None else model.sha256
    return stale_reasons(entry.key, present)


@engines.command()
@click.option("--all", "everything", is_flag=True, help="Also engines that are in use here.")
def clean(everything: bool) -> None:
    """Remove engines that are stale, damaged or were rejected; never one that is being built.

    Example: vidmatte engines clean --all
    """

    def unwanted(entry: Entry) -> bool:
        return everything or entry.state != "ready" or bool(_stale(entry))

    removed = _store().clean(unwanted)
    for entry in removed:
        click.echo(printable(f"removed {entry.path}"))
    freed = sum(entry.size for entry in removed)
    click.echo(f"{len(removed)} removed, {freed / 1e6:.1f} MB freed", err=True)


@engines.command()
@click.option("--batch", type=click.IntRange(1, 64), help="Pictures at once. Default: a file's.")
@click.option("--device", default="cuda", show_default=True, help="cuda or cuda:N.")
def verify(batch: int | None, device: str) -> int:
    """Check everything that TensorRT does here, with every model that is installed.

    Libraries, build in another process, comparison with torch, the swap, loading, speed; in a
    folder of its own that is removed. Takes minutes; exit code 1 if anything fails.

    Example: vidmatte engines verify
    """
    from vidmatte.models.registry import find
    from vidmatte.models.table import models as table

    compiler = _open_compiler(device)
    environment = compiler.environment
    _row(True, "", "libraries", f"torch {environment.torch}, torch-tensorrt "
         f"{environment.torch_tensorrt}, TensorRT {environment.tensorrt}, CUDA {environment.cuda}, "
         f"{environment.gpu}")  # fmt: skip
    found = [model for model in map(find, table()) if model is not None]
    with tempfile.TemporaryDirectory() as folder, _engines_in(folder):
        passed = [_verify(model, batch, device) for model in found]
    return 0 if all(passed) else 1


@contextmanager
def _engines_in(folder: str) -> Iterator[None]:
    """Let this process and its children keep engines in `folder`."""
    from vidmatte.backends._tensorrt_store import VARIABLE

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def _row(passed: bool, model: str, check: str, text: str) -> bool:
    click.echo(printable(f"{'ok' if passed else 'FAILED':<7}{model:<16}{check:<10} {text}"))
    return passed


def _verify(model: Model, batch: int | None, device: str) -> bool:
    """Check one model's whole path, a row each; False from the first failure on."""
    request = _request(model, _default_size(model), batch, device)
    pictures = _generated(request.size)[: request.batch]
    try:
        return _verify_swap(request, pictures) and _verify_engine(request, pictures)
    except VidmatteError as exc:
        return _row(False, model.name, "TensorRT", str(exc))


def _verify_swap(request: Request, pictures: Pictures) -> bool:
    """Begin without an engine, have it built, and see that it takes over."""
    from vidmatte.backends._tensorrt_gate import difference
    from vidmatte.backends._tensorrt_upgrade import UpgradingBackend

    name, began_s = request.model.name, time.monotonic()
    backend = _open(request, "tensorrt")
    try:
        assert isinstance(backend, UpgradingBackend), "the folder was empty"
        backend.wait(lambda text: None)
        built_s = time.monotonic() - began_s
        before = backend.infer(pictures).copy()
        after = backend.infer(pictures).copy()
    finally:
        backend.close()
    if backend.name != "tensorrt":
        return _row(False, name, "build", backend.notes[-1])
    (entry,) = (e for e in _store().entries() if e.key.get("model") == name)
    worst = entry.facts["difference"]
    _row(True, name, "build", f"{built_s:.0f} s in a process of its own, {entry.size / 1e6:.1f} MB")
    _row(True, name, "gate", f"{worst:.4f} from torch f32 (mean |Δα| of the worst picture)")
    return _row(True, name, "swap", f"{difference(after, before):.4f} from the batch before")


def _verify_engine(request: Request, pictures: Pictures) -> bool:
    """Load the engine that was built, and time it beside torch."""
    name, began_s = request.model.name, time.monotonic()
    engine = _open(request, "tensorrt")
    load_s = time.monotonic() - began_s
    if engine.name != "tensorrt":
        engine.close()
        return _row(False, name, "load", engine.description)
    _row(True, name, "load", f"{load_s:.1f} s, and its probe is right")
    torch = _open(request, "torch")
    try:
        ours_ms, torch_ms = _median_ms(engine, pictures), _median_ms(torch, pictures)
    finally:
        engine.close()
        torch.close()
    return _row(True, name, "speed", f"{ours_ms:.2f} ms a batch of {len(pictures)}, torch "
                f"{torch_ms:.2f} ms: {torch_ms / ours_ms:.2f}x")  # fmt: skip


def _open(request: Request, backend: str) -> Backend:
    from vidmatte.backends import open_backend

    return open_backend(
        request.model, size=request.size, backend=backend, device=request.device,
        batch=request.batch, precision=request.precision, threads=request.threads,
    )  # fmt: skip


def _median_ms(backend: Backend, pictures: Pictures) -> float:
    """Time batches from the host and back, after one to warm up."""
    backend.infer(pictures)
    times = []
    for _ in range(_TIMED):
        began_s = time.perf_counter()
        backend.infer(pictures)
        times.append(1e3 * (time.perf_counter() - began_s))
    return statistics.median(times)
