"""Begin with one backend, go on with an engine once it is built: nobody waits for TensorRT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vidmatte.backends._tensorrt_gate import why_not
from vidmatte.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from vidmatte.backends import DeviceBackend
    from vidmatte.backends._tensorrt_build import BackgroundBuild
    from vidmatte.backends._tensorrt_engine import EngineBackend

_LOOK_EVERY_S = 0.2


class UpgradingBackend:
    """Delegates to `first`, and to the engine from the batch after the one that it is ready at.

    Before each batch it asks the build. When that is ready, `load` is called, which the batch has
    to wait for, and it is answered by both: by `first` for the caller, by the engine to be
    compared. If they agree, the next batch is the engine's; if not, `reject` is told. Then, and
    if the build or `load` failed, `first` stays for good, and `notes` and `description` say why,
    once. See DeviceBackend; used by one thread; never call it from within a recorded graph, which
    would not ask again.
    """

    def __init__(
        self,
        first: DeviceBackend,
        build: BackgroundBuild,
        load: Callable[[], EngineBackend | None],
        reject: Callable[[str], None],
    ) -> None:
        self._active: DeviceBackend = first
        self._retired: DeviceBackend | None = None
        self._build: BackgroundBuild | None = build
        self._load, self._reject = load, reject
        self._done = 0
        self._told = f"{first.description} (its TensorRT engine is being built)"
        self.device: torch.device = first.device
        self.name, self.batch = first.name, first.batch
        self.input_size = first.input_size
        self.description = self._told
        self.notes: list[str] = []

    def infer(self, image_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network; see Backend.infer."""
        engine = self._candidate()
        answer = self._active.infer(image_NHW3)
        self._done += len(image_NHW3)
        if engine is not None:
            self._consider(engine, lambda: engine.infer(image_NHW3), lambda: answer)
        return answer

    def infer_device(self, image_NHW3: Tensor) -> Tensor:
        """Run the network; see DeviceBackend.infer_device. Waits once, at the swap."""
        engine = self._candidate()
        answer = self._active.infer_device(image_NHW3)
        self._done += len(image_NHW3)
        if engine is not None:
            compared = engine.infer_device
            self._consider(
                engine,
                lambda: compared(image_NHW3).cpu().numpy(),
                lambda: answer.cpu().numpy(),
            )
        return answer

    def wait(self, progress: Callable[[str], object]) -> None:
        """Wait until the build has ended, well or not; then the next batch may be the swap's.

        `progress` is called a few times a second with what is being done; what it raises ends
        the waiting.
        """
        while self._build is not None and self._build.poll() == "building":
            progress(self._build.progress)
            time.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """Free the memory; a build that still goes on finishes by itself."""
        self._retire()
        if self._build is not None:
            self._build.close()
            self._build = None
        self._active.close()

    def _candidate(self) -> EngineBackend | None:
        """Return the engine if it has just become ready."""
        self._retire()
        if self._build is None:
            return None
        state = self._build.poll()
        if state == "building":
            return None
        reason = self._build.reason or "its build left no engine that can be trusted"
        self._build = None
        try:
            engine = self._load() if state == "ready" else None
        except BackendError as exc:
            engine, reason = None, str(exc)
        if engine is None:
            self._stay(reason)
        return engine

    def _consider(
        self,
        engine: EngineBackend,
        answer: Callable[[], NDArray[np.float32]],
        expected: Callable[[], NDArray[np.float32]],
    ) -> None:
        """Go on with the engine if it answers this batch as the first backend did."""
        try:
            reason = why_not(answer(), expected())
            if reason is not None:
                self._reject(reason)
        except BackendError as exc:
            reason = str(exc)
        if reason is not None:
            engine.close()
            self._stay(reason)
            return
        # The caller still reads the last answer, which may lie in the first one's memory.
        self._retired, self._active = self._active, engine
        self.name, self.batch = engine.name, engine.batch
        before = self._retired.description
        self._tell(f"{engine.description} from picture {self._done + 1} on, before that {before}")

    def _stay(self, reason: str) -> None:
        self.notes.append(f"TensorRT is not used: {reason}")
        self._tell(f"{self._active.description} (TensorRT is not used: {reason})")

    def _tell(self, text: str) -> None:
        """Change the part of `description` that is from here."""
        self.description = self.description.replace(self._told, text)
        self._told = text

    def _retire(self) -> None:
        if self._retired is not None:
            self._retired.close()
            self._retired = None
