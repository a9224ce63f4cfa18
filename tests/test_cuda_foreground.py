"""The device form of the foreground's colour: the CPU form's planes, and recordable."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidmatte.compute.cpu import foreground as cpu
from vidmatte.compute.cuda import foreground as device
from vidmatte.compute.cuda.foreground import estimate_planes
from vidmatte.sources.synthetic import SyntheticClip

# Of 255. Where alpha is between the ends both forms round once, and sum in another order.
ROUNDING = 1.0
# Where alpha is 0 the CPU form rounds before it enlarges and after; the device form once.
HIDDEN_MEAN = 0.1
FLOAT = 2e-7  # the last bits of sums up to 1


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def scene(
    width: int = 320, height: int = 180, softness: float = 0.0, bits: int = 8, frame: int = 40
) -> tuple[list[np.ndarray], np.ndarray]:
    """R, G and B of a person over photographs, and the true alpha, blurred."""
    image, alpha, _ = SyntheticClip(width=width, height=height, noise=1.0).render(frame)
    if softness:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), softness))
    planes = [image[..., k].copy() for k in range(3)]
    if bits == 8:
        return planes, alpha
    fine = np.random.default_rng(2).integers(0, 1 << (bits - 8), (3, height, width), np.uint16)
    deep = [(p.astype(np.uint16) << (bits - 8)) + f for p, f in zip(planes, fine, strict=True)]
    grain = np.random.default_rng(3).integers(-128, 129, alpha.shape)
    mixed = (alpha > 0) & (alpha < 255)
    return deep, (alpha * np.int64(257) + grain * mixed).astype(np.uint16)


def estimated(planes: list[np.ndarray], alpha: np.ndarray) -> list[np.ndarray]:
    found = estimate_planes([torch.from_numpy(p) for p in planes], torch.from_numpy(alpha))
    return [plane.numpy() for plane in found]


def assert_equal_to_cpu(planes: list[np.ndarray], alpha: np.ndarray, bits: int) -> None:
    full, nothing = alpha == np.iinfo(alpha.dtype).max, alpha == 0
    for plane, expected, found in zip(
        planes, cpu.estimate_planes(planes, alpha), estimated(planes, alpha), strict=True
    ):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[full], plane[full])
        apart = np.abs(found.astype(float) - expected) / (1 << (bits - 8))
        assert apart.max() <= ROUNDING
        if nothing.any():
            assert apart[nothing].mean() <= HIDDEN_MEAN


@pytest.mark.parametrize("softness", [0.0, 1.2, 4.0])
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_colours_are_those_of_the_cpu_form(bits: int, softness: float) -> None:
    planes, alpha = scene(softness=softness, bits=bits)
    mixed = (alpha > 0) & (alpha < alpha.max())
    assert mixed.sum() > 500
    assert_equal_to_cpu(planes, alpha, bits)


@pytest.mark.parametrize("size", [(161, 97), (97, 161), (9, 8), (13, 200), (640, 362)])
def test_colours_are_those_of_the_cpu_form_at_any_size(size: tuple[int, int]) -> None:
    planes, alpha = scene(*size, softness=1.2)
    assert_equal_to_cpu(planes, alpha, 8)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 9), (97, 161), (5, 400)])
@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_flat_alphas_at_any_size_are_those_of_the_cpu_form(
    shape: tuple[int, int], value: int
) -> None:
    plane = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert_equal_to_cpu([plane], np.full(shape, value, np.uint8), 8)
    (found,) = estimated([plane], np.full(shape, value, np.uint8))
    assert value > 0 or np.ptp(found) == 0


def test_one_sample_of_foreground_colours_the_whole_plane() -> None:
    """Weights of a single level among thousands of zeros, filled from the coarsest cells."""
    plane, alpha = np.full((120, 200), 30, np.uint8), np.zeros((120, 200), np.uint8)
    plane[60:64, 100:104], alpha[60:64, 100:104] = 200, 255
    assert_equal_to_cpu([plane], alpha, 8)
    (found,) = estimated([plane], alpha)
    assert (np.abs(found.astype(int) - 200) <= ROUNDING).all()


def test_sums_weigh_samples_as_the_table_of_the_cpu_form() -> None:
    for levels in (torch.arange(256.0), 255 - torch.arange(256.0)):
        weight = (levels * (1 / 255)).pow(cpu.CERTAINTY).mul(255).ceil()
        np.testing.assert_array_equal(weight.numpy(), cpu._certainty()[levels.numpy().astype(int)])


@pytest.mark.parametrize("shape", [(3, 3), (3, 8), (9, 4), (34, 61)])
def test_pyramids_are_opencvs(shape: tuple[int, int]) -> None:
    fine = np.random.default_rng(4).random(shape, np.float32)
    coarse = np.asarray(cv2.pyrDown(fine))
    down = device._pyramid_down(torch.from_numpy(fine)[None, None])[0, 0]
    up = device._pyramid_up(torch.from_numpy(coarse)[None, None], *shape)[0, 0]
    np.testing.assert_allclose(down.numpy(), coarse, atol=FLOAT)
    expected = cv2.pyrUp(coarse, dstsize=shape[::-1])
    np.testing.assert_allclose(up.numpy(), expected, atol=FLOAT)


def test_deep_planes_are_never_brighter_than_the_picture() -> None:
    planes, alpha = scene(softness=4.0, bits=10)
    for plane, found in zip(planes, estimated(planes, alpha), strict=True):
        assert found.max() <= plane.max()


@pytest.mark.parametrize("bits", [8, 10])
def test_a_batch_gives_each_picture_its_own_colours(bits: int) -> None:
    """One of them without any foreground."""
    pictures = [scene(160, 90, 1.2, bits, frame) for frame in (10, 40)]
    pictures[1][1][:] = 0
    planes = [np.stack(same) for same in zip(*(p for p, _ in pictures), strict=True)]
    together = estimated(planes, np.stack([alpha for _, alpha in pictures]))
    for k, (own, alpha) in enumerate(pictures):
        for found, alone in zip(together, estimated(own, alpha), strict=True):
            assert np.abs(found[k].astype(int) - alone).max() <= ROUNDING


def test_inputs_are_untouched() -> None:
    planes, alpha = scene(160, 90)
    kept = [p.copy() for p in planes], alpha.copy()
    estimated(planes, alpha)
    np.testing.assert_array_equal(planes, kept[0])
    np.testing.assert_array_equal(alpha, kept[1])


class HostData(TorchDispatchMode):
    """Fails on operations that a CUDA graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        assert name not in {"lift_fresh", "scalar_tensor", "_local_scalar_dense", "nonzero"}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bits", [8, 10])
def test_a_cuda_graph_can_record_it(bits: int) -> None:
    """Tensors without values: nothing may read one, nor bring one from the host."""
    planes, alpha = scene(bits=bits)
    *given, opacity = (torch.from_numpy(x).to("meta") for x in [*planes, alpha])
    with HostData():
        found = estimate_planes(given, opacity)
    assert [plane.shape for plane in found] == [alpha.shape] * 3
