"""Frames to mattes: conform, prepare, infer, steady, refine; batch and look-ahead inside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.composite import own_alpha
from vidmatte.compute.cpu.conform import Conformer
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.errors import BackendError, CancelledError
from vidmatte.frames import Frame, Layout, Matte, VideoInfo, plane_views

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.backends import Backend
    from vidmatte.frames import Samples
    from vidmatte.models.table import Curve

    Probability = NDArray[np.float32]

LOOKAHEAD = 1  # frames that a file may look ahead


class Matting:
    """The per-frame work on a CPU, from a source's frames to mattes of the same frames.

    `curve` is the model's: alpha ≤ lo becomes 0 and ≥ hi becomes 1, the same for every
    frame of every video. `adjust` edits the finished alpha. Belongs to one thread.
    """

    def __init__(
        self,
        info: VideoInfo,
        layout: Layout,
        backend: Backend,
        *,
        curve: Curve,
        temporal: bool = True,
        refinement: bool = True,
        lookahead: int = LOOKAHEAD,
        adjust: Callable[[Samples], Samples] | None = None,
    ) -> None:
        self.conformer = Conformer(info, layout)
        self._bits = layout.bits
        self._backend = backend
        self._curve = curve
        self._refinement = refinement
        self._colour_planes = 1 if layout.model == "gray" else 3
        self._size = info.width, info.height
        self._preparer = Preparer(info, backend.input_size)
        self._temporal = TemporalFilter(lookahead=lookahead) if temporal else None
        self._adjust = adjust
        self._images = np.empty((backend.batch, *backend.input_size, 3), np.uint8)
        self._held: deque[Frame] = deque()

    def process(self, frames: Iterator[Frame]) -> Iterator[Matte]:
        """Yield one matte per frame, in order.

        An error from `frames` or the network at frame N passes through after exactly N mattes,
        whatever is held back.
        """
        try:
            for batch in _batches(frames, self._backend.batch):
                yield from self._process_batch(batch)
        except (CancelledError, GeneratorExit):
            raise
        except BaseException:
            yield from self._flush()
            raise
        yield from self._flush()

    def _process_batch(self, batch: list[Frame]) -> Iterator[Matte]:
        frames = [self.conformer.conform(frame) for frame in batch]
        for image, frame in zip(self._images, frames, strict=False):
            self._preparer.prepare(frame.picture, image)
        probabilities = self._backend.infer(self._images[: len(frames)])
        for frame, image, probability in zip(frames, self._images, probabilities, strict=False):
            if not np.isfinite(probability.sum()):
                raise BackendError(f"frame {frame.index}: the network returned NaN")
            self._held.append(frame)
            steady = [probability] if self._temporal is None else self._temporal.push(
                probability, image)  # fmt: skip
            yield from self._emit(steady)

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


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group frames; what was gathered before an error is yielded before the error."""
    batch: list[Frame] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
    except CancelledError:
        raise
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
