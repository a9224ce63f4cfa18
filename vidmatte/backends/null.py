"""Mattes from a formula, with no network behind them: for tests and for measuring ceilings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vidmatte.backends import Precision, Request
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

AUTO_ORDER: dict[str, int] = {}
_ANY: tuple[Precision, ...] = ("f32", "f16", "bf16", "int8")
PRECISIONS = {"cpu": _ANY, "cuda": _ANY}
DISC_PERIOD = 48
"""Pictures per turn of the moving disc."""


def ones(matte_HW: NDArray[np.float32], index: int) -> None:
    """Everything is foreground."""
    matte_HW[:] = 1


def disc(matte_HW: NDArray[np.float32], index: int) -> None:
    """A soft-edged disc circles about the centre, once in DISC_PERIOD pictures."""
    import numpy as np

    height, width = matte_HW.shape
    angle = 2 * np.pi * index / DISC_PERIOD
    radius = 0.25 * min(height, width)
    centre_x = width * (0.5 + 0.2 * np.cos(angle))
    centre_y = height * (0.5 + 0.2 * np.sin(angle))
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(x + 0.5 - centre_x, y + 0.5 - centre_y)
    np.clip(radius - distance + 0.5, 0, 1, out=matte_HW, dtype=np.float32, casting="unsafe")


FORMULAS: dict[str, Callable[[NDArray[np.float32], int], None]] = {"ones": ones, "disc": disc}


class NullBackend:
    """Writes a formula of the picture's running index; ignores the picture."""

    def __init__(self, request: Request, formula: str) -> None:
        import numpy as np

        self.name = "null"
        self.description = f"no network, matte {formula}"
        self.input_size = request.size
        self.batch = request.batch
        stride = request.model.row.network.output_stride
        height, width = request.size
        self._formula = FORMULAS[formula]
        self._matte_NHW = np.ones((request.batch, height // stride, width // stride), np.float32)
        self._index = 0

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the formula's mattes; see Backend.infer."""
        return self._next(len(image_NHW3))

    def _next(self, count: int) -> NDArray[np.float32]:
        result = self._matte_NHW[:count]
        for index, matte_HW in enumerate(result, self._index):
            self._formula(matte_HW, index)
        self._index += len(result)
        return result

    def close(self) -> None:
        """Nothing to free."""


class DeviceNullBackend(NullBackend):
    """The same on a GPU, where everything but the network is done; see DeviceBackend."""

    def __init__(self, request: Request, formula: str) -> None:
        import torch

        super().__init__(request, formula)
        self.device = torch.device(request.device)

    def infer_device(self, image_NHW3: torch.Tensor) -> torch.Tensor:
        """Return the formula's mattes; see DeviceBackend.infer_device."""
        import torch

        parts = torch.split(image_NHW3, self.batch)
        answers = []
        for part in parts:
            answer = torch.from_numpy(self._next(len(part)))
            if self.device.type == "cuda":  # unpinned memory would make the host wait
                answer = answer.pin_memory()
            answers.append(answer.to(self.device, copy=True, non_blocking=True))
        return torch.cat(answers)


def open_backend(request: Request) -> NullBackend:
    """Open `null` (all ones) or `null:FORMULA`."""
    formula = request.variant or "ones"
    if formula not in FORMULAS:
        raise BackendError(
            f"there is no null backend {formula!r}",
            hint="backends: " + ", ".join(f"null:{name}" for name in FORMULAS),
        )
    kind = NullBackend if request.device == "cpu" else DeviceNullBackend
    return kind(request, formula)
