"""Steady maps on the device, run here on the CPU: the same as the CPU form's, without a wait."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import SHARED
from replayed import Replayed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vidmatte.backends import open_backend
from vidmatte.compute.cpu import carry as cpu_carry
from vidmatte.compute.cpu.carry import Moment, small_grey
from vidmatte.compute.cpu.temporal import TemporalFilter as CpuFilter
from vidmatte.compute.cuda import carry as device_carry
from vidmatte.compute.cuda import flow as device_flow
from vidmatte.compute.cuda import temporal as device_temporal
from vidmatte.compute.cuda.carry import Grey, Linker, carried
from vidmatte.compute.cuda.flow import Flow
from vidmatte.compute.cuda.temporal import TemporalFilter, _Stepper
from vidmatte.evaluation.video_metrics import dtssd
from vidmatte.models.registry import resolve_model
from vidmatte.sources.synthetic import Scenario, SyntheticClip

CPU = torch.device("cpu")
SMALL = 96, 160
FRAMES = 12
# The forms differ by the order of float32 sums, and so once in some 100,000 pixels by one level of
# a moved grey picture, which changes the trust around it; the mean over time carries that on.
SAME = 1 / 255
# With flows of its own the parallel search has come less far along rows of patches where much moves
# at once. Measured on whole clips: a mean of .06 and a percentile of 1.2 of 255 at worst.
ALIKE_MEAN, ALIKE_P99 = 1 / 255, 3 / 255
ROUNDING = 1e-5  # of sums of batches of another size
FLOW_PX = 0.05  # mean distance of flows that are half a pixel long
WHOLE_FLOW_PX = 0.03  # the same of any flow after as many rounds as OpenCV's walk has steps
STEADY_DTSSD = 1.03  # flicker in terms of the CPU form's; measured: at most 1.004
FLOW_LAUNCHES = 500  # about 2 us each in a CUDA graph: 1 ms for a batch of any size


class OpenCvFlow:
    """The CPU form's flow in the place of `Flow`."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        pass

    def __call__(self, now: Tensor, then: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([opencv_flow(*p) for p in zip(now, then, strict=True)]))


def opencv_flow(now: Tensor | np.ndarray, then: Tensor | np.ndarray) -> np.ndarray:
    """(2, h, w)."""
    pair = np.asarray(now).astype(np.uint8), np.asarray(then).astype(np.uint8)
    rows, columns = np.indices(pair[0].shape, np.float32)
    at_x, at_y = cpu_carry._places(*pair)
    return np.stack((at_x - columns, at_y - rows))


@cache
def clip(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Images (T, 192, 320, 3) and true maps (T, 192, 320) from where the clip moves most."""
    synthetic = SyntheticClip(width=320, height=192, frame_count=30, scenario=scenario)
    first = 18 if scenario == "empty" else 5
    shown = [synthetic.render(index) for index in range(first, first + FRAMES)]
    alpha = np.stack([frame.alpha for frame in shown]).astype(np.float32) / 255
    return np.stack([frame.image for frame in shown]), alpha


def flickering(truth: np.ndarray, amount: float = 0.1) -> np.ndarray:
    """Add blotches that change with every frame, as an unsure network's."""
    rng = np.random.default_rng(5)
    noise = [cv2.GaussianBlur(rng.normal(0, 1, m.shape), (0, 0), 8) for m in truth]
    return np.clip(truth + np.stack(noise) * amount / np.std(noise), 0, 1).astype(np.float32)


def halves(maps: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(m, SMALL[::-1], interpolation=cv2.INTER_AREA) for m in maps])


def on_cpu(maps: np.ndarray, images: np.ndarray, lookahead: int) -> np.ndarray:
    steadied, out = CpuFilter(lookahead=lookahead), []
    for probability, image in zip(maps, images, strict=True):
        out += steadied.push(probability, image)
    return np.stack(out + steadied.flush())


def on_device(
    maps: np.ndarray,
    images: np.ndarray,
    lookahead: int,
    *,
    batch: int = 4,
    device: torch.device = CPU,
) -> np.ndarray:
    steadied, out = TemporalFilter(lookahead=lookahead, device=device), []
    for start in range(0, len(maps), batch):
        part = slice(start, start + batch)
        probabilities = torch.from_numpy(maps[part]).to(device)
        out += steadied.push_batch(probabilities, torch.from_numpy(images[part]).to(device))
    return torch.stack(out + steadied.flush()).cpu().numpy()


def lit(images: np.ndarray) -> np.ndarray:
    """Lights that go up by 20 levels in the middle."""
    brighter = images.astype(int)
    brighter[len(images) // 2 :] += 20
    return np.clip(brighter, 0, 255).astype(np.uint8)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device form the CPU form's flow."""
    monkeypatch.setattr(device_carry, "Flow", OpenCvFlow)


# Parts


@pytest.mark.parametrize("shape", [(192, 320), (384, 640), (96, 160), (180, 320), (288, 480)])
def test_grey_is_opencvs(shape: tuple[int, int]) -> None:
    small = shape if shape == SMALL else (shape[0] * 160 // shape[1], 160)
    images = np.random.default_rng(3).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    grey = Grey(shape, small, CPU)(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(grey, np.stack([small_grey(i, small) for i in images]))


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("scenario", ["walk", "fast", "cut", "static"])
def test_links_are_those_of_the_cpu_form(scenario: Scenario) -> None:
    images, truth = clip(scenario)
    greys = np.stack([small_grey(image, SMALL) for image in lit(images)])
    values = torch.from_numpy(halves(truth))[:-1]
    pictures = torch.from_numpy(greys).float()
    links = Linker(SMALL, CPU)(pictures[1:], pictures[:-1], torch.ones(FRAMES - 1) > 0)
    brought = carried(values, links)
    for k, (then, now) in enumerate(pairwise(greys)):
        expected = cpu_carry.carry(Moment(values[k].numpy(), then), now)
        assert (expected is not None) == bool(links.known[k])
        if expected is None:
            assert not links.trust[k].any()
            assert not links.still[k].any()
            continue
        np.testing.assert_array_equal(links.still[k], expected.still)
        np.testing.assert_allclose(links.trust[k], expected.trust, atol=SAME * 3)
        np.testing.assert_allclose(brought[k], expected.value, atol=1e-4)


def test_nothing_is_known_of_pictures_that_never_were() -> None:
    picture = torch.full((1, *SMALL), 80.0)
    links = Linker(SMALL, CPU)(picture, picture, torch.zeros(1) > 0)
    assert not any(part.any() for part in (links.known, links.trust, links.still))


# The flow


@cache
def grey_pairs(scenario: Scenario) -> tuple[Tensor, Tensor]:
    greys = np.stack([small_grey(image, SMALL) for image in clip(scenario)[0]])
    return torch.from_numpy(greys[1:]).float(), torch.from_numpy(greys[:-1]).float()


def flow_error_px(scenario: Scenario) -> tuple[float, float]:
    """The mean distance of our flow to OpenCV's, and that of none."""
    now, then = grey_pairs(scenario)
    expected, found = OpenCvFlow(SMALL, CPU)(now, then), Flow(SMALL, CPU)(now, then)
    return (found - expected).norm(dim=1).mean().item(), expected.norm(dim=1).mean().item()


@pytest.mark.parametrize("scenario", ["walk", "handheld", "static"])
def test_flow_is_near_opencvs(scenario: Scenario) -> None:
    error, length = flow_error_px(scenario)
    assert error < FLOW_PX, (error, length)


@pytest.mark.parametrize("scenario", ["walk", "fast"])
def test_flow_is_opencvs_after_enough_rounds(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_flow, "_ROUNDS", (8, 8))
    error, length = flow_error_px(scenario)
    assert error < WHOLE_FLOW_PX < length / 5, (error, length)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (90, 160), (16, 160), (48, 80), (24, 24)])
def test_a_picture_that_moves_as_a_whole_is_found(shape: tuple[int, int]) -> None:
    """At any size: also where OpenCV crashes, as for (16, 160)."""
    noise = np.random.default_rng(1).normal(0, 1, (shape[0] + 8, shape[1] + 8))
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    picture = np.clip(128 + soft * 40 / soft.std(), 0, 255).round().astype(np.float32)
    now, then = picture[4:-4, 4:-4], picture[3:-5, 2:-6]
    found = Flow(shape, CPU)(torch.from_numpy(now)[None], torch.from_numpy(then)[None])[0]
    middle = found[:, 4:-4, 6:-6].flatten(1).median(1).values
    np.testing.assert_allclose(middle, [2, 1], atol=0.2)


def test_the_smallest_pictures_show_no_motion() -> None:
    now, then = torch.rand(2, 3, 7, 40) * 255
    assert not Flow((7, 40), CPU)(now, then).any()


# Steady maps


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("scenario", ["walk", "cut", "static"])
def test_with_one_flow_maps_are_the_cpu_forms(scenario: Scenario, lookahead: int) -> None:
    """Through motion, a cut, still parts and a change of light; maps larger than they are averaged
    without lookahead, else of that size."""
    images, truth = clip(scenario)
    maps = flickering(truth) if lookahead == 0 else halves(flickering(truth))
    expected = on_cpu(maps, lit(images), lookahead)
    steady = on_device(maps, lit(images), lookahead)
    assert np.abs(expected - maps).max() > 0.1, "this test shows nothing"
    assert np.abs(steady - expected).max() < SAME


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("scenario", ["walk", "fast", "handheld", "empty"])
def test_with_its_own_flow_maps_are_near_the_cpu_forms(scenario: Scenario, lookahead: int) -> None:
    images, truth = clip(scenario)
    maps = halves(flickering(truth))
    check_alike(on_device(maps, images, lookahead), on_cpu(maps, images, lookahead), maps)


def check_alike(steady: np.ndarray, expected: np.ndarray, maps: np.ndarray) -> None:
    off = np.abs(steady - expected)
    change = np.abs(expected - maps)
    assert change.mean() > 3 * off.mean(), "this test shows nothing"
    assert off.mean() < ALIKE_MEAN
    assert np.quantile(off, 0.99) < ALIKE_P99


@pytest.mark.parametrize("name", ["cockatoo_444.mp4", "walking_woman_720p.mp4"])
def test_maps_of_real_clips_are_near_the_cpu_forms(name: str) -> None:
    path = SHARED / "clips" / name
    if not path.is_file():
        pytest.skip(f"needs the clip {name}")
    images = np.stack(list(small_frames(path, 12)))
    backend = open_backend(resolve_model("live"), size=(192, 320), device="cpu", precision="f32")
    maps = np.concatenate([backend.infer(image[None]).copy() for image in images])
    backend.close()
    check_alike(on_device(maps, images, 1), on_cpu(maps, images, 1), maps)


def small_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame, _ in zip(container.decode(video=0), range(count), strict=False):
            image = frame.to_ndarray(format="rgb24")
            yield cv2.resize(image, (320, 192), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("scenario", ["walk", "fast", "handheld", "static", "empty"])
def test_flicker_is_no_more_than_the_cpu_forms(scenario: Scenario) -> None:
    images, truth = clip(scenario)
    maps, truth = halves(flickering(truth)), halves(truth)

    def flicker(steady: np.ndarray) -> float:
        return float(np.mean([dtssd(now, then) for then, now in pairwise(steady - truth)]))

    ours, theirs = (flicker(form(maps, images, 1)) for form in (on_device, on_cpu))
    assert theirs < 0.6 * flicker(maps), "this test shows nothing"
    assert ours < STEADY_DTSSD * theirs


# The contract


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_batches_change_nothing(lookahead: int) -> None:
    images, truth = (part[:8] for part in clip("cut"))
    maps = halves(flickering(truth))
    one_by_one = on_device(maps, images, lookahead, batch=1)
    for batch in (2, 5, 12):
        together = on_device(maps, images, lookahead, batch=batch)
        np.testing.assert_allclose(together, one_by_one, atol=ROUNDING)


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_map_out_for_each_in_and_in_order(lookahead: int, count: int) -> None:
    images, truth = (torch.from_numpy(x) for x in clip("static"))
    steadied = TemporalFilter(lookahead=lookahead, device=CPU)
    arrived = [len(steadied.push(truth[i], images[i])) for i in range(count)]
    assert arrived == [0] * min(lookahead, count) + [1] * (count - lookahead)
    assert len(steadied.flush()) == min(lookahead, count)
    assert steadied.flush() == []


@pytest.mark.parametrize("lookahead", [0, 1])
def test_flush_forgets(lookahead: int) -> None:
    images, truth = (torch.from_numpy(x) for x in clip("static"))
    steadied = TemporalFilter(lookahead=lookahead, device=CPU)
    steadied.push(truth[0] * 0, images[0])
    steadied.flush()
    out = steadied.push(truth[1], images[1]) + steadied.flush()
    np.testing.assert_array_equal(torch.stack(out), truth[1:2])


def test_inputs_are_copied_and_results_are_the_callers() -> None:
    images, truth = clip("walk")
    maps = halves(flickering(truth))
    steadied, out = TemporalFilter(lookahead=1, device=CPU), []
    probability, image = torch.empty(SMALL), torch.empty(images[0].shape, dtype=torch.uint8)
    for k in range(6):
        probability.copy_(torch.from_numpy(maps[k]))
        image.copy_(torch.from_numpy(images[k]))
        out += steadied.push(probability, image)
        probability.fill_(torch.nan)
        image.zero_()
    out += steadied.flush()
    np.testing.assert_array_equal(torch.stack(out), on_device(maps[:6], images[:6], 1, batch=1))
    storages = {map_.untyped_storage().data_ptr() for map_ in out}
    assert len(storages) == len(out)


def test_the_networks_size_may_change_without_lookahead() -> None:
    images, truth = clip("static")
    raw = halves(flickering(truth))
    steadied, out = TemporalFilter(lookahead=0, device=CPU), []
    for k, image in enumerate(images):
        shown = raw[k] if k < 8 else cv2.resize(raw[k], (128, 80), interpolation=cv2.INTER_AREA)
        out += steadied.push(torch.from_numpy(shown), torch.from_numpy(image))
    assert [tuple(o.shape) for o in out] == [SMALL] * 8 + [(80, 128)] * (FRAMES - 8)
    steps = []
    for before, after in (
        (raw[7], cv2.resize(raw[8], (128, 80))),
        (out[7].numpy(), out[8].numpy()),
    ):
        steps.append(np.abs(after - cv2.resize(before, (128, 80))).mean())
    assert steps[1] < 0.6 * steps[0], "memory is resampled, not lost"


def test_sizes_do_not_change_while_maps_wait() -> None:
    images, truth = (torch.from_numpy(x) for x in clip("static"))
    steadied = TemporalFilter(lookahead=1, device=CPU)
    steadied.push(truth[0], images[0])
    with pytest.raises(ValueError, match=r"change to \(96, 160\) while 1 wait"):
        steadied.push(truth[1][::2, ::2], images[1])
    assert len(steadied.flush()) == 1
    steadied.push(truth[1][::2, ::2], images[1])
    assert steadied.flush()[0].shape == SMALL


def test_more_lookahead_than_there_is_use_for_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead 3"):
        TemporalFilter(lookahead=3, device=CPU)


# Fit for CUDA graphs


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_nothing_is_kept_in_the_memory_of_a_graph(
    lookahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = clip("walk")
    maps = halves(flickering(truth))
    expected = on_device(maps, images, lookahead, batch=5)
    monkeypatch.setattr(device_temporal, "Graphed", Replayed)
    np.testing.assert_array_equal(on_device(maps, images, lookahead, batch=5), expected)


class Launches(TorchDispatchMode):
    """Counts the operations that start work, which a view does not."""

    VIEWS = (
        "alias", "chunk", "expand", "lift_fresh", "new_empty", "permute", "select", "slice",
        "split", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
        "_unsafe_view",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.__name__.split(".")[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lookahead", [0, 2])
def test_a_step_needs_no_value_and_nothing_of_the_host(lookahead: int) -> None:
    """Tensors without data ("meta") raise where a value is read or another device takes part."""
    meta, batch = torch.device("meta"), 3
    stepper = _Stepper((192, 320), (192, 320), lookahead, meta)
    before = stepper.start(None).tensors()
    steady, *after = stepper.work(*stepper.nothing(batch), *before)
    assert steady.shape == (batch, 192, 320)
    assert [(x.shape, x.dtype) for x in after] == [(x.shape, x.dtype) for x in before]


def test_the_flow_takes_as_many_launches_for_any_batch() -> None:
    flow = Flow(SMALL, torch.device("meta"))
    counts = []
    for pairs in (1, 16):
        pictures = torch.zeros(pairs, *SMALL, device="meta")
        with Launches() as launches:
            flow(pictures, pictures)
        counts.append(launches.count)
    assert counts[0] > 100, "this counts nothing"
    assert max(counts) < FLOW_LAUNCHES
    assert counts[1] - counts[0] <= 2, counts


@pytest.mark.needs_cuda
@pytest.mark.parametrize("lookahead", [0, 1])
def test_maps_on_a_gpu_are_those_of_the_reference(lookahead: int, gpu: int) -> None:
    images, truth = clip("cut")
    maps = flickering(truth)
    expected = on_device(maps, images, lookahead)
    steady = on_device(maps, images, lookahead, device=torch.device("cuda", gpu))
    off = np.abs(steady - expected)
    assert off.mean() < SAME / 10
    assert np.quantile(off, 0.999) < SAME
