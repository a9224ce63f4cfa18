"""One step's pictures and targets: crops, flips, backgrounds, colour, blur, JPEG, noise.

A batch follows from the recipe's seed, the step and the process alone, so that a run that is
interrupted goes on as if it had not been. All of it runs in torch on the device of the pictures.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from vidmatte.training.pack import Pack
    from vidmatte.training.recipe import Recipe, Size

_SOFT_EDGE = 1.0  # standard deviation in pixels of a pasted subject's edge
_BLOCK = 8
_LUMA = (0.299, 0.587, 0.114)


class Batch(NamedTuple):
    """`image` (N, 3, H, W) and `target` (N, 1, H, W), float32 0..1."""

    image: Tensor
    target: Tensor


class _Box(NamedTuple):
    """A part of a packed picture in pixels."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Pictures:
    """A pack on a device: `images` (N, 3, S, S), `masks` and `teacher` (N, 1, S, S), uint8.

    `empty` (N, 4) are the areas without a subject, as in Pack.
    """

    images: Tensor
    masks: Tensor
    teacher: Tensor | None
    empty: NDArray[np.float32]

    @classmethod
    def load(cls, pack: Pack, device: torch.device) -> Pictures:
        """Put a pack onto `device`; on the CPU it stays mapped from the disk."""

        def placed(array: NDArray[np.uint8]) -> Tensor:
            with warnings.catch_warnings():  # of a tensor that must not be written to: none is
                warnings.simplefilter("ignore", UserWarning)
                tensor = torch.from_numpy(array)
            tensor = tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor[:, None]
            return tensor.to(device)

        teacher = None if pack.teacher is None else placed(pack.teacher)
        return cls(placed(pack.images), placed(pack.masks), teacher, pack.empty)


class Augmenter:
    """Makes the batch of any step out of the pictures that `indices` name."""

    def __init__(
        self,
        pictures: Pictures,
        indices: NDArray[np.intp],
        recipe: Recipe,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._pictures, self._subset, self._recipe = pictures, indices, recipe
        self._rooms = indices[pictures.empty[indices, 2] > 0]
        self._rank, self._world = rank, world
        self._side = pictures.images.shape[-1]

    def batch(self, step: int) -> Batch:
        """Return the pictures and targets of a step."""
        recipe, size = self._recipe, self._recipe.sizes_at(step)
        random = np.random.default_rng((recipe.seed, step, self._rank))
        pairs = [self._sample(int(index), size, random) for index in self._indices(step)]
        image = torch.cat([image for image, _ in pairs])
        target = torch.cat([target for _, target in pairs])
        noise = torch.Generator(image.device).manual_seed(int(random.integers(1 << 62)))
        return Batch(degrade(image, recipe, random, noise), target)

    def _indices(self, step: int) -> NDArray[np.intp]:
        """Every picture once before any comes again, in another order each time."""
        count, batch = len(self._subset), self._recipe.batch
        first = (step * self._world + self._rank) * batch
        places = np.arange(first, first + batch)
        epochs = places // count
        orders = {e: _order(self._recipe.seed, int(e), count) for e in np.unique(epochs)}
        chosen = [orders[e][p % count] for e, p in zip(epochs, places, strict=True)]
        return self._subset[chosen]

    def _sample(self, index: int, size: Size, random: Generator) -> tuple[Tensor, Tensor]:
        """One picture (1, 3, H, W) and its target (1, 1, H, W)."""
        recipe, pictures = self._recipe, self._pictures
        kind = random.random()
        if kind < recipe.empty and len(self._rooms):
            room = self._room(size, random)
            return room, torch.zeros_like(room[:, :1])
        box = self._crop(random)
        image = _cut(pictures.images[index], box, size)
        mask = _cut(pictures.masks[index], box, size)
        if kind < recipe.empty + recipe.replaced and len(self._rooms):
            alpha = soften(mask)
            return image * alpha + self._room(size, random) * (1 - alpha), mask
        if pictures.teacher is not None and recipe.teacher_weight:
            taught = _cut(pictures.teacher[index], box, size)
            mask = mask + (taught - mask) * recipe.teacher_weight
        return image, mask

    def _room(self, size: Size, random: Generator) -> Tensor:
        """A picture, or a part of one, in which nothing is a subject."""
        index = int(random.choice(self._rooms))
        left, top, right, bottom = self._pictures.empty[index] * self._side
        box = _Box(int(left), int(top), int(right), int(bottom), bool(random.random() < 0.5))
        return _cut(self._pictures.images[index], box, size)

    def _crop(self, random: Generator) -> _Box:
        recipe, side = self._recipe, self._side
        share, narrow = random.uniform(*recipe.crop), random.uniform(-1, 1)
        aspect = recipe.aspect ** (narrow / 2)
        width, height = (min(side, round(side * share * a)) for a in (aspect, 1 / aspect))
        left, top = random.integers(side - width + 1), random.integers(side - height + 1)
        mirrored = bool(random.random() < 0.5)
        return _Box(int(left), int(top), int(left) + width, int(top) + height, mirrored)


def whole(pictures: Pictures, index: int, size: Size) -> Batch:
    """Return one picture and its mask as they are, stretched to `size`."""
    side = pictures.images.shape[-1]
    box = _Box(0, 0, side, side, mirrored=False)
    return Batch(_cut(pictures.images[index], box, size), _cut(pictures.masks[index], box, size))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _cut(picture: Tensor, box: _Box, size: Size) -> Tensor:
    """Cut a box out of a (C, S, S) uint8 picture: (1, C, height, width), float 0..1."""
    part = picture[None, :, box.top : box.bottom, box.left : box.right]
    if part.is_cuda:  # torch resizes bytes on the CPU alone
        part = part.float()
    part = F.interpolate(part, (size[1], size[0]), mode="bilinear", antialias=True)
    part = part.flip(-1) if box.mirrored else part
    return part.float() / 255


def soften(mask_N1HW: Tensor) -> Tensor:
    """Give a hard mask the soft edge of a lens, so that pasting it leaves no staircase."""
    return gaussian(mask_N1HW, torch.full((len(mask_N1HW),), _SOFT_EDGE))


def degrade(
    image_N3HW: Tensor, recipe: Recipe, random: Generator, noise: torch.Generator
) -> Tensor:
    """Do to pictures 0..1 what cameras and encoders do, each kind to the recipe's share of them."""
    count = len(image_N3HW)

    def chosen(share: float) -> Tensor:
        return torch.from_numpy(np.flatnonzero(random.random(count) < share))

    def drawn(low: float, high: float, where: Tensor) -> Tensor:
        values = random.uniform(low, high, len(where)).astype(np.float32)
        return torch.from_numpy(values)

    image = image_N3HW
    if len(some := chosen(recipe.colour)):
        image = _put(image, some, recolour(image[some], random))
    if len(some := chosen(recipe.blurred)):
        image = _put(image, some, gaussian(image[some], drawn(0.4, 1.8, some)))
    if len(some := chosen(recipe.noisy)):
        sigma = drawn(0.005, 0.06, some).to(image.device)[:, None, None, None]
        grain = torch.randn(image[some].shape, generator=noise, device=image.device)
        image = _put(image, some, image[some] + sigma * grain)
    if len(some := chosen(recipe.compressed)):
        image = _put(image, some, compress(image[some], drawn(0.02, 0.12, some)))
    return image.clamp(0, 1)


def _put(image: Tensor, some: Tensor, changed: Tensor) -> Tensor:
    return image.index_copy(0, some.to(image.device), changed)


def recolour(image_N3HW: Tensor, random: Generator) -> Tensor:
    """Change exposure, gamma, contrast, saturation and white balance of each picture by itself."""
    count, device = len(image_N3HW), image_N3HW.device

    def factor(spread: float, channels: int = 1) -> Tensor:
        values = np.exp(random.normal(0, spread, (count, channels, 1, 1))).astype(np.float32)
        return torch.from_numpy(values).to(device)

    image = (image_N3HW * factor(0.15) * factor(0.06, 3)).clamp(1e-4, 1) ** factor(0.2)
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + (image - mean) * factor(0.15)
    luma = (image * torch.tensor(_LUMA, device=device)[:, None, None]).sum(1, keepdim=True)
    return (luma + (image - luma) * factor(0.25)).clamp(0, 1)


def gaussian(image_NCHW: Tensor, sigma_N: Tensor) -> Tensor:
    """Blur each picture by its own Gaussian, `sigma_N` in pixels."""
    count, channels, height, width = image_NCHW.shape
    radius = int(np.ceil(2.5 * float(sigma_N.max())))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma_N[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(image_NCHW.device)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    planes = image_NCHW.reshape(1, count * channels, height, width)
    groups = count * channels
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, :, None, :], groups=groups)
    planes = F.conv2d(planes, kernel[:, :, :, None], groups=groups)
    return planes.reshape(count, channels, height, width)


def compress(image_N3HW: Tensor, step_N: Tensor) -> Tensor:
    """Round the coefficients of 8×8 blocks, as JPEG does, coarser for finer detail.

    `step_N` is the step of the mean in 0..1; that of the finest detail is eight times as large.
    Colour differences take twice the step. Sides are multiples of 8.
    """
    device = image_N3HW.device
    basis, growth = _cosines().to(device), _growth().to(device)
    luma = (image_N3HW * torch.tensor(_LUMA, device=device)[:, None, None]).sum(1, keepdim=True)
    planes = torch.cat([luma, image_N3HW - luma], 1)
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = blocks.transpose(3, 4)
    frequencies = basis @ blocks @ basis.T
    step = step_N.to(device).reshape(-1, 1, 1, 1, 1, 1) * growth
    step = step * torch.tensor((1.0, 2.0, 2.0, 2.0), device=device).reshape(1, 4, 1, 1, 1, 1)
    blocks = basis.T @ (torch.round(frequencies / step) * step) @ basis
    planes = blocks.transpose(3, 4).reshape(count, channels, height, width)
    return planes[:, :1] + planes[:, 1:]


@lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """The orthonormal DCT-II of eight samples."""
    k, n = torch.meshgrid(torch.arange(_BLOCK), torch.arange(_BLOCK), indexing="ij")
    basis: Tensor = torch.cos(torch.pi * (n + 0.5) * k / _BLOCK) * (2 / _BLOCK) ** 0.5
    basis[0] *= 0.5**0.5
    return basis


@lru_cache(maxsize=1)
def _growth() -> Tensor:
    k = torch.arange(_BLOCK, dtype=torch.float32)
    return 1 + (k[:, None] + k) / 2
