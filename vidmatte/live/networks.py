"""The networks of a live session's levels, and the one thread that runs them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.errors import BackendError, CancelledError, VidmatteError
from vidmatte.matting import MattingChoice, Network, open_network
from vidmatte.pipeline import Crew, Latest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import VideoInfo

log = logging.getLogger(__name__)

HANGING_S = 5.0  # without an answer; a heavy model on a slow CPU takes one
_OTHER = "try --precision f32, or another --model"


@dataclass(frozen=True, slots=True)
class Question:
    """A small upright RGB picture (H, W, 3) uint8 for the network of `size`, and its time."""

    serial: int
    size: int
    image: NDArray[np.uint8]
    time_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The probability (h, w) float32 of a question, a copy, and how long it took."""

    question: Question
    probability: NDArray[np.float32]
    spent_s: float


class Networks:
    """Opens one network per size and runs them, one question at a time, on a thread of its own.

    The first size is open when the constructor returns; the others are opened in the background.
    A new question takes the place of one that waits. `close` never waits for a network.
    Raises ModelError and BackendError.
    """

    def __init__(
        self, info: VideoInfo, choice: MattingChoice, sizes: Sequence[int], crew: Crew
    ) -> None:
        self._info, self._choice = info, choice
        self._questions: Latest[Question] = Latest()
        self._answers: Latest[Answer | VidmatteError] = Latest()
        self._changing = threading.Lock()
        self._closed = False
        self.taken = self.answered = -1  # serial of the last question begun with, and answered
        first, *rest = dict.fromkeys(sizes)
        self._networks = {first: open_network(info, choice, first)}
        self.model = self._networks[first].model
        crew.start("infer", self._serve)
        if rest:
            crew.start("levels", lambda: self._open(rest), behind=True)

    @property
    def open_sizes(self) -> frozenset[int]:
        """The sizes that can be asked now. Any thread."""
        with self._changing:
            return frozenset(self._networks)

    def network(self, size: int) -> Network:
        """Return an open network, to be looked at, not run."""
        return self._networks[size]

    def ask(self, question: Question) -> None:
        """Leave a question; one that still waits is forgotten."""
        self._questions.put(question)

    def answer(self, timeout_s: float) -> Answer | None:
        """Return the newest answer not yet returned, waiting for one; None when none comes.

        Raises BackendError where the network failed, and CancelledError once closed.
        """
        answer = self._answers.get(timeout_s)
        if isinstance(answer, VidmatteError):
            self._answers.put(answer)  # it does not work any better the next time
            raise answer
        return answer

    def close(self) -> None:
        """End the thread, as soon as the network lets it, and free the networks."""
        with self._changing:
            self._closed = True
        self._questions.cancel()
        self._answers.cancel()

    def _open(self, sizes: Sequence[int]) -> None:
        for size in sizes:
            if self._closed:
                return
            try:
                network = open_network(self._info, self._choice, size)
            except VidmatteError as exc:
                log.warning("the network cannot be opened for %d px: %s", size, exc)
                continue
            with self._changing:
                if not self._closed:
                    self._networks[size] = network
                    continue
            network.backend.close()

    def _serve(self) -> None:
        """Answer questions until closed or until the network fails; then free the networks."""
        try:
            while (question := self._questions.get()) is not None:
                self.taken = question.serial
                self._answers.put(self._infer(question))
                self.answered = question.serial
        except CancelledError:
            pass
        except Exception as exc:  # noqa: BLE001 - raised again by answer(), on the caller's thread
            self._answers.put(_as_backend_error(exc))
        with self._changing:
            self._closed = True
        for network in self._networks.values():
            network.backend.close()

    def _infer(self, question: Question) -> Answer:
        start = time.perf_counter()
        backend = self._networks[question.size].backend
        probability = backend.infer(question.image[None])[0]
        if not np.isfinite(probability.sum()):
            raise BackendError("the network returned NaN", hint=_OTHER)
        return Answer(question, probability.copy(), time.perf_counter() - start)


def _as_backend_error(exc: Exception) -> VidmatteError:
    if isinstance(exc, VidmatteError):
        return exc
    error = BackendError(f"the network failed: {exc or type(exc).__name__}", hint=_OTHER)
    error.__cause__ = exc
    return error
