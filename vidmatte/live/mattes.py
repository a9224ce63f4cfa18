"""Live frames to mattes: each mask is of the very frame, or carried to it and checked against it.

Frame by frame: the frame waits for its own answer. Otherwise the network takes the newest picture
whenever it is free, and every frame gets the newest mask, carried along dense optical flow from the
mask's own picture; where the frame does not look like what was carried, it counts as background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.compute.cpu.carry import LOOSE, Moment, carry
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.errors import BackendError
from vidmatte.frames import Matte, plane_views
from vidmatte.live.conforming import LiveConformer
from vidmatte.live.contracts import LAYOUT
from vidmatte.live.networks import HANGING_S, Answer, Networks, Question
from vidmatte.live.presence import Presence, sure_share
from vidmatte.matting import works_on_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.frames import Frame, Samples, VideoInfo
    from vidmatte.live.governor import Level
    from vidmatte.matting import MattingChoice
    from vidmatte.pipeline import Crew

    Picture = NDArray[np.uint8]
    Floats = NDArray[np.float32]

# Older masks are not carried: somebody who came in since is in none of them, and no picture is
# repeated for longer either. Six frames at 30 fps; the error of a carried mask does not grow until
# then (benchmarks/NOTES.md, Live mattes).
LONGEST_CARRY_S = 0.2
MASK_INTERVAL_S = 0.08  # masks are asked for at least as often, whatever the level says
# A mask of which less can be trusted has lost its subject; all real leaks were below .55.
_WHOLE = 0.7


@dataclass(frozen=True, slots=True)
class _Mask:
    """A steady mask (h, w) at the network's output size and the picture that it was made from."""

    probability: Floats
    image: Picture
    time_s: float


class LiveMatting:
    """Makes the mattes of one session; the levels say how much work goes into each.

    `info` describes the conformed pictures, yuv420p. The first level's network is open when
    the constructor returns. Everything is used by one thread, but `close`, `present`,
    `available` and `description`, which any may use. Raises ModelError and BackendError.
    """

    def __init__(
        self, info: VideoInfo, choice: MattingChoice, levels: Sequence[Level], crew: Crew
    ) -> None:
        self.levels = tuple(levels)
        self.stage_s: dict[str, float] = {}
        """Seconds that the last matte spent in each stage; "network" is of the last answer."""
        self._info, self._choice = info, choice
        self._level = 0
        self._networks = Networks(info, choice, [level.size for level in levels], crew)
        self._curve = self._networks.model.row.curve
        self._on_device = self._device_refiner()
        self._conformer = LiveConformer(info)
        self._preparers: dict[int, Preparer] = {}
        self._presence = Presence()
        self._serial = 0
        self.reset()

    def _device_refiner(self) -> Callable[[Floats, Sequence[Samples]], Samples] | None:
        """Build what refines where the network is, if that is a device."""
        backend = self._networks.network(self.levels[0].size).backend
        if not works_on_device(backend, self._choice):
            return None
        from vidmatte.compute.cuda.single import SingleRefiner

        return SingleRefiner(
            LAYOUT, self._info.width, self._info.height, self._curve, backend.device,
            refinement=self._choice.refinement,
        )  # fmt: skip

    def reset(self) -> None:
        """Forget the pictures before: after a lost camera, a long gap, a mirrored picture.

        Whether somebody is there is kept, so that nobody vanishes for a moment.
        """
        self._temporal = TemporalFilter()
        self._mask: _Mask | None = None
        self._valid_from = self._serial
        self._asked: Question | None = None
        self._unanswered_s: float | None = None
        self._since = 0

    @property
    def level(self) -> int:
        """The present level, an index into `levels`; set between two frames."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        if level not in self.available:
            raise ValueError(f"level {level} is not open")
        self._level = level

    @property
    def available(self) -> frozenset[int]:
        """The levels that may be chosen now; the rest are still being opened."""
        sizes = self._networks.open_sizes
        return frozenset(n for n, level in enumerate(self.levels) if level.size in sizes)

    @property
    def present(self) -> bool:
        """Whether somebody is there; where not, mattes are all 0."""
        return self._presence.present

    @property
    def network_s(self) -> float:
        """Seconds that the network took for its last answer; 0 before the first."""
        return self.stage_s.get("network", 0.0)

    @property
    def description(self) -> str:
        """What makes the masks, for people."""
        network = self._networks.network(self.levels[self._level].size)
        height, width = network.backend.input_size
        return f"{network.model.row.name} {width}x{height}, {network.backend.description}"

    def conform(self, frame: Frame) -> Frame:
        """Return the frame as yuv420p in the session's size: cropped about the centre, scaled."""
        return self._conformer.conform(frame)

    def matte(self, frame: Frame) -> Matte | None:
        """Return the matte of a conformed frame; None where there is no honest one.

        Raises BackendError where the network failed or hangs, and CancelledError once closed.
        """
        level = self.levels[self._level]
        start = time.perf_counter()
        image = self._prepared(frame, level.size)
        begun = self._spend("prepare", start)
        question = Question(self._serial, level.size, image, frame.time_s)
        self._serial += 1
        if level.every == 1:
            probability: Floats | None = self._own(question)
        else:
            probability = self._carried(question, level.every)
        begun = self._spend("mask", begun)
        if probability is None:
            return None
        alpha = self._alpha(frame, probability)
        self._spend("refine", begun)
        return Matte(frame, alpha)

    def close(self) -> None:
        """Free the networks; never waits, not even for a network that hangs."""
        self._networks.close()

    def _spend(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        self.stage_s[stage] = now - since
        return now

    def _prepared(self, frame: Frame, size: int) -> Picture:
        input_size = self._networks.network(size).backend.input_size
        if size not in self._preparers:
            self._preparers[size] = Preparer(self._info, input_size)
        image = np.empty((*input_size, 3), np.uint8)
        self._preparers[size].prepare(frame.picture, image)
        return image

    def _own(self, question: Question) -> Floats:
        """Ask about this very picture and wait for the answer."""
        self._ask(question)
        deadline_s = time.monotonic() + HANGING_S
        while (answer := self._networks.answer(deadline_s - time.monotonic())) is not None:
            if answer.question is question:
                return self._learn(answer).probability
        raise _hanging()

    def _carried(self, question: Question, every: int) -> Floats | None:
        """Ask about this picture if it is its turn, and carry the newest mask to it."""
        self._since += 1
        if self._is_due(question, every):
            self._ask(question)
        answer = self._networks.answer(0)
        if answer is not None and answer.question.serial >= self._valid_from:
            self._learn(answer)
        if self._unanswered_s is not None and time.monotonic() > self._unanswered_s + HANGING_S:
            raise _hanging()
        if self._mask is None or not 0 <= question.time_s - self._mask.time_s <= LONGEST_CARRY_S:
            return None
        if not self._presence.present:
            return self._mask.probability
        return self._brought(self._mask, question.image)

    def _is_due(self, question: Question, every: int) -> bool:
        """Whether the network should see this picture: its turn, or newer than one that waits."""
        asked = self._asked
        if asked is None or asked.serial > self._networks.taken:
            return True
        return self._since >= every or question.time_s - asked.time_s >= MASK_INTERVAL_S

    def _ask(self, question: Question) -> None:
        self._networks.ask(question)
        self._asked = question
        self._since = 0
        if self._unanswered_s is None:
            self._unanswered_s = time.monotonic()

    def _learn(self, answer: Answer) -> _Mask:
        """Steady the newest answer and keep it as the mask to carry."""
        question, steady = answer.question, answer.probability
        self._unanswered_s = None
        self.stage_s["network"] = answer.spent_s
        if self._choice.temporal:
            steady = self._temporal.push(steady, question.image)[0]
        self._presence.update(sure_share(steady, self._curve.hi), question.time_s)
        self._mask = _Mask(steady, question.image, question.time_s)
        return self._mask

    def _brought(self, mask: _Mask, image: Picture) -> Floats | None:
        """Carry the mask to another picture; None where too little of it can be trusted."""
        import cv2

        size = (mask.image.shape[1], mask.image.shape[0])
        value = np.asarray(cv2.resize(mask.probability, size), np.float32)
        moment = Moment(value, mask.image).at(image.shape[:2])
        brought = carry(moment, image, LOOSE)
        if brought is None:
            return None
        trusted = np.asarray(brought.value * brought.trust, np.float32)
        before = np.maximum(brought.value - self._curve.lo, 0).sum()
        after = np.maximum(trusted - self._curve.lo, 0).sum()
        return trusted if after >= _WHOLE * before else None

    def _alpha(self, frame: Frame, probability: Floats) -> Samples:
        if not self._presence.present:
            return np.zeros((self._info.height, self._info.width), np.uint8)
        planes, lo, hi = plane_views(frame.picture), self._curve.lo, self._curve.hi
        if self._on_device is not None:
            alpha = self._on_device(probability, planes)
        elif self._choice.refinement:
            alpha = refine(probability, planes, lo=lo, hi=hi)
        else:
            alpha = upsample(probability, self._info.width, self._info.height, lo=lo, hi=hi)
        return alpha if self._choice.adjust is None else self._choice.adjust(alpha)


def _hanging() -> BackendError:
    return BackendError(
        f"the network has not answered for {HANGING_S:.0f} s", hint="try --device cpu or --fast"
    )
