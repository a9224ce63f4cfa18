"""Whole runs over an H.264 file: into nothing, into .mp4, with no network, and decoding alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch
from gpu_clock import Deadline
from gpu_models import Zoo
from gpu_roofline import PIXEL_BYTES
from gpu_trace import traced
from observed import NULL_SINK, ObservedRun

from vidmatte.backends import usable_cores
from vidmatte.matting import MattingChoice
from vidmatte.sources._hardware import NVDEC
from vidmatte.sources.file import FileSource
from vidmatte.threads import thread_budget

RUN_S, RUN_PIXELS = 6.0, 600 * 1920 * 1080  # what one run is taken to need, by its pixels
TRACED_FRAMES = 160


@dataclass(frozen=True, slots=True)
class Clip:
    """An H.264 file of `count` frames, and some of its pictures in memory."""

    path: Path
    size: tuple[int, int]
    count: int
    pictures: Sequence[av.VideoFrame]


class Runs:
    """Runs over one clip, each with what it reached."""

    def __init__(
        self,
        zoo: Zoo,
        clip: Clip,
        device: torch.device,
        deadline: Deadline,
        names: Sequence[str],
    ) -> None:
        self._zoo, self._clip, self._device, self._deadline = zoo, clip, device, deadline
        self._names = names
        self._needs_s = RUN_S * clip.count * clip.size[0] * clip.size[1] / RUN_PIXELS
        self.decode_fps = dict(decode_fps(clip, gpu) for gpu in self._decoders())
        if device.type == "cuda" and NVDEC not in self.decode_fps:
            deadline.failed[f"decoding {clip.path.stem}"] = "the card did not: FFmpeg did instead"
        self.rows: list[dict[str, Any]] = []
        self.document = {"decode_fps": self.decode_fps, "frames": clip.count, "runs": self.rows}

    def _decoders(self) -> list[int | None]:
        """FFmpeg's own, and NVIDIA's of this card, which falls back to the former."""
        return [None] if self._device.type != "cuda" else [self._device.index or 0, None]

    def choice(self, model: str, backend: str) -> MattingChoice:
        return MattingChoice(
            model, weights=self._zoo.paths[model], backend=backend, device=str(self._device)
        )

    def measure(self) -> None:
        """Measure every network with every source and sink, beside the same with no network."""
        for sink in ("null", "mp4"):
            for model, backend in [
                ("live", "null"),
                *((name, "torch") for name in self._names),
            ]:
                self.one(model, backend, "file", sink)
        for name in self._names:
            self.one(name, "torch", "memory", "null")
        self.document["traces"] = self.traces()

    def one(self, model: str, backend: str, source: str, sink: str) -> None:
        """Run once if there is time, and compare with no network and with decoding alone."""
        what = f"run of {self._clip.path.stem}: {model}, {backend}, {source} to {sink}"
        if self._deadline.allows(what, needs_s=self._needs_s):
            with self._deadline.guarded(what):
                self._one(model, backend, source, sink)

    def _one(self, model: str, backend: str, source: str, sink: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        run = self._run(model, backend, source, sink)
        result = run.observe()
        assert result.frames == self._clip.count, f"{result.frames} frames came out"
        row = {"model": model, "backend": backend, "source": source, "sink": sink}
        row |= {"fps": result.fps, "device": result.device, "shares": result.stage_share}
        if self._device.type == "cuda":
            row["gpu_peak_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        self.rows.append(row | run.facts())
        row = self.rows[-1]
        same = [r for r in self.rows if r["backend"] == "null" and r["sink"] == sink]
        if same and source == "file":
            row["of_null"] = row["steady_fps"] / same[0]["steady_fps"]
            row["of_decode"] = row["steady_fps"] / self.decode_fps[row["decoder"]]
        print(
            f"{self._clip.path.stem:6} {model:7} {backend:6} {source:6} to {sink:5}"
            f" {row['steady_fps']:8.1f} fps, {row.get('of_null', 0):4.0%} of no network,"
            f" {row.get('of_decode', 0):4.0%} of decoding, first picture"
            f" {row['first_picture_s']:.2f} s, {row['most_in_flight']} in flight",
            flush=True,
        )

    def _run(self, model: str, backend: str, source: str, sink: str) -> ObservedRun:
        clip = self._clip
        return ObservedRun(
            clip.path,
            NULL_SINK if sink == "null" else str(clip.path.with_suffix(".out.mp4")),
            self.choice(model, backend),
            encodes=sink != "null",
            pictures=clip.pictures if source == "memory" else (),
            count=clip.count,
        )

    def traces(self) -> dict[str, Any]:
        """Return per network what the profiler saw on the device, from memory to nothing."""
        width, height = self._clip.size
        frame_bytes = int(PIXEL_BYTES * width * height)
        found = {}
        for name in self._names:
            if self._deadline.allows(f"trace of {name}", needs_s=2 * self._needs_s):
                run = self._run(name, "torch", "memory", "null")
                run.limit(TRACED_FRAMES)
                path = self._clip.path.with_suffix(".json")
                with self._deadline.guarded(f"trace of {name}"):
                    found[name] = traced(run.observe, self._device, path, frame_bytes)
        return found


def decode_fps(clip: Clip, gpu: int | None) -> tuple[str, float]:
    """Decode the file as a run does, throw the pictures away, and return who did it how fast.

    The better of two times.
    """
    best, threads = float("inf"), thread_budget(usable_cores()).decoder
    for _ in range(2):
        with FileSource(clip.path, threads=threads, gpu=gpu) as source:
            start = time.perf_counter()
            count = sum(1 for _ in source)
            best = min(best, time.perf_counter() - start)
        assert count == clip.count, f"{count} pictures decoded"
    return source.decoder_name, clip.count / best
