"""Build an engine: here, or in a process of its own while a run goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vidmatte.backends import open_backend
from vidmatte.backends._tensorrt_engine import EngineBackend
from vidmatte.backends._tensorrt_gate import difference, refuse_blank, why_not
from vidmatte.backends._tensorrt_key import key_of
from vidmatte.backends._tensorrt_store import Probe, StoredEngine
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vidmatte.backends import Backend, Request
    from vidmatte.backends._tensorrt_compiler import Compiler
    from vidmatte.backends._tensorrt_key import EngineKey
    from vidmatte.backends._tensorrt_store import EngineStore

_ONE_AT_A_TIME = "building"  # TensorRT chooses kernels by timing them
State = Literal["building", "ready", "failed"]


class Built(NamedTuple):
    """An engine that passed the gate. `difference` is mean |Δα| of the worst picture."""

    path: Path
    seconds: float
    difference: float
    was_there: bool


def build(
    request: Request, compiler: Compiler, store: EngineStore, pictures_NHW3: NDArray[np.uint8]
) -> Built:
    """Build the engine of `request` unless the store has it, and check it against torch f32.

    `pictures_NHW3` are real pictures of `request.size` with subject and background. Waits for
    other processes that build. Raises BackendError if it fails or is rejected, also
    for a rejection that the store remembers.
    """
    key = key_of(request, compiler.environment, compiler.options)
    with store.locked(key.name):
        reason = store.rejection(key)
        if reason is not None:
            raise _rejected(request, reason, hint="to try again: vidmatte engines clean")
        stored = store.read(key)
        if stored is not None:
            return Built(store.folder / f"{key.name}.engine", 0.0, 0.0, was_there=True)
        with store.locked(_ONE_AT_A_TIME):
            return _build(request, compiler, store, key, pictures_NHW3)


def _build(
    request: Request,
    compiler: Compiler,
    store: EngineStore,
    key: EngineKey,
    pictures_NHW3: NDArray[np.uint8],
) -> Built:
    from vidmatte.models.graph import export_graph

    began_s = time.monotonic()
    expected = _reference(request, compiler, pictures_NHW3)
    refuse_blank(expected)
    model = request.model
    exported = export_graph(model.row, model.load(), size=request.size, batch=request.batch,
                            device=compiler.device)  # fmt: skip
    data = compiler.compile(exported)
    backend = EngineBackend(request, compiler, data)
    try:
        got = _answers(backend, pictures_NHW3)
    finally:
        backend.close()
    reason = why_not(got, expected)
    if reason is not None:
        store.reject(key, reason)
        raise _rejected(request, reason, hint="runs go on with torch; see: vidmatte engines list")
    seconds, worst = time.monotonic() - began_s, difference(got, expected)
    facts = {"seconds": round(seconds, 1), "difference": worst, "built": time.strftime("%F %T"),
             "origin": model.origin}  # fmt: skip
    probe = Probe(pictures_NHW3[: request.batch], expected[: request.batch])
    path = store.write(key, StoredEngine(data, probe), facts)
    return Built(path, seconds, worst, was_there=False)


def _rejected(request: Request, reason: str, *, hint: str) -> BackendError:
    return BackendError(f"the TensorRT engine of {request.model.name} is rejected: {reason}",
                        hint=hint)  # fmt: skip


def _reference(
    request: Request, compiler: Compiler, pictures_NHW3: NDArray[np.uint8]
) -> NDArray[np.float32]:
    torch_f32 = open_backend(
        request.model, size=request.size, backend="torch", device=str(compiler.device),
        batch=request.batch, precision="f32", threads=request.threads,
    )  # fmt: skip
    try:
        return _answers(torch_f32, pictures_NHW3)
    finally:
        torch_f32.close()


def _answers(backend: Backend, pictures_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run all pictures, a batch at a time."""
    starts = range(0, len(pictures_NHW3), backend.batch)
    batches = (pictures_NHW3[start : start + backend.batch] for start in starts)
    return np.concatenate([backend.infer(batch).copy() for batch in batches])


def command_of(request: Request) -> list[str]:
    """Return the command line that builds the engine of `request`.

    -P keeps the current folder out of Python's path: nothing there is imported.
    """
    model, (height, width) = request.model, request.size
    command = [sys.executable, "-P", "-m", "vidmatte", "engines", "build", "--low-priority"]
    command += ["--model", model.name, "--size", f"{width}x{height}"]
    command += ["--batch", str(request.batch), "--device", request.device]
    if model.origin == "file":
        command += ["--weights", str(model.path.absolute())]
    return command


class _Child(subprocess.Popen[bytes]):
    """A process that may outlive us: Python would warn of it when the object goes."""

    def __del__(self, *_: object) -> None:
        pass


class BackgroundBuild:
    """Builds the engine of a request in another process, at low priority.

    It has a session of its own, so that Ctrl-C in the run's terminal does not reach it, and it is
    never ended from here: what was built for minutes serves the next run. What it says goes to a
    log beside the engine, kept if it fails. Starts no thread.
    """

    def __init__(self, request: Request, key: EngineKey, store: EngineStore) -> None:
        self._key, self._store = key, store
        self._began_s = time.monotonic()
        self._process: _Child | None = None
        self._state: State = "building"
        self.reason = ""
        descriptor = store.open_log(key)
        with open(descriptor, "wb") as output:
            try:
                self._process = _Child(
                    command_of(request), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as exc:
                self._state, self.reason = "failed", f"its build cannot start: {exc.strerror}"

    @property
    def progress(self) -> str:
        """What is being done and for how long, for people."""
        return f"building the TensorRT engine: {time.monotonic() - self._began_s:.0f} s"

    def poll(self) -> State:
        """Look, without waiting, how far the build is; `reason` says why it failed."""
        if self._state == "building" and self._process is not None:
            code = self._process.poll()
            if code == 0:
                self._state = "ready"
                self._store.log_path(self._key).unlink(missing_ok=True)
            elif code is not None:
                self._state, self.reason = "failed", self._why(code)
        return self._state

    def _why(self, code: int) -> str:
        path = self._store.log_path(self._key)
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its build ended with {how}; see {path}"

    def close(self) -> None:
        """Let go of the build; it finishes by itself."""
        self._process = None
