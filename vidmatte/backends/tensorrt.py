"""TensorRT on NVIDIA GPUs: an engine compiled once per network, size, batch and GPU, then kept.

Without the engine a run begins on torch, which is replaced when another process has built it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vidmatte import backends
from vidmatte.backends import DeviceBackend, Precision, Request
from vidmatte.backends._tensorrt_libraries import import_library
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    from vidmatte.backends._tensorrt_compiler import Compiler
    from vidmatte.backends._tensorrt_engine import EngineBackend
    from vidmatte.backends._tensorrt_store import EngineStore

log = logging.getLogger(__name__)

AUTO_ORDER = {"cuda": 5}
PRECISIONS: dict[str, tuple[Precision, ...]] = {"cuda": ("f16",)}


def open_compiler(device: str) -> Compiler:
    """Open TensorRT for "cuda" or "cuda:N"; BackendError where its libraries or the GPU lack."""
    import_library("tensorrt")
    from vidmatte.backends._tensorrt_compiler import TensorRTCompiler

    return TensorRTCompiler(device)


def open_backend(request: Request) -> DeviceBackend:
    """Load the engine; without one open torch, and have the engine built meanwhile.

    An engine that does not load, or answers its probe wrongly, is built again.
    """
    from vidmatte.backends._tensorrt_key import key_of
    from vidmatte.backends._tensorrt_store import EngineStore, engine_folder

    compiler = open_compiler(request.device)
    store = EngineStore(engine_folder())
    key = key_of(request, compiler.environment, compiler.options)
    try:
        engine = _load(request, compiler, store)
        if engine is not None:
            return engine
    except BackendError as exc:
        log.warning("%s; it is built again", exc)
        store.discard(key)
    first = backends.open_backend(
        request.model, size=request.size, backend="torch", device=request.device,
        batch=request.batch, precision=request.precision, threads=request.threads,
    )  # fmt: skip
    assert isinstance(first, DeviceBackend)
    reason = store.rejection(key)
    if reason is not None:
        first.description += f" (its TensorRT engine was rejected: {reason})"
        return first
    return _upgrading(first, request, compiler, store)


def _load(request: Request, compiler: Compiler, store: EngineStore) -> EngineBackend | None:
    from vidmatte.backends._tensorrt_engine import open_engine
    from vidmatte.backends._tensorrt_key import key_of

    stored = store.read(key_of(request, compiler.environment, compiler.options))
    return None if stored is None else open_engine(request, compiler, stored)


def _upgrading(
    first: DeviceBackend, request: Request, compiler: Compiler, store: EngineStore
) -> DeviceBackend:
    from vidmatte.backends._tensorrt_build import BackgroundBuild
    from vidmatte.backends._tensorrt_key import key_of
    from vidmatte.backends._tensorrt_upgrade import UpgradingBackend

    key = key_of(request, compiler.environment, compiler.options)
    try:
        build = BackgroundBuild(request, key, store)
    except BackendError:
        first.close()
        raise
    upgrading = UpgradingBackend(
        first,
        build,
        load=lambda: _load(request, compiler, store),
        reject=lambda reason: store.reject(key, reason),
    )
    if request.on_wait is not None:
        try:
            upgrading.wait(request.on_wait)
        except BaseException:
            upgrading.close()
            raise
    return upgrading
