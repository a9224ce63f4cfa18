"""How fast vidmatte is on this machine, stage by stage and end to end, and how near its ceiling.

    python benchmarks/fps.py [--clip FILE | --size 1280x720] [--model live] [--backend auto]
                             [--device auto] [--precision auto] [--output out.mp4]
                             [--frames 300] [--repeat 3] [--json FILE]

Prints a card (machine, versions, model, commit), the CPU time per frame of each stage alone, the
ceiling (cores divided by the sum of CPU seconds per frame), the real command's frames per second
with the model and with `--backend null`, the time to a first picture from a cold start of the
command, latency, peak memory and its growth. Checks that frames out equal
frames in. The last line of stdout is one JSON document. Numbers from machines that share their
cores are noisy: compare ratios within one run.

On a GPU the stages are timed on it, by CUDA events, and the ceiling is the slowest of decoding, the
way up, the device's work, the way down and encoding; bytes to and from the host, the device's busy
share, frames in flight and how much overlapped are told as well (gpu_fps.py). All networks,
precisions and batches beside the card's own rates are for gpu.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine_card
from observed import ObservedRun

from vidmatte.backdrop import Backdrop
from vidmatte.backends import choose_device, usable_cores
from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.prepare import Preparer
from vidmatte.compute.cpu.refine import refine
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.frames import Frame, Matte, VideoInfo, plane_views
from vidmatte.matting import LOOKAHEAD, MattingChoice, Network, open_network
from vidmatte.renders import build_renders, working_layout
from vidmatte.sinks.file import FileSink, Muxing
from vidmatte.sinks.plan import plan_output
from vidmatte.sources.file import FileSource
from vidmatte.threads import thread_budget

LONG_CLIP = 1000  # frames; growth of memory means nothing on fewer
STAGES = ("decode", "prepare", "infer", "temporal", "refine", "composite", "encode")
STAGE_FRAMES = 120  # frames that each stage is timed over, alone


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    clip: Path
    model: str
    backend: str
    device: str
    precision: str
    output: str
    frames: int
    repeat: int


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        clip = options.clip or make_clip(Path(folder), options.size, options.frames)
        setting = Setting(
            clip,
            options.model,
            options.backend,
            choose_device(options.device, options.backend.partition(":")[0]),
            options.precision,
            options.output,
            options.frames,
            options.repeat,
        )
        document = measure(setting, Path(folder))
    line = json.dumps(document, allow_nan=False)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure vidmatte's speed on this machine.")
    parser.add_argument("--clip", type=Path, help="video to measure on")
    parser.add_argument("--size", default="1280x720", help="size of a generated clip")
    parser.add_argument("--model", default="live")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--output", default="out.mp4", help="its extension decides what is written")
    parser.add_argument("--frames", type=int, default=300, help="frames of a generated clip")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the whole command")
    parser.add_argument("--json", type=Path, help="also write the document here")
    return parser.parse_args()


def make_clip(folder: Path, size: str, frames: int) -> Path:
    from vidmatte.sources.synthetic import SyntheticClip, write_clip

    width, height = map(int, size.split("x"))
    path = folder / "clip.mp4"
    write_clip(path, SyntheticClip(width=width, height=height, frame_count=frames), sound=True)
    return path


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    card = make_card(setting)
    show("machine", card)
    # First the commands: a child's peak memory starts at what its parent held.
    whole = [run_command(setting, folder, setting.backend) for _ in range(setting.repeat)]
    null = [run_command(setting, folder, "null") for _ in range(setting.repeat)]
    first = [time_first_picture(setting, folder) for _ in range(setting.repeat)]
    alone = measure_alone(setting, folder)
    ceiling = alone["ceiling_fps"]
    fps = statistics.median(r["fps"] for r in whole)
    null_fps = statistics.median(r["fps"] for r in null)
    result = {
        "fps": fps,
        "of_ceiling": fps / ceiling,
        "command_fps": statistics.median(r["command_fps"] for r in whole),
        "null_fps": null_fps,
        "of_null": fps / null_fps,
        "ceiling_fps": ceiling,
        "first_picture_s": statistics.median(first),
        "peak_memory_mb": max(r["peak_mb"] for r in whole),
        "growth_mb_per_1000_frames": whole[-1]["growth_mb"],
        **measure_latency(setting, folder),
    }
    show("end to end", {k: v if v is None else round(v, 3) for k, v in result.items()})
    return {"card": card, **alone, **result}


def measure_alone(setting: Setting, folder: Path) -> dict[str, Any]:
    """Time the stages alone, and say what they allow at best, on this setting's device."""
    if setting.device.startswith("cuda"):
        return measure_on_gpu(setting, folder)
    stages = time_stages(setting, folder)
    ceiling = usable_cores() / (sum(s["cpu_ms"] for s in stages.values()) / 1000)
    show_stages(stages, ceiling)
    return {"stages": stages, "ceiling_fps": ceiling}


def measure_on_gpu(setting: Setting, folder: Path) -> dict[str, Any]:
    import torch
    from gpu_card import card_of
    from gpu_clock import Clock
    from gpu_fps import measure_device, show_device

    device = torch.device("cuda:0" if setting.device == "cuda" else setting.device)
    found = measure_device(setting.clip, choice_of(setting), Clock(device), folder)
    show_device(found)
    return {"gpu": card_of(device), **found}


def choice_of(setting: Setting) -> MattingChoice:
    return MattingChoice(
        setting.model,
        backend=setting.backend,
        device=setting.device,
        precision=setting.precision,  # type: ignore[arg-type]
    )


def make_card(setting: Setting) -> dict[str, Any]:
    with FileSource(setting.clip) as source:
        info = source.info
    return {
        **machine_card("numpy"),
        "clip": f"{info.width}x{info.height} {info.codec} {info.pix_fmt}",
        "model": setting.model,
        "backend": setting.backend,
        "device": setting.device,
        "precision": setting.precision,
    }


class Timer:
    """Adds up wall and CPU time of one stage; CPU of this thread alone, or of the process."""

    def __init__(self, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._cpu_clock = cpu_clock
        self.wall_s: list[float] = []
        self.cpu_s = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        cpu, wall = self._cpu_clock(), time.perf_counter()
        yield
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s += self._cpu_clock() - cpu

    def summary(self, frames: int) -> dict[str, float]:
        wall_ms = [1000 * s for s in self.wall_s]
        return {
            "cpu_ms": 1000 * self.cpu_s / frames,
            "wall_ms": sum(wall_ms) / frames,
            "wall_p95_ms": float(np.percentile(wall_ms, 95)),
        }


def time_stages(setting: Setting, folder: Path) -> dict[str, dict[str, float]]:
    """Time each stage by itself, on the same frames, in the order of the pipeline."""
    budget = thread_budget(usable_cores())
    load_cv2().setNumThreads(budget.opencv)
    timers = {name: Timer() for name in STAGES}
    for name in ("decode", "infer", "encode"):  # they have threads of their own
        timers[name] = Timer(time.process_time)
    frames: list[Frame] = []
    with FileSource(setting.clip, threads=budget.decoder) as source:
        info, decoded = source.info, iter(source)
        while len(frames) < STAGE_FRAMES:
            with timers["decode"]():
                frame = next(decoded, None)
            if frame is None:
                break
            frames.append(frame)
        with open_network_for(setting, info) as network:
            steady = time_inference(network, info, frames, timers)
        time_output(network, info, list(zip(frames, steady, strict=True)), timers, folder)
    return {name: timer.summary(len(frames)) for name, timer in timers.items()}


@contextmanager
def open_network_for(setting: Setting, info: VideoInfo) -> Iterator[Network]:
    network = open_network(info, choice_of(setting))
    yield network
    network.backend.close()


def time_inference(
    network: Network, info: VideoInfo, frames: list[Frame], timers: dict[str, Timer]
) -> list[Any]:
    """Prepare, infer and steady every frame; return one probability each."""
    preparer = Preparer(info, network.backend.input_size)
    temporal = TemporalFilter(lookahead=LOOKAHEAD)
    image = np.empty((1, *network.backend.input_size, 3), np.uint8)
    for _ in range(3):
        network.backend.infer(image)  # warm up
    steady = []
    for frame in frames:
        with timers["prepare"]():
            preparer.prepare(frame.picture, image[0])
        with timers["infer"]():
            probability = network.backend.infer(image)[0]
        with timers["temporal"]():
            steady += temporal.push(probability, image[0])
    steady += temporal.flush()
    assert len(steady) == len(frames), "one steady probability per frame"
    return [preparer.to_stored(probability) for probability in steady]


def time_output(
    network: Network,
    info: VideoInfo,
    answers: list[tuple[Frame, Any]],
    timers: dict[str, Timer],
    folder: Path,
) -> None:
    """Refine, composite and encode one picture after the other, so that memory is used again.

    The encoder's threads work on beside: its CPU time is all of the process but the other two's.
    """
    layout = working_layout(info, needs_alpha=False)
    plan = plan_output(info, ".mp4", "opaque")
    (render,) = build_renders(info, layout, [plan], Backdrop("green"))
    curve = network.model.row.curve
    with (folder / "stage.mp4").open("wb") as file:
        muxing = Muxing(threads=thread_budget(usable_cores()).encoder)
        sink = FileSink(file.fileno(), "stage.mp4", plan, info, muxing)
        start = time.process_time()
        for frame, small in answers:
            with timers["refine"]():
                planes = plane_views(frame.picture)[:3]
                alpha = refine(small, planes, bits=layout.bits, lo=curve.lo, hi=curve.hi)
            with timers["composite"]():
                picture = render(Matte(frame, alpha))
            picture.pts, picture.time_base = frame.pts, frame.time_base
            with timers["encode"]():
                sink.write(picture)
        with timers["encode"]():
            sink.close()
    spent = time.process_time() - start
    timers["encode"].cpu_s = spent - timers["refine"].cpu_s - timers["composite"].cpu_s


def command_for(setting: Setting, output: Path, backend: str) -> list[str]:
    command = [sys.executable, "-m", "vidmatte", "run", str(setting.clip), str(output)]
    command += ["--overwrite", "--json", "--backend", backend, "--model", setting.model]
    return [*command, "--device", setting.device, "--precision", setting.precision]


def run_command(setting: Setting, folder: Path, backend: str) -> dict[str, Any]:
    """Run the real command once; return its own fps, the whole command's, and its memory."""
    output = folder / setting.output
    start = time.perf_counter()
    process = subprocess.Popen(
        command_for(setting, output, backend), stdout=subprocess.PIPE, text=True
    )
    memory = watch_memory(process)
    assert process.stdout is not None
    document = json.loads(process.stdout.read().splitlines()[-1])
    elapsed_s = time.perf_counter() - start
    assert process.wait() == 0, "the command failed"
    frames = count_frames(output)
    assert frames == document["frames"] == count_frames(setting.clip), "frames out = frames in"
    return {
        "fps": document["fps"],
        "command_fps": frames / elapsed_s,
        "peak_mb": max(memory),
        "growth_mb": growth(memory) * 1000 / frames if frames >= LONG_CLIP else None,
    }


def watch_memory(process: subprocess.Popen[str]) -> list[float]:
    """Sample the resident megabytes of a running command until it ends."""
    status = Path(f"/proc/{process.pid}/statm")
    samples: list[float] = []
    page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            samples.append(int(status.read_text().split()[1]) * page_mb)
        time.sleep(0.02)
    return samples


def growth(memory: list[float]) -> float:
    """Megabytes gained over the whole run at the slope of its second half."""
    half = memory[len(memory) // 2 : -2]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0]) * len(memory)


def time_first_picture(setting: Setting, folder: Path) -> float:
    """Seconds from starting the command to its end when it writes only one picture."""
    command = command_for(setting, folder / "first.png", setting.backend)
    start = time.perf_counter()
    subprocess.run([*command, "--frame", "0"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def count_frames(path: Path) -> int:
    with FileSource(path) as source:
        return sum(1 for _ in source)


def measure_latency(setting: Setting, folder: Path) -> dict[str, float]:
    """Time from a frame's leaving the decoder to its being handed to the encoder, per frame."""
    run = ObservedRun(setting.clip, str(folder / "latency.mp4"), choice_of(setting))
    run.observe()
    return {f"latency_{name}": value for name, value in run.latency_ms().items()}


def show(title: str, values: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:18} {value}")


def show_stages(stages: dict[str, dict[str, float]], ceiling: float) -> None:
    print(f"\n{'stage alone':12} {'CPU ms':>8} {'wall ms':>8} {'p95 ms':>8}")
    for name, row in stages.items():
        print(f"{name:12} {row['cpu_ms']:8.2f} {row['wall_ms']:8.2f} {row['wall_p95_ms']:8.2f}")
    total = sum(row["cpu_ms"] for row in stages.values())
    print(f"{'sum':12} {total:8.2f}            ceiling {ceiling:.1f} fps on {usable_cores()} cores")


if __name__ == "__main__":
    main()
