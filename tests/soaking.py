"""Run for long, or often, in one process and print what it holds as it goes: JSON on stdout.

soaking.py long|leaky|folder|calls SOURCE OUTPUT BACKEND
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

import vidmatte
from vidmatte.batch import plan_folder, run_folder
from vidmatte.matting import MattingChoice, NetworkKeeper
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun
from vidmatte.sinks.file import FileSink

CALLS, EVERY = 20, 25
LIBC = ctypes.CDLL(None)
samples: list[dict[str, float]] = []
leaked: list[Any] = []


def sample(done: int) -> None:
    """Note what the process holds after `done` pictures: memory in MB, threads, descriptors."""
    LIBC.malloc_trim(0)  # what is free but not given back is no leak
    status = Path("/proc/self/status").read_text()
    held = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert held is not None
    samples.append({
        "done": done,
        "memory_mb": int(held[1]) / 1024,
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    })  # fmt: skip


def watch_pictures(*, keep: bool) -> None:
    """Take a sample at every EVERY pictures written; `keep` a copy of each, as a leak would."""
    original = FileSink.write
    count = itertools.count(1)

    def write(self: FileSink, picture: av.VideoFrame) -> None:
        if keep:
            leaked.append(np.array(picture.to_ndarray()))
        original(self, picture)
        done = next(count)
        if done % EVERY == 0:
            sample(done)

    FileSink.write = write  # type: ignore[method-assign]


def long(source: str, output: str, backend: str, *, keep: bool = False) -> int:
    """One run over one file."""
    watch_pictures(keep=keep)
    job = FileRun(source, {output: "opaque"}, matting=MattingChoice(backend=backend))
    return job.run(Stop()).frames


def folder(source: str, output: str, backend: str) -> int:
    """One run per file of a folder, as the command does it: one network, kept while it fits."""
    networks = NetworkKeeper()

    def start(name: str, outputs: Any) -> FileRun:
        return FileRun(name, outputs, matting=MattingChoice(backend=backend), networks=networks)

    frames = 0
    for outcome in run_folder(plan_folder(Path(source), Path(output)), start, Stop()):
        assert outcome.error is None, outcome.error
        assert outcome.result is not None
        frames += outcome.result.frames
        del outcome
        sample(frames)
    return frames


def calls(source: str, output: str, backend: str) -> int:
    """`vidmatte.run` again and again, each with a network of its own."""
    frames = 0
    for _ in range(CALLS):
        frames += vidmatte.run(source, output, backend=backend, overwrite=True).frames
        sample(frames)
    return frames


KINDS = {"long": long, "leaky": partial(long, keep=True), "folder": folder, "calls": calls}

if __name__ == "__main__":
    _, kind, *arguments = sys.argv
    print(json.dumps({"frames": KINDS[kind](*arguments), "samples": samples}))
