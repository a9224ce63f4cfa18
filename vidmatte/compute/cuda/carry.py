"""Carry maps from one picture to another, many pairs at once: the twin of compute/cpu/carry.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from vidmatte.compute.cpu.carry import AROUND_PX, CUT, LIGHT_STEP_PX, STILL, STILL_TRUST, STRICT
from vidmatte.compute.cuda.filters import box_mean, scale_weights
from vidmatte.compute.cuda.flow import Flow

if TYPE_CHECKING:
    from torch import Tensor

# OpenCV's parts of red, green and blue in 8-bit grey, of 32768 (cvtColor, RGB2GRAY).
_GREY_PARTS = (9798.0, 19235.0, 3735.0)
_GREY_WHOLE = 32768.0


class Shrinker:
    """Makes (..., H, W) smaller by area means, as OpenCV's INTER_AREA."""

    def __init__(
        self, shape: tuple[int, int], small: tuple[int, int], device: torch.device
    ) -> None:
        self._is_same = shape == small
        self._rounds_up = shape == (2 * small[0], 2 * small[1])
        self._rows = scale_weights(shape[0], small[0]).to(device)
        self._columns = scale_weights(shape[1], small[1]).to(device).T.contiguous()

    def __call__(self, values: Tensor) -> Tensor:
        """Return the float32 means of float32 `values`."""
        return values if self._is_same else self._rows @ values @ self._columns

    def whole(self, values: Tensor) -> Tensor:
        """Return them in whole levels; one half is rounded up at half the size, else to even."""
        small = self(values)
        return torch.floor(small + 0.5) if self._rounds_up else torch.round(small)


class Grey:
    """Makes the small grey pictures between which maps are carried."""

    def __init__(
        self, shape: tuple[int, int], small: tuple[int, int], device: torch.device
    ) -> None:
        self._shrink = Shrinker(shape, small, device)
        self._parts = torch.tensor(_GREY_PARTS).to(device)[:, None, None]

    def __call__(self, image_NHW3: Tensor) -> Tensor:
        """Return (N, h, w) float32, whole levels 0..255, of uint8 RGB."""
        small = self._shrink.whole(image_NHW3.permute(0, 3, 1, 2).float().contiguous())
        parts = (small * self._parts).sum(1)
        return torch.floor((parts + _GREY_WHOLE / 2) / _GREY_WHOLE)


class Links(NamedTuple):
    """Ways from N pictures to others, all of size (h, w).

    `places` (N, h, w, 2) says where each pixel was, in the units of `grid_sample`; `trust`
    (N, h, w), 0..1, how well the pictures agree there; where `still` (N, h, w), bool, nothing
    changed. `known` (N,), bool, is False across a cut, where nothing is trusted and nothing still.
    """

    places: Tensor
    trust: Tensor
    still: Tensor
    known: Tensor


class Linker:
    """Finds the links between grey pictures of one `shape`."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        height, width = shape
        self._flow = Flow(shape, device)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self._pixels = torch.stack((x, y)).float().to(device)
        self._size = torch.tensor([width, height]).float().to(device)[:, None, None]

    def __call__(self, now_Nhw: Tensor, then_Nhw: Tensor, valid_N: Tensor) -> Links:
        """Return the links by which maps of `then` come to `now`; nothing is known if not `valid`.

        The pictures are float32 in whole levels.
        """
        at = self._pixels + self._flow(now_Nhw, then_Nhw)
        inside = ((at > -1) & (at < self._size)).all(1)
        # In float32 a place is 1e-5 px off, which turns a level in 50,000 when rounded.
        exact = (at.double() * 2 / (self._size - 1) - 1).permute(0, 2, 3, 1)
        moved = torch.round(sample(then_Nhw.double(), exact)).float()
        places = exact.float().contiguous()
        error, unmoved = _difference(now_Nhw, torch.stack((moved, then_Nhw)))
        known = (error.mean((1, 2)) <= CUT) & valid_N
        seen = known[:, None, None]
        still = (unmoved < STILL) & seen
        trust = falling(error, STRICT.full, STRICT.none) * (inside & seen)
        return Links(places, torch.where(still, STILL_TRUST, trust), still, known)


def carried(values: Tensor, links: Links) -> Tensor:
    """Bring maps (N, h, w) along their links; a still pixel keeps its own."""
    return torch.where(links.still, values, sample(values, links.places))


def sample(values: Tensor, places: Tensor) -> Tensor:
    """Read maps (N, h, w) at `places`, linearly between samples; edges are repeated."""
    return F.grid_sample(
        values[:, None], places, mode="bilinear", padding_mode="border", align_corners=True
    )[:, 0]


def falling(values: Tensor, full: float, none: float) -> Tensor:
    """1 up to `full`, 0 from `none`, linear between."""
    return ((none - values) / (none - full)).clamp(0, 1)


def _difference(left: Tensor, right: Tensor) -> Tensor:
    """Mean absolute difference around each pixel, after removing a change of light."""
    change = left - right
    some = change[..., ::LIGHT_STEP_PX, ::LIGHT_STEP_PX].flatten(-2)
    ordered, count = some.sort(-1).values, some.shape[-1]
    light = (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
    apart = (change - light[..., None, None]).abs()
    return box_mean(apart, AROUND_PX // 2)
