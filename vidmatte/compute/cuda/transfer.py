"""Bring planes to the device and back: one packed copy each way, through pinned memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from vidmatte.backends import out_of_memory
from vidmatte.device_frames import device_planes, is_on_device
from vidmatte.frames import plane_views

if TYPE_CHECKING:
    import av
    from torch import Tensor

    from vidmatte.frames import Samples

_TYPES = {np.dtype(np.uint8): torch.uint8, np.dtype("<u2"): torch.uint16}


class Lane:
    """A stream of its own on a GPU, current inside `with`, also for its thread's device.

    On the CPU it does nothing. Inside, inference mode is on. Entered by one thread alone, not
    within itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._entered = ExitStack()
        self._is_entered = False

    def __enter__(self) -> None:
        assert not self._is_entered, "by two threads, or within itself"
        self._is_entered = True
        self._entered.enter_context(torch.inference_mode())
        if self._stream is not None:
            self._entered.enter_context(torch.cuda.stream(self._stream))

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        self._is_entered = False

    def mark(self) -> torch.cuda.Event | None:
        """Mark what has been asked of this stream so far, to be waited for."""
        if self._stream is None:
            return None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def follow(self, mark: torch.cuda.Event | None) -> None:
        """Do nothing more on this stream before `mark` is reached; the host does not wait."""
        if self._stream is not None and mark is not None:
            self._stream.wait_event(mark)

    def borrow(self, tensors: Sequence[Tensor]) -> None:
        """Keep the memory of another stream's tensors until this one is done with them."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(self._stream)


@contextmanager
def or_out_of_memory(device: torch.device) -> Iterator[None]:
    """Turn a device's shortage of memory into an error for people."""
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise out_of_memory(device) from exc


def wait(mark: torch.cuda.Event | None) -> None:
    """Make the host wait until `mark` is reached."""
    if mark is not None:
        mark.synchronize()


def upload(planes: Sequence[Samples], device: torch.device) -> tuple[Tensor, ...]:
    """Copy planes to the device, in the present stream; 8 or 16 bits, rows may be padded.

    They are packed into pinned memory first, so that one copy without padding crosses the bus and
    the host need not wait for it. The memory of `planes` is free when this returns.
    """
    kind = planes[0].dtype
    packed = torch.empty(
        sum(plane.size for plane in planes), dtype=_TYPES[kind], pin_memory=device.type == "cuda"
    )
    host = packed.numpy()
    place = 0
    for plane in planes:
        host[place : place + plane.size].reshape(plane.shape)[...] = plane
        place += plane.size
    return _unpacked(packed.to(device, non_blocking=True), [plane.shape for plane in planes])


def upload_picture(picture: av.VideoFrame, device: torch.device) -> tuple[Tensor, ...]:
    """Bring the planes of a decoder's picture to the device; see `upload`.

    One that lies on a GPU is only re-ordered: its samples never were on the host.
    """
    if not is_on_device(picture):
        return upload(plane_views(picture), device)
    pix_fmt, capsules = device_planes(picture)
    luma, chroma = (from_dlpack(capsule) for capsule in capsules)
    with _borrowed(luma.device):
        parts = luma, chroma[..., 0], chroma[..., 1]
        return tuple(_as_planes(part, pix_fmt).to(device, non_blocking=True) for part in parts)


def _as_planes(part: Tensor, pix_fmt: str) -> Tensor:
    """Copy samples out of a semi-planar picture; P010 has its ten bits at the top."""
    if pix_fmt == "p010le":
        return (part.to(torch.int32) >> 6).to(torch.uint16)
    return part.clone(memory_format=torch.contiguous_format)


@contextmanager
def _borrowed(device: torch.device) -> Iterator[None]:
    """Read what FFmpeg writes on a GPU's default stream, and writes there again afterwards."""
    if device.type != "cuda":
        yield
        return
    own, theirs = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    own.wait_stream(theirs)
    yield
    theirs.wait_stream(own)


def _unpacked(packed: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = packed.split_with_sizes(sizes)
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


class Download:
    """Planes on their way to the host: begun when built, waited for when written.

    `lane` is a stream for copies alone. `planes` are of one type; the stream that made them may
    reuse them at once: they are packed there first.
    """

    def __init__(self, planes: Sequence[Tensor], lane: Lane) -> None:
        self._shapes = [tuple(plane.shape) for plane in planes]
        self._kind = planes[0].dtype
        packed = torch.cat([plane.reshape(-1).view(torch.uint8) for plane in planes])
        if packed.device.type != "cuda":
            self._host, self._done = packed, None
            return
        made = torch.cuda.current_stream(packed.device).record_event()
        with lane:
            lane.follow(made)
            self._host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._done = lane.mark()
        lane.borrow([packed])

    def planes(self) -> list[Samples]:
        """Wait, and return the planes in host memory."""
        wait(self._done)
        samples = self._host.view(self._kind)
        return [part.numpy() for part in _unpacked(samples, self._shapes)]

    def write(self, picture: av.VideoFrame) -> None:
        """Wait, and write the planes into a picture of our own."""
        for out, plane in zip(plane_views(picture, writable=True), self.planes(), strict=True):
            out[...] = plane
