"""One network on several GPUs: each takes an equal part of every batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from vidmatte.backends import Backend, DeviceBackend, notes_of
from vidmatte.errors import BackendError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

_NUMBERS = re.compile(r"cuda:\d+(,(cuda:)?\d+)*", re.ASCII)
_KNOWN = "devices: auto, cpu, cuda, cuda:N, several GPUs as cuda:0,1, all as cuda:all"


def parse_devices(text: str) -> list[str]:
    """Read what devices are named: "auto", "cpu", "cuda", "cuda:1", "cuda:0,1" or "cuda:all".

    Returns one name per device. Only "cuda:all" looks at the machine, and is "cuda" where no GPU
    is. Raises UsageError.
    """
    if text in ("auto", "cpu", "cuda"):
        return [text]
    if text == "cuda:all":
        import torch

        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cuda"]
    if not _NUMBERS.fullmatch(text):
        raise UsageError(f"there is no device {text!r}", hint=_KNOWN)
    devices = [f"cuda:{int(number)}" for number in re.findall(r"\d+", text, re.ASCII)]
    if twice := next((name for name in devices if devices.count(name) > 1), None):
        raise UsageError(f"--device {text} names {twice} twice", hint="name each GPU once")
    return devices


def open_spread(devices: Sequence[str], open_one: Callable[[str], Backend]) -> Backend:
    """Open a backend on each device and return the one that spreads batches over them.

    For a single device it is that device's own. Raises BackendError, with none left open.
    """
    if len(devices) == 1:
        return open_one(devices[0])
    opened: list[DeviceBackend] = []
    try:
        for device in devices:
            backend = open_one(device)
            if not isinstance(backend, DeviceBackend):
                backend.close()
                raise BackendError(
                    f"backend {backend.name} does not run on several devices at once",
                    hint=f"choose --device {devices[0]}, or --backend torch",
                )
            opened.append(backend)
    except BaseException:
        for backend in opened:
            backend.close()
        raise
    return SpreadBackend(opened)


class SpreadBackend:
    """Splits every batch into equal consecutive parts, one for each backend; see DeviceBackend.

    All parts are launched before any is waited for. Pictures come from the first backend's device
    and probabilities return to it. `batch` is what all take together.
    """

    def __init__(self, backends: Sequence[DeviceBackend]) -> None:
        first = backends[0]
        self._backends = tuple(backends)
        self.name = first.name
        self.input_size = first.input_size
        self.batch = sum(backend.batch for backend in backends)
        self.device: torch.device = first.device
        self._also = "".join(f" and {backend.device}" for backend in backends[1:])

    @property
    def description(self) -> str:
        """The first backend in words, and the other devices."""
        return self._backends[0].description + self._also

    @description.setter
    def description(self, text: str) -> None:
        self._backends[0].description = text.replace(self._also, "")

    @property
    def notes(self) -> list[str]:
        """What the backends have to tell."""
        return [note for backend in self._backends for note in notes_of(backend)]

    def infer_device(self, image_NHW3: Tensor) -> Tensor:
        """Return the probabilities on the first device; see DeviceBackend.infer_device."""
        import torch

        parts = torch.tensor_split(image_NHW3, len(self._backends))
        launched = [
            self._launch(backend, part)
            for backend, part in zip(self._backends, parts, strict=True)
            if len(part)
        ]
        gathered = [part.to(self.device, non_blocking=True) for part in launched]
        return gathered[0] if len(gathered) == 1 else torch.cat(gathered)

    def _launch(self, backend: DeviceBackend, part: Tensor) -> Tensor:
        with _current(backend.device), _named(backend.device):
            return backend.infer_device(part.to(backend.device, non_blocking=True))

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        import torch

        image = torch.from_numpy(image_NHW3)  # each part goes straight to its own device
        result: NDArray[np.float32] = self.infer_device(image).cpu().numpy()
        return result

    def close(self) -> None:
        """Free the memory of all devices."""
        for backend in self._backends:
            backend.close()


def _current(device: torch.device) -> torch.cuda.device | nullcontext[None]:
    """Make a GPU the one whose streams are meant where none is named."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _named(device: torch.device) -> Iterator[None]:
    """Say in an error which device it was."""
    try:
        yield
    except BackendError as exc:
        if str(device) in str(exc):
            raise
        raise BackendError(f"{device}: {exc}", hint=exc.hint) from exc
