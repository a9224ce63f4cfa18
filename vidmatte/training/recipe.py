"""What decides how a network is trained: every number of it, and two recipes to start from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Size = tuple[int, int]
"""(width, height) of the pictures of a step."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; `batch` pictures a step in each process.

    The steps are split evenly among `sizes`, in order; an entry is one size, or several that take
    turns. Chances are per picture. `crop` is the range of a crop's side as a share of the packed
    picture's, `aspect` how much wider or narrower it may be. `teacher_weight` is the share of the
    teacher's matte in the target. After `warmup` steps the learning rate falls along a half cosine
    to `floor` times its peak. `ema` is the decay per step of the average of the weights, or 0.
    """

    steps: int
    batch: int
    sizes: tuple[tuple[Size, ...], ...]
    optimizer: Literal["adam", "adamw"]
    learning_rate: float
    weight_decay: float
    warmup: int
    floor: float
    ema: float
    iou_weight: float
    crop: tuple[float, float]
    aspect: float
    teacher_weight: float
    replaced: float
    empty: float
    colour: float
    blurred: float
    compressed: float
    noisy: float
    seed: int = 0

    def sizes_at(self, step: int) -> Size:
        """Return the size of the pictures of a step."""
        part = self.sizes[min(step * len(self.sizes) // self.steps, len(self.sizes) - 1)]
        return part[step % len(part)]

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * (self.floor + (1 - self.floor) * fall)

    def document(self) -> dict[str, Any]:
        """Return the recipe JSON-ready."""
        return asdict(self)


# U²-Net paper, section 4.2: pictures of 320×320, flipped, cropped to 288×288; Adam with its default
# parameters, learning rate 1e-3, no weight decay; the sum of seven cross entropies; batch 12.
PAPER = Recipe(
    steps=600_000, batch=12, sizes=(((288, 288),),),
    optimizer="adam", learning_rate=1e-3, weight_decay=0.0, warmup=0, floor=1.0, ema=0.0,
    iou_weight=0.0, crop=(0.9, 0.9), aspect=1.0, teacher_weight=0.0, replaced=0.0, empty=0.0,
    colour=0.0, blurred=0.0, compressed=0.0, noisy=0.0,
)  # fmt: skip
# What made the first weights of `live` (vidmatte/weights/MODEL_CARD.md).
LIVE = Recipe(
    steps=11_900, batch=19, sizes=(((128, 128),), ((192, 192),), ((256, 256),)),
    optimizer="adamw", learning_rate=2e-3, weight_decay=1e-2, warmup=200, floor=0.01, ema=0.997,
    iou_weight=1.0, crop=(0.6, 1.0), aspect=1.35, teacher_weight=0.0, replaced=0.12, empty=0.07,
    colour=0.8, blurred=0.15, compressed=0.2, noisy=0.25,
)  # fmt: skip
RECIPES = {"live": LIVE, "paper": PAPER}
