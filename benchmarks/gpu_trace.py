"""What the device did during a run, read from the profiler's trace: busy time, kernels, copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_FILLING = 0.2  # of the frames; before, graphs are recorded and kernels chosen


def traced(work: Callable[[], object], device: torch.device, path: Path, frame_bytes: int) -> Any:
    """Do `work` under the profiler and return `facts_of` its trace, or None without a GPU.

    `frame_bytes` is the size of what comes down for each frame. `path` is for the trace, which is
    removed. Slower than a run that is not watched: ratios hold, speeds do not.
    """
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as watch:
        work()
        if is_cuda:
            torch.cuda.synchronize(device)
    watch.export_chrome_trace(str(path))
    try:
        return facts_of(json.loads(path.read_text("utf-8"))["traceEvents"], frame_bytes)
    finally:
        path.unlink()


def facts_of(events: list[dict[str, Any]], frame_bytes: int) -> dict[str, float] | None:
    """Return busy share, and kernels, launched copies and bytes per frame, while frames flow.

    Every frame ends with one copy of `frame_bytes` to the host: what lies between a fifth of those
    and the last is looked at. None if there are none.
    """
    work = sorted((e for e in events if e.get("cat") in _DEVICE_WORK), key=lambda e: e["ts"])
    ends = [e["ts"] for e in work if "DtoH" in e["name"] and _bytes(e) == frame_bytes]
    if len(ends) < 5:
        return None
    first = int(_FILLING * len(ends))
    begin, end = ends[first], ends[-1]
    frames = len(ends) - 1 - first
    inside = [e for e in work if begin <= e["ts"] < end]
    kernels = [e for e in inside if e["cat"] == "kernel"]
    return {
        "busy": _covered(inside, end) / (end - begin),
        "busy_kernels": _covered(kernels, end) / (end - begin),
        "fps": 1e6 * frames / (end - begin),
        "kernels_per_frame": len(kernels) / frames,
        "to_device_bytes": sum(_bytes(e) for e in inside if "HtoD" in e["name"]) / frames,
        "to_host_bytes": sum(_bytes(e) for e in inside if "DtoH" in e["name"]) / frames,
        "frames": frames,
    }


def _bytes(event: dict[str, Any]) -> int:
    return int(event.get("args", {}).get("bytes", 0)) if event["cat"] == "gpu_memcpy" else 0


def _covered(events: list[dict[str, Any]], end: float) -> float:
    """Return how much time at least one of the events covers, up to `end`."""
    total, until = 0.0, float("-inf")
    for event in events:
        stop = min(event["ts"] + event.get("dur", 0), end)
        total += max(0.0, stop - max(until, event["ts"]))
        until = max(until, stop)
    return total
