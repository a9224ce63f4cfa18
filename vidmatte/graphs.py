"""Record work once and replay it: CUDA graphs, or plain calls where there is no GPU."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Work = Callable[..., tuple["Tensor", ...]]
_WARM_UPS = 3  # calls before recording, in which libraries choose kernels and make workspaces

DEVICE_WIDE = threading.RLock()
"""Held to record a graph, and to synchronize or tidy up a device: CUDA refuses both at once.

(CUDA C++ Programming Guide, "Prohibited and Unhandled Operations" of stream capture.)
"""


def synchronize(device: torch.device) -> None:
    """Wait for everything that a device has been asked for; nothing where it is no GPU."""
    if device.type == "cuda":
        with DEVICE_WIDE:
            torch.cuda.synchronize(device)


class Graphed:
    """Calls `work(*tensors) -> tuple of tensors`, on CUDA as one graph per shape of its inputs.

    `work` is pure, as the calls that warm it up go unseen, and never waits for the device. Inputs
    are copied into the graph's own. Results are the graph's own: valid until the next call, to be
    read or cloned on the stream of the call. Used by one thread.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = work
        self._device = device
        self._recorded: dict[object, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Do the work and return its results."""
        if self._device.type != "cuda":
            return self._work(*inputs)
        key = tuple((x.shape, x.dtype, x.stride()) for x in inputs)
        recording = self._recorded.get(key)
        if recording is None:
            # The present stream is entered again, so that a record that fails returns to it.
            own = torch.cuda.current_stream(self._device)
            with DEVICE_WIDE, torch.cuda.stream(own):
                recording = self._recorded[key] = _Recording(self._work, inputs)
        return recording.replay(inputs)

    def forget(self) -> None:
        """Free all recordings and, on CUDA, the memory that nothing uses any more."""
        self._recorded.clear()
        if self._device.type == "cuda":
            with DEVICE_WIDE, torch.cuda.device(self._device):
                torch.cuda.empty_cache()


@cache
def _recorder(index: int) -> torch.cuda.Stream:
    """Return the stream that records on GPU `index`.

    There are 32 streams of a priority, handed out in turn. Those that others work on have the usual
    one: this can be none of them, or what they do would be recorded and not done.
    """
    return torch.cuda.Stream(index, priority=-1)  # type: ignore[no-untyped-call]


class _Recording:
    """One recorded call: its own inputs and results, and the graph between them."""

    def __init__(self, work: Work, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(x.clone() for x in inputs)
        self._graph = torch.cuda.CUDAGraph()
        stream = _recorder(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work(*self._inputs)
        try:
            self._results = self._record(work, stream)
        except RuntimeError as exc:
            if isinstance(exc.__context__, torch.OutOfMemoryError):  # ending the record failed too
                raise exc.__context__ from None
            raise
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self, work: Work, stream: torch.cuda.Stream) -> tuple[Tensor, ...]:
        # Other threads copy and allocate meanwhile; only this thread's calls must be recordable.
        # Nor may it free what garbage collection finds: graphs, or pictures on the device.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                return work(*self._inputs)
        finally:
            if was_collecting:
                gc.enable()

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._results
