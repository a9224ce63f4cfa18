"""PyTorch on the CPU and on CUDA: the reference that the other backends are measured against."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vidmatte.backends import Precision, Request, out_of_memory
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, device

log = logging.getLogger(__name__)

AUTO_ORDER = {"cuda": 10, "cpu": 10}
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("f32", "bf16"),
    "cuda": ("f32", "f16", "bf16"),
}
_AUTO_PRECISION: dict[str, Precision] = {"cpu": "f32", "cuda": "f16"}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FAILED_HINT = "check the driver and nvidia-smi, or use --device cpu"


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise BackendError(
            f"torch cannot be imported: {exc}", hint="pip install torch, or choose --device cpu"
        ) from exc
    return torch


def _device(torch: Any, named: str) -> Any:
    """Return the torch device, or say why this machine has no such one."""
    if named == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "this torch is built without CUDA" if built is None else "torch sees no NVIDIA GPU"
        hint = (
            "install a CUDA build of torch, or use --device cpu"
            if built is None
            else "check nvidia-smi and the driver, or use --device cpu"
        )
        raise BackendError(f"{named} is not usable: {reason}", hint=hint)
    device = torch.device(named if ":" in named else "cuda:0")
    count = torch.cuda.device_count()
    if device.index >= count:
        raise BackendError(f"there is no {named}: {count} GPU(s) here", hint="use --device cuda:0")
    return device


class TorchBackend:
    """The torch module with BN folded; see Backend.

    Normalisation, sigmoid and output stay in float32 whatever the precision of the network. On CUDA
    the whole is one recorded graph per batch size, in channels last. Out of GPU memory, `batch` is
    halved for good until one picture does not fit either.
    """

    def __init__(self, request: Request) -> None:
        torch = _import_torch()
        from vidmatte.graphs import Graphed
        from vidmatte.models.network import folded_network

        self.device: device = _device(torch, request.device)
        precision = request.precision
        if precision == "auto":
            precision = _AUTO_PRECISION[self.device.type]
        self.name = "torch"
        self.input_size = request.size
        self.batch = request.batch
        self.description = f"torch {precision} on {self._place(torch, request)}"
        row = request.model.row
        self._torch = torch
        self._dtype = getattr(torch, _DTYPES[precision])
        self._module: Any = folded_network(row.network, request.model.load(), self._dtype)
        mean, std = torch.tensor(row.mean), torch.tensor(row.std)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        with self._translated():
            self._module.to(self.device)
            self._scale, self._shift = self._scale.to(self.device), self._shift.to(self.device)
        self._forward: Any = Graphed(self._probability, self.device)

    def _place(self, torch: Any, request: Request) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)} ({self.device})"
        torch.set_num_threads(request.threads)
        return f"CPU, {request.threads} thread{'s' * (request.threads != 1)}"

    def infer_device(self, image_NHW3: Tensor) -> Tensor:
        """Return the probability (N, h, w) float32 on the device of `image_NHW3`, uint8 RGB.

        For a caller whose pictures are on the device already: nothing is copied to the host, and
        nothing waits for the device. The result is valid until the next call.
        """
        while True:
            try:
                with self._torch.inference_mode(), self._translated():
                    return self._in_parts(image_NHW3)
            except self._torch.OutOfMemoryError as exc:
                self._halve_batch(exc)

    def _in_parts(self, image_NHW3: Tensor) -> Tensor:
        """Run the network over at most `batch` pictures at once; on CUDA over exactly so many."""
        results: list[Tensor] = []
        for part in self._torch.split(image_NHW3, self.batch):
            count = len(part)
            if self.device.type == "cuda" and count < self.batch:  # one graph serves all
                part = self._torch.cat((part, part[-1:].expand(self.batch - count, -1, -1, -1)))
            results.append(self._forward(part)[0][:count])
            if len(image_NHW3) > self.batch:
                results[-1] = results[-1].clone()
        whole: Tensor = results[0] if len(results) == 1 else self._torch.cat(results)
        return whole

    def _probability(self, image_NHW3: Tensor) -> tuple[Tensor]:
        torch = self._torch
        # TF32 would put f32 1e-3 away from what the CPU computes.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            x_NHW3 = image_NHW3.to(torch.float32) * self._scale + self._shift
            logits_N1HW = self._module(x_NHW3.permute(0, 3, 1, 2).to(self._dtype))[0]
        return (logits_N1HW.float().sigmoid().squeeze(1),)

    def _halve_batch(self, exc: Exception) -> None:
        self._forward.forget()
        if self.batch == 1:
            raise out_of_memory(self.device) from exc
        self.batch //= 2
        log.warning("%s is out of memory: the batch is now %d", self.device, self.batch)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what CUDA reports into one line; out of memory passes through."""
        try:
            yield
        except self._torch.OutOfMemoryError:
            raise
        except RuntimeError as exc:
            if self.device.type != "cuda":
                raise
            reason = str(exc).partition("\n")[0]
            raise BackendError(f"{self.device} failed: {reason}", hint=_FAILED_HINT) from exc

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        image = self._torch.from_numpy(image_NHW3).to(self.device)
        result: NDArray[np.float32] = self.infer_device(image).cpu().numpy()
        return result

    def close(self) -> None:
        """Free the weights."""
        self._module = None
        self._forward.forget()


def open_backend(request: Request) -> TorchBackend:
    """Load the module onto the asked-for device."""
    return TorchBackend(request)
