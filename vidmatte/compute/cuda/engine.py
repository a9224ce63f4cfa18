"""Frames to mattes on the device: upload, prepare, infer, steady, refine; several in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from vidmatte.backends import not_a_number, out_of_memory
from vidmatte.compute.batches import in_batches, until_error
from vidmatte.compute.cpu.conform import Conformer, is_same_layout
from vidmatte.compute.cuda.composite import own_alpha
from vidmatte.compute.cuda.prepare import Preparer
from vidmatte.compute.cuda.refine import Refiner
from vidmatte.compute.cuda.temporal import TemporalFilter
from vidmatte.compute.cuda.transfer import (
    Download,
    Lane,
    or_out_of_memory,
    upload,
    upload_picture,
    wait,
)
from vidmatte.device_frames import PLANAR, is_on_device, to_host
from vidmatte.frames import Matte
from vidmatte.graphs import Graphed, synchronize

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.backends import DeviceBackend
    from vidmatte.frames import Frame, Layout, Samples, VideoInfo
    from vidmatte.models.table import Curve

BATCHES_IN_FLIGHT = 2  # asked of the device before the host waits for the first of them
# Pixels of the pictures that are refined at once: eight of 1080p, 67 MB for each map of floats.
_TOGETHER_PX = 8 * 1920 * 1088


class DeviceInference(NamedTuple):
    """A conformed frame, its planes, its small upright RGB (H, W, 3), the network's answer (h, w).

    All but the frame are on the device; what made them is finished.
    """

    frame: Frame
    planes: tuple[Tensor, ...]
    image: Tensor
    probability: Tensor


@dataclass(frozen=True, slots=True)
class DeviceMatte:
    """A frame, its planes and its alpha (H, W) on the device; see Matte.

    Valid until the next one is asked for, in the lane that made it.
    """

    frame: Frame
    planes: tuple[Tensor, ...]
    alpha: Tensor


class _Flight(NamedTuple):
    """A batch that the device works on."""

    items: list[DeviceInference]
    is_finite: Download
    mark: torch.cuda.Event | None


class DeviceMatting:
    """The per-frame work on a device; the same contract as `Matting`, with `DeviceMatte`s.

    `infer` and `finish` may run on two threads, each on one; each has a stream of its own and the
    host runs ahead of the device by `BATCHES_IN_FLIGHT`. `adjust` edits the finished alpha on the
    host. An error at frame N passes through after exactly N mattes.
    """

    def __init__(
        self,
        info: VideoInfo,
        layout: Layout,
        backend: DeviceBackend,
        curve: Curve,
        *,
        temporal: bool = True,
        refinement: bool = True,
        lookahead: int = 1,
        adjust: Callable[[Samples], Samples] | None = None,
    ) -> None:
        self.conformer = Conformer(info, layout)
        self.device = backend.device
        self.lane = Lane(self.device)
        """The stream of `finish`, to be entered by who works on its mattes."""
        self._name = info.name
        self._size = info.width, info.height
        self._backend = backend
        self._adjust = adjust
        self._layout = layout
        self._infer_lane = Lane(self.device)
        self._answer_lane, self._copy_lane = Lane(self.device), Lane(self.device)  # one per thread
        # What is recorded must not hold this object: in a circle, graphs would outlive their run.
        preparer = Preparer(info, layout, backend.input_size, self.device)
        self._prepare = Graphed(lambda *planes: (preparer.prepare(planes),), self.device)
        refiner = Refiner(
            layout, info.width, info.height, lo=curve.lo, hi=curve.hi, device=self.device
        )
        own = None if adjust is not None else layout
        self._alpha = Graphed(partial(_alpha, preparer, refiner, own, refinement), self.device)
        self._temporal = (
            TemporalFilter(lookahead=lookahead, device=self.device) if temporal else None
        )
        self._held: deque[DeviceInference] = deque()
        fitting = _TOGETHER_PX // (info.width * info.height)
        self._together = max(1, min(backend.batch, fitting))
        synchronize(self.device)  # constants are made on the default stream

    def close(self) -> None:
        """Free the network."""
        self._backend.close()

    def process(self, frames: Iterator[Frame]) -> Iterator[Matte]:
        """Yield one matte per frame, in order, in host memory."""
        for matte in self.finish(self.infer(frames)):
            with self.lane:
                download = Download([matte.alpha], self._copy_lane)
            yield Matte(matte.frame, download.planes()[0])

    def infer(self, frames: Iterator[Frame]) -> Iterator[DeviceInference]:
        """Yield each frame with the network's answer; the first half, for a thread of its own."""
        flights: deque[_Flight] = deque()
        errors: list[Exception] = []
        conformed = until_error(map(self._conformed, frames), errors)
        failed: list[Frame] = []
        for batch in in_batches(conformed, self._backend.batch):
            try:
                flights += self._launched(batch)
            except Exception as exc:  # noqa: BLE001 - raised below, behind what came before it
                errors, failed = [exc], batch
                break
            while len(flights) >= BATCHES_IN_FLIGHT:
                yield from self._land(flights.popleft())
        while flights:
            yield from self._land(flights.popleft())
        if len(failed) > 1:  # which of them it was is known one by one
            for frame in failed:
                for flight in self._launched([frame]):
                    yield from self._land(flight)
        if errors:
            raise errors[0]

    def _conformed(self, frame: Frame) -> Frame:
        """Return the frame in the working layout and size; where it lies on the GPU it stays."""
        picture = frame.picture
        if is_on_device(picture) and (picture.width, picture.height) == self._size:
            assert picture.sw_format is not None
            if is_same_layout(PLANAR[picture.sw_format.name], self._layout):
                return frame
        return self.conformer.conform(to_host(frame))

    def _launched(self, frames: list[Frame]) -> list[_Flight]:
        """Launch a batch; what is too much for the device at once is launched one by one."""
        try:
            return [self._launch(frames)]
        except torch.OutOfMemoryError as exc:
            if len(frames) == 1:
                raise out_of_memory(self.device) from exc
        with or_out_of_memory(self.device):
            return [self._launch([frame]) for frame in frames]

    def _launch(self, frames: list[Frame]) -> _Flight:
        """Ask the device for a batch of answers, and do not wait for them."""
        with self._infer_lane:
            planes = [upload_picture(frame.picture, self.device) for frame in frames]
            image_NHW3 = torch.empty(
                (len(frames), *self._backend.input_size, 3), dtype=torch.uint8, device=self.device
            )
            for image, own in zip(image_NHW3, planes, strict=True):
                image.copy_(self._prepare(*own)[0])
            probability_NHW = self._backend.infer_device(image_NHW3).clone()
            is_finite = torch.isfinite(probability_NHW.sum((1, 2))).to(torch.uint8)
            items = [
                DeviceInference(*item)
                for item in zip(frames, planes, image_NHW3, probability_NHW, strict=True)
            ]
            return _Flight(items, Download([is_finite], self._answer_lane), self._infer_lane.mark())

    def _land(self, flight: _Flight) -> Iterator[DeviceInference]:
        """Wait for a batch, look at its answers, and pass them on."""
        wait(flight.mark)
        (finite,) = flight.is_finite.planes()
        for item, is_finite in zip(flight.items, finite.tolist(), strict=True):
            if not is_finite:
                raise not_a_number(self._name, item.frame.index)
            yield item

    def finish(self, inferences: Iterator[DeviceInference]) -> Iterator[DeviceMatte]:
        """Yield the mattes: the second half, which looks ahead and flushes before an error."""
        errors: list[Exception] = []
        for batch in in_batches(until_error(inferences, errors), self._backend.batch):
            for item in batch:
                self.lane.borrow([*item.planes, item.image, item.probability])
            self._held.extend(batch)
            yield from self._emit(self._steady(batch))
        yield from self._flush()
        if errors:
            raise errors[0]

    def _steady(self, batch: list[DeviceInference]) -> list[Tensor]:
        if self._temporal is None:
            return [item.probability for item in batch]
        with or_out_of_memory(self.device), self.lane:
            probabilities = torch.stack([item.probability for item in batch])
            images = torch.stack([item.image for item in batch])
            return self._temporal.push_batch(probabilities, images)

    def _flush(self) -> Iterator[DeviceMatte]:
        if self._temporal is not None:
            with or_out_of_memory(self.device), self.lane:
                rest = self._temporal.flush()
            yield from self._emit(rest)

    def _emit(self, steady: Sequence[Tensor]) -> Iterator[DeviceMatte]:
        """Finish steady maps, as many at once as memory allows."""
        rest = list(steady)
        while rest:
            group, rest = rest[: self._together], rest[self._together :]
            items = [self._held.popleft() for _ in group]
            try:
                alphas = self._finished(items, group)
            except torch.OutOfMemoryError as exc:
                self._alpha.forget()
                if self._together == 1:
                    raise out_of_memory(self.device) from exc
                self._together //= 2
                self._held.extendleft(reversed(items))
                rest = group + rest
                continue
            for item, alpha in zip(items, alphas, strict=True):
                yield DeviceMatte(item.frame, item.planes, alpha)

    def _finished(self, items: list[DeviceInference], steady: list[Tensor]) -> list[Tensor]:
        """Return the alpha of each picture; valid until the next call."""
        count = len(items)
        if self.device.type == "cuda":  # one graph serves all
            items = items + items[-1:] * (self._together - count)
            steady = steady + steady[-1:] * (self._together - count)
        with self.lane:
            planes = [torch.stack(same) for same in zip(*(i.planes for i in items), strict=True)]
            (alphas,) = self._alpha(torch.stack(steady), *planes)
            found = list(alphas)[:count]
            if self._adjust is not None:
                found = [self._edited(*pair) for pair in zip(items, found, strict=False)]
            return found

    def _edited(self, item: DeviceInference, alpha: Tensor) -> Tensor:
        """Let the user's edits, which are made on the host, change an alpha."""
        assert self._adjust is not None
        (host,) = Download([alpha], self._copy_lane).planes()
        (edited,) = upload([self._adjust(host)], self.device)
        return own_alpha(item.planes, edited, self._layout)


def _alpha(
    preparer: Preparer,
    refiner: Refiner,
    own: Layout | None,
    refinement: bool,
    probability: Tensor,
    *planes: Tensor,
) -> tuple[Tensor]:
    """Bring upright answers to full size; with `own`, under the alpha that pictures have."""
    small = preparer.to_stored(probability)
    alpha = refiner.refine(small, planes) if refinement else refiner.upsample(small)
    return (alpha if own is None else own_alpha(planes, alpha, own),)
