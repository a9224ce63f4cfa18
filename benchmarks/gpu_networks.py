"""The networks on the device: precisions, batches and forms, how near the roofline, how equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_clock import Clock, Deadline
from gpu_models import Zoo
from gpu_roofline import SIZES, Rates, network_floor
from numpy.typing import NDArray
from torch import Tensor, nn

from vidmatte.backends import open_backend
from vidmatte.graphs import Graphed
from vidmatte.models.network import ConvBnRelu, folded_network
from vidmatte.models.registry import Model

COMPILE_S = 45.0  # what one compilation is taken to need
_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
Forward = Callable[[Tensor], Tensor]
Rows = list[dict[str, Any]]


class Case(NamedTuple):
    """One network at one size (height, width), batch and precision."""

    model: str
    size: tuple[int, int]
    batch: int
    precision: str

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.model} {width}x{height} {self.precision} batch {self.batch}"


def cases(names: Sequence[str], *, small: bool) -> Iterator[Case]:
    """Yield what is measured, the most wanted first: time may end before the list does."""
    if small:
        yield from (Case(name, (64, 64), 2, "f32") for name in names)
        return
    wanted = [("f16", 1), ("f16", 16), ("f32", 8), ("f16", 8), ("f32", 1), ("f16", 4), ("f16", 32)]
    for (precision, batch), size, name in product([*wanted, ("f32", 16)], SIZES, names):
        yield Case(name, size, batch, precision)


class Eager(nn.Module):
    """The network as torch runs it, one kernel after the other: uint8 NHWC to probability."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = folded_network(model.row.network, model.load(), dtype)
        self.dtype = dtype
        std = torch.tensor(model.row.std)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -torch.tensor(model.row.mean) / std)

    def forward(self, image_NHW3: Tensor) -> Tensor:
        x_NHW3 = image_NHW3.to(torch.float32) * self.scale + self.shift
        logits_N1HW = self.network(x_NHW3.permute(0, 3, 1, 2).to(self.dtype))[0]
        probability: Tensor = logits_N1HW.float().sigmoid().squeeze(1)
        return probability


class Fused(Eager):
    """The same with bias and ReLU inside cuDNN's convolution: half of the passes over each map.

    On a CPU it is the same as `Eager`.
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__(model, dtype)
        for block in self.network.modules():
            if isinstance(block, ConvBnRelu):
                block.forward = partial(conv_relu, block.conv_s1)  # type: ignore[method-assign]


def conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    x = x.to(conv.weight.dtype)
    if x.device.type != "cuda":
        return conv(x).relu()
    fused: Tensor = torch.cudnn_convolution_relu(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    return fused


def measure_networks(
    zoo: Zoo, rates: Rates, clock: Clock, deadline: Deadline, rows: Rows, *, small: bool
) -> None:
    """Measure every case eagerly, with ReLU fused, and as vidmatte runs it, with its roofline.

    `rows` are there as far as they came when time ends.
    """
    for case in cases(list(zoo.models), small=small):
        if deadline.allows(str(case), needs_s=2):
            with deadline.guarded(str(case)):
                rows.append(measure_case(zoo, case, rates, clock, deadline))
                print_row(rows[-1])


def measure_case(
    zoo: Zoo, case: Case, rates: Rates, clock: Clock, deadline: Deadline
) -> dict[str, Any]:
    images = random_images(case, clock.device)
    model = zoo.models[case.model]
    row: dict[str, Any] = case._asdict() | {"weights": weights_kind(zoo, case.model), "forms": {}}
    with torch.inference_mode():
        eager = Eager(model, _DTYPES[case.precision]).to(clock.device)
        expected = without_tf32(eager)(images[0])
        assert torch.isfinite(expected).all(), f"{case}: not finite"
        row["forms"]["eager"] = timed(without_tf32(eager), images, clock)
        del eager
        with deadline.guarded(f"{case}, fused"):
            fused = without_tf32(Fused(model, _DTYPES[case.precision]).to(clock.device))
            row["forms"]["fused"] = graphed(fused, images, expected, clock)
    with closing(open_torch(model, case, clock.device)) as backend:
        difference = (backend.infer_device(images[0]) - expected).abs().max().item()
        row["forms"]["graphs"] = timed(backend.infer_device, images, clock)
        row["forms"]["graphs"]["from_eager"] = difference
    return row | against_roofline(case, row["forms"]["graphs"]["ms"], rates)


def against_roofline(case: Case, ms: float, rates: Rates) -> dict[str, Any]:
    """Return floor, frames per second and, for FP16, the fraction of the roofline reached."""
    from vidmatte.models.table import models

    floor = network_floor(models()[case.model].network, case.size, case.batch, rates)
    found = {"fps": 1000 * case.batch / ms, "tflops": floor["gflop"] / ms}
    if case.precision == "f16":
        found |= {"roofline": floor, "of_roofline": floor["floor_ms"] / ms}
    return found


def open_torch(model: Model, case: Case, device: torch.device) -> Any:
    """Open vidmatte's own backend for a case."""
    return open_backend(
        model,
        size=case.size,
        backend="torch",
        device=str(device),
        batch=case.batch,
        precision=case.precision,  # type: ignore[arg-type]
    )


def timed(forward: Forward, images: list[Tensor], clock: Clock) -> dict[str, float]:
    return clock.measure(lambda i: forward(images[i % len(images)]))


def graphed(
    forward: Forward, images: list[Tensor], expected: Tensor, clock: Clock
) -> dict[str, float]:
    """Time a form recorded as a graph, and say how far it is from what eager torch answers."""
    recorded = Graphed(lambda x: (forward(x),), clock.device)
    difference = (recorded(images[0])[0] - expected).abs().max().item()
    return timed(lambda x: recorded(x)[0], images, clock) | {"from_eager": difference}


def without_tf32(forward: Forward) -> Forward:
    """As vidmatte's backend runs it: the fastest kernels there are, and FP32 that is FP32."""

    def run(image: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return forward(image)

    return run


def random_images(case: Case, device: torch.device, sets: int = 4) -> list[Tensor]:
    shape = (case.batch, *case.size, 3)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in range(sets)]


def weights_kind(zoo: Zoo, name: str) -> str:
    return "trained" if zoo.trained[name] else "random: speed only"


def print_row(row: dict[str, Any]) -> None:
    height, width = row["size"]
    forms = "  ".join(f"{name} {found['ms']:8.3f}" for name, found in row["forms"].items())
    near = f"  {row['of_roofline']:.0%} of roofline" if "of_roofline" in row else ""
    print(
        f"{row['model']:7} {width}x{height} {row['precision']:4} batch {row['batch']:2}"
        f"  ms: {forms}  {row['fps']:8.1f} fps{near}",
        flush=True,
    )


def measure_parity(
    zoo: Zoo, images: dict[tuple[int, int], NDArray[np.uint8]], clock: Clock
) -> Rows:
    """Compare FP16 with FP32 on pictures: mean |Δα| as the network answers and after its curve.

    A CPU compares bf16, since it has no FP16 here.
    """
    half = "f16" if clock.is_cuda else "bf16"
    rows = []
    for (height, width), pictures in images.items():
        for name in zoo.models:
            case = Case(name, (height, width), len(pictures), "f32")
            exact, rough = (
                probabilities(zoo.models[name], case._replace(precision=p), pictures, clock)
                for p in ("f32", half)
            )
            curve = zoo.models[name].row.curve
            exact_alpha, rough_alpha = (
                ((p - curve.lo) / (curve.hi - curve.lo)).clamp(0, 1) for p in (exact, rough)
            )
            row = {
                "model": name,
                "size": [height, width],
                "weights": weights_kind(zoo, name),
                "precision": half,
                "pictures": len(pictures),
                "mean_difference": (exact - rough).abs().mean().item(),
                "mean_alpha_difference": (exact_alpha - rough_alpha).abs().mean().item(),
                "max_alpha_difference": (exact_alpha - rough_alpha).abs().max().item(),
                "mean_alpha": exact_alpha.mean().item(),
            }
            rows.append(row)
            print(
                f"{name:7} {width}x{height} {half} against f32: mean |d alpha| "
                f"{row['mean_alpha_difference']:.5f}, {row['weights']}",
                flush=True,
            )
    return rows


def probabilities(model: Model, case: Case, pictures: NDArray[np.uint8], clock: Clock) -> Tensor:
    with closing(open_torch(model, case, clock.device)) as backend:
        image = torch.from_numpy(pictures).to(clock.device)
        answer: Tensor = backend.infer_device(image).float().cpu().clone()
    assert torch.isfinite(answer).all(), f"{case}: not finite"
    return answer


def measure_compilers(zoo: Zoo, clock: Clock, deadline: Deadline, rows: Rows) -> None:
    """Measure torch.compile and TensorRT where they are, each replayed as vidmatte's graphs are."""
    reasons = {
        "compiled": None if clock.is_cuda and find_spec("triton") else "no GPU or no Triton",
        "tensorrt": None if clock.is_cuda and find_spec("torch_tensorrt") else "not installed",
    }
    deadline.left_out += [f"{form}: {why}" for form, why in reasons.items() if why]
    for batch, name in product((8, 1), ("live", "u2netp", "u2net")):
        case = Case(name, SIZES[1], batch, "f16")
        for form, measure in (("compiled", measure_compiled), ("tensorrt", measure_tensorrt)):
            if reasons[form] or not deadline.allows(f"{form} {case}", needs_s=COMPILE_S):
                continue
            with deadline.guarded(f"{form} {case}"):
                timing = measure(zoo.models[name], case, clock)
                fps = 1000 * batch / timing["ms"]
                rows.append(case._asdict() | {"form": form, "fps": fps} | timing)
                print(f"{form:8} {case}: {timing['ms']:.3f} ms", flush=True)


def measure_compiled(model: Model, case: Case, clock: Clock) -> dict[str, float]:
    """Time the network compiled by torch, its kernels recorded like the others'.

    Its convolutions stay cuDNN's, and what lies between them is fused: trying Triton's for each of
    120 as well takes minutes.
    """
    images = random_images(case, clock.device)
    torch._dynamo.reset()
    with torch.inference_mode():
        eager = Eager(model, _DTYPES[case.precision]).to(clock.device)
        compiled = without_tf32(torch.compile(eager, dynamic=False))
        return graphed(compiled, images, without_tf32(eager)(images[0]), clock)


def measure_tensorrt(model: Model, case: Case, clock: Clock) -> dict[str, float]:
    """Time vidmatte's TensorRT backend, its engine built first."""
    images = random_images(case, clock.device)
    opened: Any = open_backend(
        model,
        size=case.size,
        backend="tensorrt",
        device="cuda",
        batch=case.batch,
        precision="f16",
        on_wait=lambda text: None,
    )
    with closing(opened) as backend:
        return timed(backend.infer_device, images, clock)
