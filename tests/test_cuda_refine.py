"""The device form of refinement: the CPU form's mattes, whatever the picture, and recordable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidmatte.compute.cpu import refine as cpu
from vidmatte.compute.cuda.refine import Refiner
from vidmatte.frames import Layout, layout_of
from vidmatte.sources.synthetic import SyntheticClip

LO, HI = 0.2, 0.8
# Of 255. Both forms round alpha once, and their filters add up in another order (1e-6 of a slope):
# where the true value lies on a half, one rounds up and the other down.
ROUNDING = 1.0
# The CPU form rounds the interpolated 16-bit map, what the curve cuts off it and the result.
UPSAMPLE_ROUNDING_16 = 4
# A curve that ends at 1 jumps there, so that the last bit of an interpolated 1 decides.
LAST_BIT = 8.0
# Kernels that one picture of 4:2:0 may take, refined and upsampled: 307 when written. They are what
# refining costs on a GPU, more than their arithmetic.
KERNELS = 310
VIEWS = {
    "alias", "as_strided", "empty", "expand", "new_empty", "permute", "reshape", "select", "slice",
    "squeeze", "t", "transpose", "unsqueeze", "view", "_reshape_alias", "_unsafe_view",
}  # fmt: skip
SIZES = [(161, 97), (97, 161), (211, 340), (640, 362)]
LAYOUTS = ["yuv420p", "yuv422p", "yuv444p", "yuv410p", "gbrp", "gray", "yuv420p10le", "gbrp12le"]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def described(pix_fmt: str) -> Layout:
    layout = layout_of(pix_fmt)
    assert layout is not None
    return layout


def scene(
    pix_fmt: str, width: int = 320, height: int = 180, frame: int = 9
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A network's soft map (96, 160) of a walking person, and the planes of the picture."""
    layout = described(pix_fmt)
    image, alpha, _ = SyntheticClip(width=width, height=height, noise=1.0).render(frame)
    soft = cv2.resize(alpha, (160, 96), interpolation=cv2.INTER_AREA) / np.float32(255)
    soft = cv2.GaussianBlur(soft, (0, 0), 1.0)
    source = image[..., [1, 2, 0]]
    if layout.model != "rgb":
        source = cv2.cvtColor(image, cv2.COLOR_RGB2YUV)
    half = -(-width >> layout.shift_x), -(-height >> layout.shift_y)
    planes = [source[..., 0].copy()]
    if layout.model != "gray":
        area = cv2.INTER_AREA
        planes += [cv2.resize(source[..., k].copy(), half, interpolation=area) for k in (1, 2)]
    if layout.bits > 8:
        noise = np.random.default_rng(1)
        deep = layout.bits - 8
        planes = [
            (p.astype(np.uint16) << deep) + noise.integers(0, 1 << deep, p.shape, np.uint16)
            for p in planes
        ]
    return soft, planes


def refiner(pix_fmt: str, width: int, height: int, device: str = "cpu") -> Refiner:
    where = torch.device(device)
    return Refiner(described(pix_fmt), width, height, lo=LO, hi=HI, device=where)


def tensors(planes: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(plane) for plane in planes]


def levels_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far apart two mattes are, in levels of 255."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    scale = 1 if a.dtype == np.uint8 else 257
    return np.abs(a.astype(float) - b) / scale


def assert_equal_to_cpu(pix_fmt: str, width: int, height: int) -> None:
    soft, planes = scene(pix_fmt, width, height)
    bits = described(pix_fmt).bits
    expected = cpu.refine(soft, planes, bits=bits, lo=LO, hi=HI)
    found = refiner(pix_fmt, width, height).refine(torch.from_numpy(soft), tensors(planes))
    unsure = (expected > 0) & (expected < expected.max())
    assert unsure.sum() > 100
    assert levels_apart(expected, found.numpy()).max() <= ROUNDING


@pytest.mark.parametrize("pix_fmt", LAYOUTS)
def test_mattes_are_those_of_the_cpu_form(pix_fmt: str) -> None:
    assert_equal_to_cpu(pix_fmt, 320, 180)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gbrp"])
def test_mattes_are_those_of_the_cpu_form_at_any_size(pix_fmt: str, size: tuple[int, int]) -> None:
    """Grids that are no whole number of coarse cells, cells that reach beyond the edge."""
    assert_equal_to_cpu(pix_fmt, *size)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gbrp"])
def test_the_crop_of_the_cpu_form_does_not_show(
    pix_fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts and ends where coarse cells do; before it did, mattes differed by up to 38."""
    soft, planes = scene(pix_fmt, 333, 500)
    cropped = cpu.refine(soft, planes, lo=LO, hi=HI)
    monkeypatch.setattr(cpu, "_SLACK_CELLS", 1000)
    whole = cpu.refine(soft, planes, lo=LO, hi=HI)
    assert levels_apart(cropped, whole).max() <= ROUNDING


def test_windows_of_planes_that_are_alike_are_inverted_exactly() -> None:
    """R, G and B of a grey thing: Cramer's rule in float32 was wrong by a factor of 75."""
    rng = np.random.default_rng(0)
    grey = rng.random((40, 60), np.float32)
    guide = [grey + rng.normal(0, 2e-3, grey.shape).astype(np.float32) for _ in range(3)]
    means = [cpu._box(plane, 2) for plane in guide]
    found = np.array(cpu._inverse_covariance(guide, means, 2))
    expected = np.moveaxis(np.linalg.inv(_covariances(guide)), (2, 3), (0, 1))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def _covariances(guide: list[np.ndarray]) -> np.ndarray:
    """Regularised covariances (h, w, 3, 3) of every window, in float64."""

    def box(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.blur(values, (5, 5), borderType=cv2.BORDER_REFLECT))

    exact = [plane.astype(np.float64) for plane in guide]
    rows = [[box(a * b) - box(a) * box(b) for b in exact] for a in exact]
    return np.moveaxis(np.array(rows), (0, 1), (2, 3)) + np.eye(3) * cpu.EPSILON


@pytest.mark.parametrize("size", [(64, 36), (97, 161), (1, 1), (3, 500), (5, 2)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv410p", "gbrp", "gray"])
def test_certain_maps_are_exact_for_every_layout_and_size(
    pix_fmt: str, size: tuple[int, int]
) -> None:
    layout, (width, height) = described(pix_fmt), size
    rng = np.random.default_rng(1)
    chroma = -(-height >> layout.shift_y), -(-width >> layout.shift_x)
    shapes = [(height, width)] + [chroma] * (0 if layout.model == "gray" else 2)
    planes = tensors([rng.integers(0, 256, shape, np.uint8) for shape in shapes])
    build = refiner(pix_fmt, width, height)
    for value, expected in ((LO, 0), (HI, 255), (1.0, 255), (0.5, 128)):
        alpha = build.refine(torch.full((32, 64), value), planes)
        assert alpha.shape == (height, width)
        assert (alpha == expected).all(), value


@pytest.mark.parametrize(("lo", "hi", "most"), [(0.0, 0.7, ROUNDING), (0.0, 1.0, LAST_BIT)])
def test_a_curve_may_cut_nothing_off(lo: float, hi: float, most: float) -> None:
    soft, planes = scene("yuv420p")
    soft[:8, :8], soft[-8:, -8:] = 0, 1
    expected = cpu.refine(soft, planes, lo=lo, hi=hi)
    device = torch.device("cpu")
    build = Refiner(described("yuv420p"), 320, 180, lo=lo, hi=hi, device=device)
    found = build.refine(torch.from_numpy(soft), tensors(planes)).numpy()
    assert levels_apart(expected, found).max() <= most
    assert levels_apart(expected, found).mean() < 0.1


def test_the_sources_alpha_plane_is_not_looked_at() -> None:
    soft, planes = scene("yuv420p")
    plain = refiner("yuv420p", 320, 180).refine(torch.from_numpy(soft), tensors(planes))
    planes.append(np.full((180, 320), 77, np.uint8))
    given = tensors(planes)
    kept = [plane.clone() for plane in given]
    with_alpha = refiner("yuva420p", 320, 180).refine(torch.from_numpy(soft), given)
    assert torch.equal(plain, with_alpha)
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gray"])
def test_a_batch_gives_each_picture_its_own_matte(pix_fmt: str) -> None:
    build = refiner(pix_fmt, 160, 90)
    pictures = [scene(pix_fmt, 160, 90, frame) for frame in (3, 40)]
    soft = torch.from_numpy(np.stack([one[0] for one in pictures]))
    planes = tensors([np.stack(same) for same in zip(*(one[1] for one in pictures), strict=True)])
    together = build.refine(soft, planes)
    assert together.shape == (2, 90, 160)
    for k, (single, own) in enumerate(pictures):
        alone = build.refine(torch.from_numpy(single), tensors(own)).numpy()
        assert levels_apart(alone, together[k].numpy()).max() <= ROUNDING
        expected = build.upsample(torch.from_numpy(single))
        assert torch.equal(build.upsample(soft)[k], expected)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_upsampling_is_that_of_the_cpu_form(pix_fmt: str) -> None:
    bits = described(pix_fmt).bits
    probability = np.random.default_rng(3).random((24, 40), np.float32)
    probability[:6], probability[-6:] = 0, 1
    expected = cpu.upsample(probability, 333, 187, bits=bits, lo=LO, hi=HI)
    found = refiner(pix_fmt, 333, 187).upsample(torch.from_numpy(probability)).numpy()
    assert found.dtype == expected.dtype
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= (ROUNDING if bits == 8 else UPSAMPLE_ROUNDING_16)
    assert {0, int(expected.max())} <= set(found.flatten().tolist())


class Kernels(TorchDispatchMode):
    """Counts the operations that are a kernel each."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in VIEWS:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gbrp12le", "gray"])
def test_a_cuda_graph_can_record_it(pix_fmt: str) -> None:
    """Tensors without values: nothing may read one, nor bring one from the host."""
    soft, planes = scene(pix_fmt)
    build = refiner(pix_fmt, 320, 180, "meta")
    probability, *given = (x.to("meta") for x in tensors([soft, *planes]))
    with Kernels() as kernels:
        alpha = build.refine(probability, given)
        upsampled = build.upsample(probability)
    assert alpha.shape == upsampled.shape == (180, 320)
    assert not {"lift_fresh", "scalar_tensor", "_local_scalar_dense"} & set(kernels.count)
    assert kernels.count.total() <= KERNELS, kernels.count.most_common()
