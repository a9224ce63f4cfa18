"""Steady the small probability maps over time, on the device: the twin of compute/cpu/temporal.py.

What depends on pictures and raw maps alone is done for all maps of a batch at once: flows in both
directions, trust, and what later maps add. Only the average with the past is recursive. A cut, the
memory's age and whether there is a memory are tensors, so that the host never waits for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from vidmatte.compute.cpu.temporal import (
    FLAT_CELLS,
    FLAT_GHOST,
    FLAT_PAST_WEIGHT,
    FLAT_RANGE,
    FUTURE_WEIGHTS,
    GHOST,
    PAST_WEIGHT,
    small_shape,
)
from vidmatte.compute.cuda.carry import Grey, Linker, Links, Shrinker, carried, falling
from vidmatte.compute.cuda.filters import dilate, erode, resize_bilinear
from vidmatte.graphs import Graphed

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int]


class TemporalFilter:
    """Turn per-frame probability maps into steady ones; exactly one out for each one in.

    `lookahead` frames (0, 1 or 2) of the future are used, and outputs come that much later. Work is
    queued on the current stream of `device`; nothing waits for it. Used by one thread.
    """

    def __init__(self, *, lookahead: int, device: torch.device) -> None:
        if not 0 <= lookahead <= len(FUTURE_WEIGHTS):
            raise ValueError(f"lookahead {lookahead}")
        self._lookahead = lookahead
        self._device = device
        self._steppers: dict[tuple[Shape, Shape], tuple[_Stepper, Graphed]] = {}
        self._stepper: _Stepper | None = None
        self._graph: Graphed | None = None
        self._state: _State | None = None
        self._waiting = 0

    def push(self, probability: Tensor, image: Tensor) -> list[Tensor]:
        """Take the map of the next frame; return the steady maps that are now known, in order.

        `probability` (h, w) float32 0..1 and `image` (H, W, 3) uint8 RGB, which shows the same
        picture and is no smaller, are copied. Each map that is returned is the caller's. Sizes may
        change after `flush`, and at any time without lookahead: the memory is then resampled.
        """
        return self.push_batch(probability[None], image[None])

    def push_batch(self, probabilities: Tensor, images: Tensor) -> list[Tensor]:
        """Take the maps (B, h, w) of the next B frames, and their images (B, H, W, 3), like `push`.

        Raises ValueError if sizes change while maps wait.
        """
        state = self._fitting(probabilities.shape[-2:], images.shape[1:3])
        count = len(probabilities)
        valid = torch.ones(count, dtype=torch.bool, device=self._device)
        known = max(0, self._waiting + count - self._lookahead)
        steady = self._step(state, probabilities, images, valid)
        self._waiting += count - known
        return steady[len(steady) - known :]

    def flush(self) -> list[Tensor]:
        """Return the maps still held back; the next `push` starts afresh."""
        rest: list[Tensor] = []
        if self._waiting and self._state is not None and self._stepper is not None:
            nothing = self._stepper.nothing(self._lookahead)
            rest = self._step(self._state, *nothing)[-self._waiting :]
        self._state, self._waiting = None, 0
        return rest

    def _step(
        self, state: _State, probabilities: Tensor, images: Tensor, valid: Tensor
    ) -> list[Tensor]:
        assert self._graph is not None
        steady, *after = self._graph(probabilities, images, valid, *state.tensors())
        self._state = _State.of(after)
        return list(steady.clone())

    def _fitting(self, shape: torch.Size, image_shape: torch.Size) -> _State:
        """Return the memory, fit for maps and images of these sizes."""
        shapes = (shape[0], shape[1]), (image_shape[0], image_shape[1])
        if shapes not in self._steppers:
            stepper = _Stepper(*shapes, self._lookahead, self._device)
            self._steppers[shapes] = stepper, Graphed(stepper.work, self._device)
        stepper, graph = self._steppers[shapes]
        if stepper is not self._stepper or self._state is None:
            if self._waiting:
                raise ValueError(f"maps change to {shapes[0]} while {self._waiting} wait")
            self._state = stepper.start(self._state)
            self._stepper, self._graph = stepper, graph
        return self._state


class _Frames(NamedTuple):
    """What is known of N frames: their `probability` (N, h', w'), and for their `small` maps
    (N, h, w) the `grey` pictures, the links from the frames before them, and what is added from
    later frames: `future` (N, 2, h, w), values and weights. Frames not `valid` (N,) never were."""

    probability: Tensor
    small: Tensor
    grey: Tensor
    valid: Tensor
    places: Tensor
    trust: Tensor
    still: Tensor
    known: Tensor
    future: Tensor

    @property
    def links(self) -> Links:
        return Links(self.places, self.trust, self.still, self.known)

    def part(self, start: int, stop: int) -> _Frames:
        return _Frames(*(x[start:stop] for x in self))


class _State(NamedTuple):
    """The memory: the last frames, the steady map of the last but those that wait, (h, w), and
    how many frames it remembers, ()."""

    held: _Frames
    past: Tensor
    age: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.held, self.past, self.age)

    @classmethod
    def of(cls, tensors: list[Tensor]) -> _State:
        *held, past, age = tensors
        return cls(_Frames(*held), past, age)


class _Stepper:
    """Takes memories one batch further, for maps of one `shape` and images of another."""

    def __init__(
        self, shape: Shape, image_shape: Shape, lookahead: int, device: torch.device
    ) -> None:
        self._shape, self._image_shape = shape, image_shape
        self._small = small = small_shape(shape)
        self._lookahead = lookahead
        self._held = max(1, lookahead)
        self._device = device
        self._shrink = Shrinker(shape, small, device)
        self._grey = Grey(image_shape, small, device)
        self._link = Linker(small, device)

    def start(self, before: _State | None) -> _State:
        """Return a memory of nothing, or of what one of another size remembers."""
        empty = self._empty()
        if before is None:
            return empty
        grey = torch.round(resize_bilinear(before.held.grey, self._small))
        held = empty.held._replace(grey=grey, valid=before.held.valid)
        return _State(held, resize_bilinear(before.past, self._small), before.age)

    def nothing(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps and images of `count` frames that never were."""
        return (
            torch.zeros(count, *self._shape, device=self._device),
            torch.zeros(count, *self._image_shape, 3, dtype=torch.uint8, device=self._device),
            torch.zeros(count, dtype=torch.bool, device=self._device),
        )

    def _empty(self) -> _State:
        probability, _, valid = self.nothing(self._held)
        small = torch.zeros(self._held, *self._small, device=self._device)
        future, places = torch.stack((small, small), 1), torch.stack((small, small), -1)
        frames = _Frames(probability, small, small, valid, places, small, small > 0, valid, future)
        return _State(frames, small[0], small[0, 0, 0])

    def work(
        self, probability: Tensor, image: Tensor, valid: Tensor, *memory: Tensor
    ) -> tuple[Tensor, ...]:
        """Take maps, images, which of them are valid, and a memory's tensors, one batch further.

        Returns the steady maps of as many frames, `lookahead` earlier, and the memory's tensors.
        """
        state = _State.of(list(memory))
        frames = self._joined(state.held, probability, image, valid)
        count, first = len(probability), self._held - self._lookahead
        due = frames.part(first, first + count)
        small, age = self._averages(due, state.past, state.age)
        steady = self._changed(due, small)
        return steady, *frames.part(count, count + self._held), small[-1], age

    def _joined(self, held: _Frames, probability: Tensor, image: Tensor, valid: Tensor) -> _Frames:
        """Return the held frames and those that arrive, linked with each other."""
        count = len(probability)
        small = torch.cat((held.small, self._shrink(probability)))
        grey = torch.cat((held.grey, self._grey(image)))
        valid = torch.cat((held.valid, valid))
        # Where frames of each link are: first to the frame before, then to those after.
        now = [slice(self._held - k, self._held - k + count) for k in range(self._lookahead + 1)]
        then = [slice(self._held, self._held + count)] * len(now)
        then[0] = slice(self._held - 1, self._held - 1 + count)
        now_grey, then_grey, now_valid, then_valid = (
            torch.cat([x[part] for part in parts]) for x in (grey, valid) for parts in (now, then)
        )
        links = self._link(now_grey, then_grey, now_valid & then_valid)
        pasts = zip(held.links, links, strict=True)
        past = Links(*(torch.cat((old, new[:count])) for old, new in pasts))
        future = torch.cat((held.future, torch.zeros_like(held.future[:1]).repeat(count, 1, 1, 1)))
        for k in range(1, self._lookahead + 1):
            link = Links(*(x[k * count : (k + 1) * count] for x in links))
            future[now[k]] += _later(small[now[k]], small[then[k]], link, FUTURE_WEIGHTS[k - 1])
        return _Frames(
            torch.cat((held.probability, probability)), small, grey, valid, *past, future
        )

    def _averages(self, due: _Frames, past: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return the steady small maps, and how many frames the last of them remembers."""
        flat = _flatness(due.small)
        steady = []
        for k in range(len(due.small)):
            frame = due.part(k, k + 1)
            past, age = _average(frame, flat[k], past, age)
            steady.append(past)
        return torch.stack(steady), age

    def _changed(self, due: _Frames, small: Tensor) -> Tensor:
        """Change maps as their smaller forms were changed; their own edges stay as fine."""
        if self._shape == self._small:
            return small
        change = resize_bilinear(small - due.small, self._shape)
        return (due.probability + change).clamp(0, 1)


def _later(now: Tensor, then: Tensor, links: Links, weight: float) -> Tensor:
    """Return what maps of later frames add to those of `now`: values and weights, (N, 2, h, w)."""
    brought = carried(then, links)
    alike = falling((brought - now).abs(), *GHOST)
    trust = links.trust * torch.where(links.still, 1.0, alike) * weight
    return torch.stack((brought * trust, trust), 1)


def _average(frame: _Frames, flat: Tensor, past: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steady small map of one frame and the age of the memory that it makes.

    Nothing of `past` is used across a cut. A young memory weighs as in a plain mean.
    """
    links = frame.links
    now, then = frame.small, carried(past[None], links)
    flat = flat * _flatness(then)
    change = (then - now).abs()
    alike = torch.maximum(falling(change, *GHOST), falling(change, *FLAT_GHOST) * flat)
    middle = now + then
    unsure = middle * (2 - middle)  # 1 at a mean of one half, 0 where both are sure
    weight = torch.minimum(PAST_WEIGHT + FLAT_PAST_WEIGHT * flat * unsure, age)
    trust = links.trust * torch.where(links.still, 1.0, alike) * weight
    added, added_weight = frame.future.unbind(1)
    steady = (now + then * trust + added) / (1 + trust + added_weight)
    return steady[0], torch.where(links.known[0], age + 1, 1.0)


def _flatness(value: Tensor) -> Tensor:
    """1 where a map is the same all around, 0 near an edge."""
    return falling(dilate(value, FLAT_CELLS) - erode(value, FLAT_CELLS), 0.0, FLAT_RANGE)
