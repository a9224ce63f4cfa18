"""A compiled engine as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vidmatte.backends._tensorrt_gate import why_not
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vidmatte.backends import Request
    from vidmatte.backends._tensorrt_compiler import Compiler, Engine
    from vidmatte.backends._tensorrt_store import StoredEngine


class EngineBackend:
    """Runs an engine; see DeviceBackend. Raises BackendError if it cannot be loaded."""

    def __init__(self, request: Request, compiler: Compiler, data: bytes) -> None:
        self._engine: Engine | None = compiler.load(data)
        self.device = compiler.device
        self.name = "tensorrt"
        self.input_size = request.size
        self.batch = request.batch
        self.description = f"TensorRT f16 on {compiler.environment.gpu} ({self.device})"

    def infer_device(self, image_NHW3: Tensor) -> Tensor:
        """Run the network; see DeviceBackend.infer_device."""
        with torch.inference_mode():
            parts = torch.split(image_NHW3, self.batch)
            if len(parts) == 1:
                return self._padded(image_NHW3)
            return torch.cat([self._padded(part).clone() for part in parts])

    def _padded(self, image_NHW3: Tensor) -> Tensor:
        """Run at most a batch; the engine takes nothing but whole ones."""
        assert self._engine is not None, "used after close"
        missing = self.batch - len(image_NHW3)
        if missing == 0:
            return self._engine(image_NHW3)
        filler = image_NHW3[-1:].expand(missing, -1, -1, -1)
        return self._engine(torch.cat((image_NHW3, filler)))[:-missing]

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        image = torch.from_numpy(image_NHW3).to(self.device)
        result: NDArray[np.float32] = self.infer_device(image).cpu().numpy()
        return result

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None


def open_engine(request: Request, compiler: Compiler, stored: StoredEngine) -> EngineBackend:
    """Load a stored engine and have it answer its probe, as what was built right may run wrong.

    Raises BackendError if it cannot be loaded or answers otherwise than torch did.
    """
    backend = EngineBackend(request, compiler, stored.data)
    try:
        reason = why_not(backend.infer(stored.probe.images), stored.probe.expected)
        if reason is not None:
            raise BackendError(
                f"the TensorRT engine of {request.model.name} answers wrongly: {reason}",
                hint="run: vidmatte engines verify",
            )
    except BaseException:
        backend.close()
        raise
    return backend
