"""A virtual camera of pyvirtualcam that keeps what it is sent, also in a child process.

`register()` makes it the only backend of this process. A child process does the same when it runs
`python -c "import memory_backend; memory_backend.register(); …"` with tests/ on its PYTHONPATH.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyvirtualcam.camera
from numpy.typing import NDArray

NAME = "memory"
DEVICE = "memory:0"


class MemoryBackend:
    """What pyvirtualcam asks of a backend, with faults at a word.

    Class attributes steer every camera there is: `refusal` is raised when one is opened, `failure`
    when a picture is sent, `reader_count` is who reads (None: not told), `keep` how many pictures
    are kept (the newest).
    """

    refusal: Exception | None = None
    failure: Exception | None = None
    reader_count: int | None = None
    keep = 4
    opened: list[MemoryBackend] = []  # noqa: RUF012 - of the class on purpose

    def __init__(
        self, *, width: int, height: int, fps: float, fourcc: int, device: str | None
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.width, self.height, self.fps, self.fourcc = width, height, fps, fourcc
        self.name = device or DEVICE
        self.pictures: list[NDArray[np.uint8]] = []
        self.sent_s: list[float] = []
        self.closed = False
        self.changed = threading.Condition()
        self.opened.append(self)

    def send(self, frame: NDArray[np.uint8]) -> None:
        if self.failure is not None:
            raise self.failure
        with self.changed:
            self.sent_s.append(time.monotonic())
            self.pictures = [*self.pictures, frame.copy()][-self.keep :]
            self.changed.notify_all()

    def wait_for(self, count: int, timeout_s: float = 20.0) -> bool:
        """Wait until `count` pictures were sent."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.sent_s) >= count, timeout_s)

    def luma(self) -> NDArray[np.uint8]:
        """The newest picture's luma (H, W)."""
        return self.pictures[-1][: self.width * self.height].reshape(self.height, self.width)

    def device(self) -> str:
        return self.name

    def native_fourcc(self) -> int | None:
        return None

    def close(self) -> None:
        first, self.closed = not self.closed, True
        if first and self.failure is not None:  # pyvirtualcam then asks again when it is collected
            raise self.failure

    @classmethod
    def readers(cls, device: str) -> int | None:
        return cls.reader_count


def register() -> type[MemoryBackend]:
    """Make the memory backend the only one, as new."""
    MemoryBackend.refusal = MemoryBackend.failure = MemoryBackend.reader_count = None
    MemoryBackend.opened.clear()
    pyvirtualcam.camera.BACKENDS.clear()
    pyvirtualcam.register_backend(NAME, MemoryBackend)
    return MemoryBackend


@contextmanager
def registered() -> Iterator[type[MemoryBackend]]:
    """The same for the length of a test."""
    before = dict(pyvirtualcam.camera.BACKENDS)
    try:
        yield register()
    finally:
        pyvirtualcam.camera.BACKENDS.clear()
        pyvirtualcam.camera.BACKENDS.update(before)
        MemoryBackend.opened.clear()
