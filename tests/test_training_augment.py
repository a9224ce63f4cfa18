"""What a step sees: repeatable, aligned with its target, every picture in its turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pictures import pictured

from vidmatte.training.augment import (
    Augmenter,
    Batch,
    Pictures,
    compress,
    gaussian,
    recolour,
    soften,
    whole,
)
from vidmatte.training.pack import Pack, empty_area
from vidmatte.training.recipe import LIVE, PAPER, Recipe

PLAIN = replace(
    LIVE, batch=4, sizes=(((64, 64),),), replaced=0.0, empty=0.0,
    colour=0.0, blurred=0.0, compressed=0.0, noisy=0.0,
)  # fmt: skip


def pack_of(count: int, *, show_mask: bool = False, teacher: int | None = None) -> Pictures:
    """A pack in memory; with `show_mask` every picture is its own mask, seen as a picture."""
    pairs = [pictured(seed) for seed in range(count)]
    masks = np.stack([mask for _, mask in pairs])
    images = np.stack([image for image, _ in pairs])
    if show_mask:
        images = np.repeat(masks[..., None], 3, 3)
    taught = None if teacher is None else np.full_like(masks, teacher)
    empty = np.array([empty_area(mask) for mask in masks], np.float32)
    return Pictures.load(Pack(images, masks, taught, empty, {}), torch.device("cpu"))


def augmenter(recipe: Recipe, pictures: Pictures, **place: int) -> Augmenter:
    return Augmenter(pictures, np.arange(len(pictures.images)), recipe, **place)


def same(left: Batch, right: Batch) -> bool:
    return torch.equal(left.image, right.image) and torch.equal(left.target, right.target)


def test_a_step_is_the_same_whenever_it_is_made() -> None:
    recipe = replace(LIVE, batch=6, sizes=(((64, 64),),))
    pictures = pack_of(9)
    first = augmenter(recipe, pictures)
    wanted = [first.batch(step) for step in range(3)]
    again = augmenter(recipe, pictures)
    assert same(again.batch(2), wanted[2])
    assert same(again.batch(0), wanted[0])
    assert not same(wanted[0], wanted[1])
    assert not same(augmenter(replace(recipe, seed=1), pictures).batch(0), wanted[0])


def test_pictures_and_targets_have_the_sizes_of_the_recipe() -> None:
    recipe = replace(PLAIN, steps=8, sizes=(((64, 64),), ((96, 64), (64, 128))))
    shapes = [tuple(augmenter(recipe, pack_of(4)).batch(s).image.shape) for s in (0, 3, 4, 5)]
    assert shapes == [(4, 3, 64, 64), (4, 3, 64, 64), (4, 3, 64, 96), (4, 3, 128, 64)]


@pytest.mark.parametrize("recipe", [PLAIN, replace(PLAIN, crop=(0.9, 0.9), aspect=1.0)])
def test_crop_and_flip_hit_picture_and_target_alike(recipe: Recipe) -> None:
    batch = augmenter(recipe, pack_of(8, show_mask=True)).batch(0)
    assert torch.equal(batch.image, batch.target.expand(-1, 3, -1, -1))
    assert 0.01 < batch.target.mean() < 0.9


def test_the_papers_crop_keeps_pixels_as_they_are() -> None:
    pairs = [pictured(seed, 320) for seed in range(2)]
    empty = np.zeros((2, 4), np.float32)
    arrays = np.stack([i for i, _ in pairs]), np.stack([m for _, m in pairs])
    pictures = Pictures.load(Pack(*arrays, None, empty, {}), torch.device("cpu"))
    batch = augmenter(replace(PAPER, batch=2), pictures).batch(0)
    assert batch.image.shape == (2, 3, 288, 288)
    values = torch.unique(batch.target)
    assert set(values.tolist()) <= {0.0, 1.0}  # interpolation would make others


def test_every_picture_comes_once_before_any_comes_again() -> None:
    pictures = pack_of(6)
    made = augmenter(replace(PLAIN, batch=4), pictures)
    seen = [int(i) for step in range(3) for i in made._indices(step)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_processes_share_the_pictures_of_an_epoch() -> None:
    pictures = pack_of(8)
    parts = [augmenter(PLAIN, pictures, rank=rank, world=2)._indices(0) for rank in range(2)]
    assert sorted(int(i) for part in parts for i in part) == list(range(8))


def test_only_the_named_pictures_are_used() -> None:
    made = Augmenter(pack_of(6), np.array([1, 4]), PLAIN)
    assert {int(i) for step in range(4) for i in made._indices(step)} == {1, 4}


def test_an_empty_picture_has_an_empty_target() -> None:
    recipe = replace(PLAIN, empty=1.0)
    batch = augmenter(recipe, pack_of(8)).batch(0)
    assert not batch.target.any()
    assert batch.image.max() < 0.4  # the noise behind the bright subjects alone


def test_a_new_background_leaves_the_subject_and_its_target() -> None:
    pictures = pack_of(8)
    kept = augmenter(PLAIN, pictures).batch(0)
    batch = augmenter(replace(PLAIN, replaced=1.0), pictures).batch(0)
    inside = (batch.target > 0.99).expand(-1, 3, -1, -1)
    assert inside.any()
    assert batch.image[inside].min() > 0.3
    assert not torch.equal(batch.image, kept.image)


def test_the_teacher_is_mixed_into_the_target_by_its_weight() -> None:
    recipe = replace(PLAIN, teacher_weight=0.25)
    taught = augmenter(recipe, pack_of(4, teacher=255)).batch(0)
    alone = augmenter(recipe, pack_of(4)).batch(0)
    torch.testing.assert_close(taught.target, 0.75 * alone.target + 0.25)


def test_a_whole_picture_is_not_augmented() -> None:
    image, mask = pictured(0)
    got = whole(pack_of(1), 0, (96, 96))
    np.testing.assert_allclose(got.image[0].permute(1, 2, 0) * 255, image, atol=1e-3)
    np.testing.assert_allclose(got.target[0, 0] * 255, mask, atol=1e-3)


def test_each_degradation_changes_pictures_and_never_targets(tmp_path: Path) -> None:
    pictures = pack_of(6)
    plain = augmenter(PLAIN, pictures).batch(0)
    for kind in ("colour", "blurred", "compressed", "noisy"):
        batch = augmenter(replace(PLAIN, **{kind: 1.0}), pictures).batch(0)
        assert torch.equal(batch.target, plain.target), kind
        change = (batch.image - plain.image).abs().mean((1, 2, 3))
        assert (change > 1e-3).all(), kind
        assert batch.image.min() >= 0, kind
        assert batch.image.max() <= 1, kind


@settings(max_examples=20, deadline=None)
@given(level=st.floats(0, 1), sigma=st.floats(0.3, 3), step=st.floats(0.01, 0.1))
def test_a_flat_picture_stays_flat(level: float, sigma: float, step: float) -> None:
    flat = torch.full((2, 3, 16, 24), level)
    torch.testing.assert_close(gaussian(flat, torch.tensor([sigma, 0.5])), flat)
    rounded = compress(flat, torch.tensor([step, step]))
    assert (rounded - rounded.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    assert (rounded - level).abs().max() <= step / 8 + 1e-5  # half a step of the mean, of 8 samples


def test_coarser_steps_lose_more() -> None:
    image = whole(pack_of(1), 0, (96, 96)).image
    steps = (torch.tensor([step]) for step in (1e-5, 0.02, 0.2))
    losses = [float((compress(image, step) - image).abs().mean()) for step in steps]
    assert losses[0] < 1e-4 < losses[1] < losses[2]


def test_a_blur_is_as_wide_as_asked() -> None:
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1
    sigmas = torch.tensor([1.0, 2.5])
    spread = gaussian(point, sigmas).sum((1, 2))
    x = torch.arange(41) - 20.0
    variance = (spread * x**2).sum(1) / spread.sum(1)
    torch.testing.assert_close(variance.sqrt(), sigmas, rtol=0.08, atol=0)


def test_a_pasted_edge_is_soft_and_where_it_was() -> None:
    mask = torch.zeros(1, 1, 8, 32)
    mask[..., 16:] = 1
    soft = soften(mask)
    assert ((soft > 0.01) & (soft < 0.99)).sum() > 8
    torch.testing.assert_close(soft.mean(), mask.mean())


def test_recolouring_differs_by_picture() -> None:
    image = torch.full((3, 3, 4, 4), 0.5)
    changed = recolour(image, np.random.default_rng(0))
    assert len({round(float(v), 4) for v in changed.mean((1, 2, 3))}) == 3
