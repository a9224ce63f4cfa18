"""What fps.py measures where the work is done on a GPU: stages, bus, ceiling, and a watched run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import torch
from gpu_clips import DISTINCT
from gpu_clock import Clock
from gpu_stages import Chain, measure_chain, measure_latency, measure_stages, opened
from gpu_trace import traced
from observed import NULL_SINK, ObservedRun

from vidmatte.backends import usable_cores
from vidmatte.compute.cpu.composite import new_picture
from vidmatte.compute.cpu.conform import Conformer
from vidmatte.frames import Layout, VideoInfo
from vidmatte.matting import GPU_BATCH, MattingChoice, find_model
from vidmatte.renders import working_layout
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.plan import plan_output
from vidmatte.sources.file import FileSource
from vidmatte.threads import thread_budget

COMPUTE = ("prepare", "network", "temporal", "refine", "composite")


def measure_device(
    clip: Path, choice: MattingChoice, clock: Clock, folder: Path, *, batch: int = GPU_BATCH
) -> dict[str, Any]:
    """Return stages alone, the ceiling, latency at batch 1, and what a run did on the device.

    The ceiling is the slowest of decoding, the way up, all work on the device, the way down and
    encoding, each alone at its best: they can all go on at once.
    """
    info, layout, pictures, decode_ms = decoded(clip, clock)
    repeat = 200 if clock.is_cuda else 3
    with opened(lambda: chain_of(choice, info, layout, pictures, clock.device, batch)) as chain:
        stages = measure_stages(chain, clock)
        together = measure_chain(chain, clock, (info.width, info.height))
        stages |= {
            "decode": {"ms": decode_ms},
            "encode": {"ms": encode_ms(chain, info, layout, folder)},
        }
    with opened(lambda: chain_of(choice, info, layout, pictures, clock.device, 1)) as chain:
        together["latency_batch_1"] = measure_latency(chain, clock, repeat=repeat)
    alone = {name: stages[name]["ms"] for name in ("decode", "upload", "download", "encode")}
    alone["compute"] = sum(stages[name]["ms"] for name in COMPUTE)
    slowest = max(alone, key=lambda name: alone[name])
    return {
        "stages": stages,
        "ceiling_fps": 1000 / alone[slowest],
        "ceiling_of": slowest,
        **together,
        "run": watched_run(clip, choice, clock, folder, sum(alone.values()) - alone["encode"]),
    }


def chain_of(
    choice: MattingChoice,
    info: VideoInfo,
    layout: Layout,
    pictures: Sequence[av.VideoFrame],
    device: torch.device,
    batch: int,
) -> Chain:
    return Chain(
        find_model(choice),
        info,
        layout,
        pictures,
        device,
        batch=batch,
        backend="torch" if choice.backend == "auto" else choice.backend,
        precision=choice.precision,
    )


def decoded(clip: Path, clock: Clock) -> tuple[VideoInfo, Layout, list[av.VideoFrame], float]:
    """Return the first pictures in the run's layout, and the ms of decoding one as a run does."""
    threads = thread_budget(usable_cores()).decoder
    gpu = (clock.device.index or 0) if clock.is_cuda else None
    with FileSource(clip, threads=threads, gpu=gpu) as source:
        start = time.perf_counter()
        count = sum(1 for _ in source)
        spent_s = time.perf_counter() - start
    with FileSource(clip, threads=threads) as source:
        info = source.info
        layout = working_layout(info, needs_alpha=False)
        conformer = Conformer(info, layout)
        pictures = [conformer.conform(frame).picture for frame in islice(source, DISTINCT)]
    return info, layout, pictures, 1000 * spent_s / count


def encode_ms(chain: Chain, info: VideoInfo, layout: Layout, folder: Path) -> float:
    """Encode composites as .mp4, and return the ms of one."""
    plan = plan_output(info, ".mp4", "opaque")
    composites = []
    for i, source in enumerate(chain.pictures):
        picture = new_picture(layout, info.width, info.height, like=source)
        chain.download(chain.composite(i, chain.alphas[i])).write(picture)
        picture.pts, picture.time_base = i, 1 / info.frame_rate
        composites.append(picture)
    with (folder / "alone.mp4").open("wb") as file:
        muxing = Muxing(threads=thread_budget(usable_cores()).encoder)
        sink = FileSink(file.fileno(), "alone.mp4", plan, info, muxing)
        start = time.perf_counter()
        for picture in composites:
            sink.write(picture)
        sink.close()
        return 1000 * (time.perf_counter() - start) / len(composites)


def watched_run(
    clip: Path, choice: MattingChoice, clock: Clock, folder: Path, alone_ms: float
) -> dict[str, Any]:
    """Run into nothing, and again under the profiler.

    `overlap` is the sum of the stages alone over the run's time per frame: at 2, two of them were
    at work at every moment.
    """
    run = ObservedRun(clip, NULL_SINK, choice, encodes=False)
    run.observe()
    facts = run.facts()
    again = ObservedRun(clip, NULL_SINK, choice, encodes=False)
    with FileSource(clip) as source:
        frame = next(iter(source))
    frame_bytes = sum(plane.width * plane.height for plane in frame.picture.planes)
    frame_bytes *= 1 if frame.picture.format.components[0].bits <= 8 else 2
    facts["device"] = traced(again.observe, clock.device, folder / "trace.json", frame_bytes)
    facts["overlap"] = alone_ms * facts["steady_fps"] / 1000
    return facts


def show_device(found: dict[str, Any]) -> None:
    print(f"\n{'stage alone':12} {'ms':>8}")
    for name, row in found["stages"].items():
        print(f"{name:12} {row['ms']:8.3f}")
    print(f"ceiling {found['ceiling_fps']:.1f} fps: {found['ceiling_of']}")
    print(f"all on the device {found['resident_fps']:.1f} fps")
    print(f"to and from the host {found['host_bytes_per_pixel']:.2f} bytes per pixel")
    for name, value in found["run"].items():
        print(f"  {name:18} {value}")
