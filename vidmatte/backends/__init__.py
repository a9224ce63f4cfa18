"""The contract of a backend, and the factory; every other file here is one backend."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from vidmatte.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from vidmatte.models.registry import Model

Precision = Literal["auto", "f32", "f16", "bf16", "int8"]


class Backend(Protocol):
    """A network on a device, built for one model, size, batch and precision.

    Used by one thread. `input_size` is (height, width); `description` says device and precision
    in words, e.g. "OpenVINO bf16 on CPU, 2 threads".
    """

    name: str
    description: str
    input_size: tuple[int, int]
    batch: int

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the foreground probability of each picture, (N, h, w) float32 in [0, 1].

        `image_NHW3` is RGB, C-contiguous, of `input_size`, N ≤ `batch`. (h, w) is the network's
        output size: the input's, half of it for `live`. The result is valid until the next call.
        """

    def close(self) -> None:
        """Free the device's memory; may be called twice."""


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend that takes pictures where they are; with it the whole work stays on `device`."""

    device: torch.device

    def infer_device(self, image_NHW3: torch.Tensor) -> torch.Tensor:
        """Return the same as `infer` for a tensor on `device`, and do not wait for it.

        Any N; more than `batch` are done in parts. The result is valid until the next call, in the
        stream of the call. Raises BackendError.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend is asked to open: nothing here may be replaced by something else.

    `size` is (height, width). `variant` is what followed the colon in the backend's name.
    `on_wait`: open only when the backend's engine, if it compiles one, is built, and call this with
    what is being done meanwhile; what it raises ends the waiting. None: begin without.
    """

    model: Model
    device: str
    size: tuple[int, int]
    batch: int
    precision: Precision
    threads: int
    variant: str = ""
    on_wait: Callable[[str], object] | None = None


class BackendModule(Protocol):
    """What a file of this folder defines.

    AUTO_ORDER gives, per kind of device ("cpu", "cuda"), its place in `auto`'s order, lowest
    first; a kind that is absent is never chosen by `auto`. PRECISIONS gives, per kind of device
    that it can open, the precisions that may be asked for.
    """

    AUTO_ORDER: Mapping[str, int]
    PRECISIONS: Mapping[str, tuple[Precision, ...]]

    def open_backend(self, request: Request) -> Backend:
        """Open it as asked, or raise BackendError with reason and repair."""


def names() -> list[str]:
    """Return the names of all backends: the modules of this folder."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def module(name: str) -> BackendModule:
    """Import the backend `name`, or raise BackendError; nothing of its device is touched."""
    if name not in names():
        raise BackendError(f"there is no backend {name!r}", hint="backends: " + ", ".join(names()))
    found: BackendModule = importlib.import_module(f"{__name__}.{name}")
    return found


def notes_of(backend: Backend) -> list[str]:
    """Return what a backend has to tell beyond its description."""
    return list(getattr(backend, "notes", ()))


def out_of_memory(device: torch.device) -> BackendError:
    """Return the error of a GPU that cannot hold a single picture's work."""
    return BackendError(
        f"{device} is out of memory",
        hint="close what else uses the GPU, choose --model live, or --device cpu",
    )


def not_a_number(name: str, index: int) -> BackendError:
    """Return the error of a network that has no answer for frame `index` of the source `name`."""
    return BackendError(
        f"{name}: frame {index}: the network returned NaN",
        hint="try --precision f32, or other weights",
    )


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_backend(
    model: Model,
    *,
    size: tuple[int, int],
    backend: str = "auto",
    device: str = "auto",
    batch: int = 1,
    precision: Precision = "auto",
    threads: int | None = None,
    on_wait: Callable[[str], object] | None = None,
) -> Backend:
    """Open a backend for `model` at `size` (height, width).

    `backend` is "auto" or a name, with a variant after a colon ("null:disc"); `device` is "auto",
    "cpu", "cuda" or "cuda:N"; `threads` defaults to the cores of this process. What is named is
    used, or a BackendError says why not and what to do; "auto" tells its choice in `description`.
    `on_wait` makes it wait for a compiled engine, where else another backend would begin: see
    Request.
    """
    height, width = size
    step = model.row.multiple_of
    if height < step or width < step or height % step or width % step:
        raise BackendError(f"{model.name} takes sizes in multiples of {step}, not {width}x{height}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise BackendError(
            f"there is no device {device!r}", hint="devices: auto, cpu, cuda, cuda:N"
        )
    name, _, variant = backend.partition(":")
    chosen = choose_device(device, name)
    cores = threads or usable_cores()
    request = Request(model, chosen, size, batch, precision, cores, variant, on_wait)
    if name != "auto":
        return _open(name, request)
    opened = _open_first(request)
    if device == "auto":
        opened.description += f" (auto: {_why(chosen)})"
    return opened


def _why(device: str) -> str:
    if device == "cuda":
        return "an NVIDIA GPU is here"
    return "torch sees no usable NVIDIA GPU" if _nvidia_driver() else "no NVIDIA driver is loaded"


def _open(name: str, request: Request) -> Backend:
    offered = module(name).PRECISIONS
    kind = _kind(request.device)
    if kind not in offered:
        raise BackendError(
            f"backend {name} does not run on {request.device}",
            hint="it runs on " + ", ".join(offered),
        )
    if request.precision not in ("auto", *offered[kind]):
        raise BackendError(
            f"backend {name} does not run {request.precision} on {request.device}",
            hint="precisions: auto, " + ", ".join(offered[kind]),
        )
    return module(name).open_backend(request)


def _kind(device: str) -> str:
    return device.partition(":")[0]


def choose_device(device: str, backend: str = "auto") -> str:
    """Turn "auto" into "cuda" where torch sees an NVIDIA GPU, else "cpu"; keep what is named.

    Without the NVIDIA driver torch is not imported, so that the CPU path stays free of it.
    """
    if device != "auto":
        return device
    if backend not in ("auto", "") and "cuda" not in module(backend).PRECISIONS:
        return "cpu"
    if not _nvidia_driver():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded, as its device node (Linux, WSL) or library shows."""
    if os.name == "nt":
        system = os.environ.get("SYSTEMROOT", r"C:\Windows")
        return os.path.exists(os.path.join(system, "System32", "nvcuda.dll"))
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


def _open_first(request: Request) -> Backend:
    """Open the first backend in `auto`'s order that works, and say what was passed over."""
    kind = _kind(request.device)
    order = {n: module(n).AUTO_ORDER[kind] for n in names() if kind in module(n).AUTO_ORDER}
    refusals = []
    for name in sorted(order, key=lambda n: order[n]):
        try:
            opened = _open(name, request)
        except BackendError as exc:
            refusals.append(f"{name}: {exc}")
            continue
        if refusals:
            opened.description += f" (auto; not {'; '.join(refusals)})"
        return opened
    raise BackendError(
        f"no backend runs {request.model.name} on {request.device} ({'; '.join(refusals)})",
        hint="choose --backend, --device or --precision yourself",
    )
