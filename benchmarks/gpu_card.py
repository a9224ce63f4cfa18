"""What card this is, and what it was measured to do: products, copies, and the way to the host."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from gpu_clock import Clock, Deadline
from gpu_roofline import Rates
from machine import commit, cpu_name

from vidmatte.backends import usable_cores

_QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu"
)
COPY_BYTES = 1 << 30  # several times any cache
HOST_BYTES = 1 << 28
SIZES = {"f16": (4096, 8192, 16384), "bf16": (4096, 8192, 16384), "f32": (4096, 8192)}
_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def card_of(device: torch.device) -> dict[str, Any]:
    """Describe device, host, versions and code; clocks are as found, and left so."""
    card = {
        "device": "CPU",
        "host_cpu": cpu_name(),
        "host_cores": usable_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "triton": _version_of("triton"),
        "av": _version_of("av"),
        "commit": commit(),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        card["device"] = facts.name
        card["compute_capability"] = f"{facts.major}.{facts.minor}"
        card["multiprocessors"] = facts.multi_processor_count
        card["memory_gb"] = round(facts.total_memory / 1e9, 1)
        card["cache_mb"] = round(getattr(facts, "L2_cache_size", 0) / 1e6, 1)
        card["nvidia_smi"] = smi()
    return card


def _version_of(package: str) -> str | None:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return None


def smi(query: str = _QUERY) -> dict[str, str] | None:
    """Ask nvidia-smi, or return None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    values = said.stdout.splitlines()[0].split(",")
    return {name: value.strip() for name, value in zip(query.split(","), values, strict=True)}


def measure_ceilings(clock: Clock, deadline: Deadline, *, small: bool) -> dict[str, Any]:
    """Measure all rates; `small` is for rehearsals, whose numbers mean nothing."""
    found: dict[str, Any] = {"matmul": [], "convolution": [], "copy": {}}
    found["copy"] = measure_copies(clock, small=small)
    for precision, sides in SIZES.items():
        for side in (64,) if small else sides:
            if deadline.allows(f"matmul {precision} {side}"):
                found["matmul"].append(measure_matmul(clock, precision, side))
    if deadline.allows("convolution"):
        found["convolution"].append(measure_convolution(clock, 8 if small else 64))
    found["clocks_after"] = smi("clocks.sm,clocks.mem,power.draw") if clock.is_cuda else None
    return found


def measure_matmul(clock: Clock, precision: str, side: int) -> dict[str, Any]:
    """Time a square product of random numbers (zeros would draw less power and run faster)."""
    a, b = (
        torch.randn(side, side, device=clock.device, dtype=_DTYPES[precision]) for _ in range(2)
    )
    out = torch.empty_like(a)
    timing = clock.measure(lambda i: torch.mm(a, b, out=out))
    rate = 2 * side**3 / (timing["ms"] / 1000)
    return {"precision": precision, "side": side, "tflops": rate / 1e12, **timing}


def measure_convolution(clock: Clock, channels: int) -> dict[str, Any]:
    """Time the layer that is most of u2netp: 3×3, full size, 2c → c channels, FP16, eight pictures.

    How far it lies below the products is cuDNN's part of what a network misses of its roofline.
    """
    kind = torch.float16 if clock.is_cuda else torch.float32
    last = torch.channels_last
    x = torch.randn(8, 2 * channels, 320, 320, device=clock.device, dtype=kind)
    w = torch.randn(channels, 2 * channels, 3, 3, device=clock.device, dtype=kind)
    x, w = x.contiguous(memory_format=last), w.contiguous(memory_format=last)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        timing = clock.measure(lambda i: torch.nn.functional.conv2d(x, w, padding=1))
    flops = 2 * 8 * 9 * 2 * channels * channels * 320 * 320
    return {
        "layer": f"3x3 {2 * channels}->{channels} at 320x320, 8 pictures",
        "tflops": flops / (timing["ms"] / 1000) / 1e12,
        **timing,
    }


def measure_copies(clock: Clock, *, small: bool) -> dict[str, Any]:
    """Return GB/s by kind of copy; on the device, bytes read and written both count."""
    device = clock.device
    large, host = (1 << 20, 1 << 20) if small else (COPY_BYTES, HOST_BYTES)
    source = torch.randint(0, 255, (large,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = {"device": 2 * large / _seconds(clock, lambda i: target.copy_(source)) / 1e9}
    on_device = source[:host]
    for pinned in (True, False):
        name = "pinned" if pinned else "pageable"
        on_host = torch.randint(0, 255, (host,), dtype=torch.uint8)
        if pinned and clock.is_cuda:
            on_host = on_host.pin_memory()
        up = _seconds(clock, _copy(on_device, on_host))
        down = _seconds(clock, _copy(on_host, on_device))
        rates |= {f"{name}_to_device": host / up / 1e9, f"{name}_to_host": host / down / 1e9}
    if clock.is_cuda:
        rates["pinned_both_ways_each"] = host / _both_ways_s(clock, host) / 1e9
    return rates


def _copy(target: torch.Tensor, source: torch.Tensor) -> Callable[[int], object]:
    return lambda i: target.copy_(source, non_blocking=True)


def _seconds(clock: Clock, work: Callable[[int], object]) -> float:
    return clock.measure(work)["ms"] / 1000


def _both_ways_s(clock: Clock, size: int) -> float:
    """Time a copy up beside a copy down, as a run makes them: seconds until both are done."""
    here = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    there = [torch.empty(size, dtype=torch.uint8, device=clock.device) for _ in range(2)]
    lanes = [torch.cuda.Stream(clock.device) for _ in range(2)]
    now = torch.cuda.current_stream(clock.device)

    def work(i: int) -> None:
        for lane in lanes:
            lane.wait_stream(now)
        with torch.cuda.stream(lanes[0]):
            there[0].copy_(here[0], non_blocking=True)
        with torch.cuda.stream(lanes[1]):
            here[1].copy_(there[1], non_blocking=True)
        for lane in lanes:
            now.wait_stream(lane)

    return _seconds(clock, work)


def rates_of(ceilings: dict[str, Any]) -> Rates:
    """Return the rates that floors are computed with: the best FP16 product, the copies."""
    copies = ceilings["copy"]
    best = max(row["tflops"] for row in ceilings["matmul"] if row["precision"] == "f16")
    return Rates(
        best * 1e12,
        copies["device"] * 1e9,
        copies["pinned_to_device"] * 1e9,
        copies["pinned_to_host"] * 1e9,
    )
