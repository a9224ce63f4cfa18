"""Frames to mattes: conform, prepare, infer, steady, refine; batch and look-ahead inside."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import numpy as np

from vidmatte.backends import (
    Backend,
    DeviceBackend,
    choose_device,
    not_a_number,
    notes_of,
    open_backend,
    usable_cores,
)
from vidmatte.backends._spread import open_spread, parse_devices
from vidmatte.compute.batches import in_batches, until_error
from vidmatte.compute.cpu.composite import own_alpha
from vidmatte.compute.cpu.conform import Conformer
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.frames import Frame, Layout, Matte, VideoInfo, plane_views
from vidmatte.models.registry import Model, resolve_model
from vidmatte.models.table import multiply_adds, network_size
from vidmatte.threads import network_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.backends import Precision
    from vidmatte.compute.cuda.engine import DeviceMatting
    from vidmatte.frames import Samples

    Probability = NDArray[np.float32]
    _Prepared = tuple[Frame, NDArray[np.uint8]]

log = logging.getLogger(__name__)

LOOKAHEAD = 1  # frames that a file may look ahead
GPU_BATCH = 8  # pictures that a file's network gets at once on a GPU


@dataclass(frozen=True, slots=True)
class MattingChoice:
    """Which network makes the mattes, where, and what is done to them afterwards."""

    model: str | None = None
    weights: Path | None = None
    backend: str = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    temporal: bool = True
    refinement: bool = True
    adjust: Callable[[Samples], Samples] | None = None
    wait_engine: bool = False


class Network(NamedTuple):
    """A model and the backend that runs it."""

    model: Model
    backend: Backend


def find_model(choice: MattingChoice) -> Model:
    """Find the weights of a choice without loading them. Raises ModelError and BackendError."""
    return resolve_model(choice.model, weights=choice.weights, device=first_device(choice))


def first_device(choice: MattingChoice) -> str:
    """Return the device of a choice, or the first of several: "cpu", "cuda" or "cuda:N"."""
    return choose_device(parse_devices(choice.device)[0], choice.backend.partition(":")[0])


def open_network(
    info: VideoInfo,
    choice: MattingChoice,
    longer: int = 320,
    *,
    gpu_batch: int = 1,
    on_wait: Callable[[str], object] = log.info,
) -> Network:
    """Find the model's weights and open a backend for pictures of `info`'s shape.

    `longer` is the longer side of the network's picture; each GPU gets `gpu_batch` pictures at
    once. `on_wait` hears what is done while an engine is waited for (see Request). Raises
    ModelError and BackendError.
    """
    model = find_model(choice)
    device = first_device(choice)
    width, height = network_size(*info.upright_size, model.row, longer)
    threads = network_threads(usable_cores(), multiply_adds(model.row.network, width, height))

    def open_on(device: str) -> Backend:
        return open_backend(
            model,
            size=(height, width),
            backend=choice.backend,
            device=device,
            batch=batch,
            precision=choice.precision,
            threads=threads,
            on_wait=on_wait if choice.wait_engine else None,
        )

    batch = 1 if device == "cpu" or info.is_still else gpu_batch
    return Network(model, open_spread(parse_devices(choice.device), open_on))


class NetworkKeeper:
    """Opens networks like `open_network` and keeps the last one for the next input of its shape.

    A network that is still in use is not handed out again. For runs one after another.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._kept: _KeptBackend | None = None
        self._model: Model | None = None

    def open(
        self, info: VideoInfo, choice: MattingChoice, *, on_wait: Callable[[str], object] = log.info
    ) -> Network:
        """Return the kept network if it fits and is free, else open one and keep that."""
        key = info.upright_size, choice
        if self._kept is None or self._model is None or key != self._key or self._kept.in_use:
            self.close()
            self._model, backend = open_network(info, choice, gpu_batch=GPU_BATCH, on_wait=on_wait)
            self._kept, self._key = _KeptBackend(backend), key
        self._kept.in_use = True
        return Network(self._model, self._kept)

    def close(self) -> None:
        """Free the kept network, unless a run still uses it."""
        if self._kept is not None and not self._kept.in_use:
            self._kept.backend.close()
        self._kept = None


class _KeptBackend:
    """A backend that stays open when its user closes it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self.input_size, self.batch = backend.input_size, backend.batch
        self.infer = backend.infer
        self.in_use = False
        if isinstance(backend, DeviceBackend):
            self.device, self.infer_device = backend.device, backend.infer_device

    @property
    def description(self) -> str:
        """What it is, in words."""
        return self.backend.description

    @description.setter
    def description(self, text: str) -> None:
        self.backend.description = text

    @property
    def notes(self) -> list[str]:
        """What it has to tell; see `notes_of`."""
        return notes_of(self.backend)

    def close(self) -> None:
        """Give it back."""
        self.in_use = False


@dataclass(frozen=True, slots=True)
class Inference:
    """A conformed frame, its small upright RGB (H, W, 3) uint8, and the network's answer (h, w)."""

    frame: Frame
    image: NDArray[np.uint8]
    probability: Probability


def works_on_device(backend: Backend, choice: MattingChoice) -> TypeGuard[DeviceBackend]:
    """Whether the per-frame work follows the network onto its device: a GPU.

    The torch backend, where it is asked for by name, has it done in torch, on the CPU too.
    """
    return isinstance(backend, DeviceBackend) and (
        backend.device.type == "cuda" or choice.backend == "torch"
    )


def build_matting(
    info: VideoInfo,
    layout: Layout,
    network: Network,
    choice: MattingChoice,
    *,
    temporal: bool,
) -> Matting | DeviceMatting:
    """Build the per-frame work for pictures of `info`: on the network's device if it has one."""
    backend, row = network.backend, network.model.row
    refinement, adjust = choice.refinement, choice.adjust
    if works_on_device(backend, choice):
        from vidmatte.compute.cuda.engine import DeviceMatting

        return DeviceMatting(
            info, layout, backend, row.curve,
            temporal=temporal, refinement=refinement, adjust=adjust,
        )  # fmt: skip
    return Matting(info, layout, network, temporal=temporal, refinement=refinement, adjust=adjust)


class Matting:
    """The per-frame work on a CPU, from a source's frames to mattes of the same frames.

    The model's curve (alpha ≤ lo becomes 0, ≥ hi becomes 1) is the same for every frame of every
    video. `adjust` edits the finished alpha. `infer` and `finish` may run on two
    threads, each on one.
    """

    def __init__(
        self,
        info: VideoInfo,
        layout: Layout,
        network: Network,
        *,
        temporal: bool = True,
        refinement: bool = True,
        lookahead: int = LOOKAHEAD,
        adjust: Callable[[Samples], Samples] | None = None,
    ) -> None:
        self.conformer = Conformer(info, layout)
        self._bits = layout.bits
        self._backend = network.backend
        self._curve = network.model.row.curve
        self._refinement = refinement
        self._colour_planes = 1 if layout.model == "gray" else 3
        self._size = info.width, info.height
        self._name = info.name
        self._preparer = Preparer(info, network.backend.input_size)
        self._temporal = TemporalFilter(lookahead=lookahead) if temporal else None
        self._adjust = adjust
        self._held: deque[Frame] = deque()

    def close(self) -> None:
        """Free the network."""
        self._backend.close()

    def process(self, frames: Iterator[Frame]) -> Iterator[Matte]:
        """Yield one matte per frame, in order: `infer` and `finish` on one thread."""
        return self.finish(self.infer(frames))

    def infer(self, frames: Iterator[Frame]) -> Iterator[Inference]:
        """Yield each frame with the network's answer; the first half, for a thread of its own.

        An error at frame N, of `frames`, while it is made ready or in the network, passes through
        after exactly N answers.
        """
        errors: list[Exception] = []
        for batch in in_batches(until_error(self._prepared(frames), errors), self._backend.batch):
            try:
                answers = self._answer(batch)
            except Exception:
                if len(batch) > 1:  # which of them it was is known one by one
                    for single in batch:
                        yield from self._answer([single])
                raise
            yield from answers
        if errors:
            raise errors[0]

    def _answer(self, batch: list[_Prepared]) -> Iterator[Inference]:
        """Run the network over a batch at once; look at its answers as they are taken."""
        probabilities = self._backend.infer(np.stack([image for _, image in batch]))
        return self._checked(batch, probabilities)

    def _checked(self, batch: list[_Prepared], answers: Probability) -> Iterator[Inference]:
        for (frame, image), probability in zip(batch, answers, strict=True):
            if not np.isfinite(probability.sum()):
                raise not_a_number(self._name, frame.index)
            yield Inference(frame, image, probability.copy())

    def _prepared(self, frames: Iterator[Frame]) -> Iterator[_Prepared]:
        """Yield each frame conformed, with its picture for the network."""
        for frame in frames:
            conformed = self.conformer.conform(frame)
            image = np.empty((*self._backend.input_size, 3), np.uint8)
            self._preparer.prepare(conformed.picture, image)
            yield conformed, image

    def finish(self, inferences: Iterator[Inference]) -> Iterator[Matte]:
        """Yield the mattes: the second half, which looks ahead and flushes before an error."""
        errors: list[Exception] = []
        for inference in until_error(inferences, errors):
            self._held.append(inference.frame)
            yield from self._emit(self._steady(inference))
        yield from self._flush()
        if errors:
            raise errors[0]

    def _steady(self, inference: Inference) -> list[Probability]:
        if self._temporal is None:
            return [inference.probability]
        return self._temporal.push(inference.probability, inference.image)

    def _flush(self) -> Iterator[Matte]:
        if self._temporal is not None:
            yield from self._emit(self._temporal.flush())

    def _emit(self, steady: list[Probability]) -> Iterator[Matte]:
        for probability in steady:
            frame = self._held.popleft()
            yield Matte(frame, self._finish(frame, probability))

    def _finish(self, frame: Frame, probability: Probability) -> Samples:
        small = self._preparer.to_stored(probability)
        lo, hi = self._curve.lo, self._curve.hi
        if self._refinement:
            planes = plane_views(frame.picture)[: self._colour_planes]
            alpha = refine(small, planes, bits=self._bits, lo=lo, hi=hi)
        else:
            alpha = upsample(small, *self._size, bits=self._bits, lo=lo, hi=hi)
        if self._adjust is not None:
            alpha = self._adjust(alpha)
        return own_alpha(frame.picture, alpha)
