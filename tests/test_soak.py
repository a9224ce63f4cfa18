"""Nothing grows with the length of a video or the number of runs: memory, threads, descriptors.

Memory is what the kernel counts (RssAnon after malloc_trim), since the pictures are not Python's.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli, make_clip

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(300),  # 15 s at most on two idle cores; a minute where six share them
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

# As many samples as 64×48, and a network input of 320×64, the smallest `live` takes.
SIZE = (128, 24)
MB_PER_1000_FRAMES = 1.0  # the mp4 muxer's index, 180 bytes per frame with its sound, is .2 of it
WARM_FRAMES = 500  # encoder, allocators and temporal state have what they need by then
# Runs fill what the last one left in holes of up to 3 MB; a decoder or encoder kept takes .5 MB.
MB_OVER_RUNS = 5.0
QUICK, LONG, FILES, FRAMES_PER_FILE = 2500, 20000, 200, 4


@dataclass(frozen=True, slots=True)
class Soak:
    """What a process held: one sample per list place."""

    frames: int
    done: list[int]
    memory_mb: list[float]
    threads: list[int]
    descriptors: list[int]

    def change(self, values: list[float] | list[int], first_done: int = 0) -> float:
        """How much the median of the last third is above that of the first, after a start."""
        kept = [v for v, done in zip(values, self.done, strict=True) if done >= first_done]
        third = len(kept) // 3
        assert third >= 5, "too few samples"
        return statistics.median(kept[-third:]) - statistics.median(kept[:third])

    def mb_per_1000_frames(self) -> float:
        """Growth once everything is warm; the thirds' middles are two thirds of it apart."""
        between = (self.done[-1] - WARM_FRAMES) * 2 / 3
        return self.change(self.memory_mb, WARM_FRAMES) / between * 1000


def soak(
    cli: Cli, kind: str, source: Path, output: Path, backend: str, limit_s: float = 280
) -> Soak:
    script = Path(__file__).with_name("soaking.py")
    command = [sys.executable, str(script), kind, str(source), str(output), backend]
    done = subprocess.run(
        command, env=cli.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit_s
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    columns = {key: [s[key] for s in told["samples"]] for key in told["samples"][0]}
    return Soak(told["frames"], **columns)


def clip(path: Path, frames: int) -> Path:
    return make_clip(path, frames, SIZE, audio="aac", options={"preset": "ultrafast"})


def check_long(held: Soak, frames: int) -> None:
    assert held.frames == frames
    assert held.mb_per_1000_frames() < MB_PER_1000_FRAMES
    assert held.change(held.threads, WARM_FRAMES) <= 0
    assert held.change(held.descriptors, WARM_FRAMES) <= 0


def check_runs(held: Soak, frames: int) -> None:
    assert held.frames == frames
    assert held.change(held.memory_mb, frames // 4) < MB_OVER_RUNS
    assert held.change(held.threads) <= 0
    assert held.change(held.descriptors) <= 0


def test_a_run_of_2500_frames_holds_nothing_more_at_its_end(tmp_path: Path, run_cli: Cli) -> None:
    source = clip(tmp_path / "s.mp4", QUICK)
    check_long(soak(run_cli, "long", source, tmp_path / "o.mp4", "auto"), QUICK)


def test_one_picture_kept_per_frame_would_be_seen(tmp_path: Path, run_cli: Cli) -> None:
    source = clip(tmp_path / "s.mp4", 2000)
    held = soak(run_cli, "leaky", source, tmp_path / "o.mp4", "null")
    picture_mb = SIZE[0] * SIZE[1] * 1.5 / 2**20
    assert held.mb_per_1000_frames() > max(MB_PER_1000_FRAMES, 700 * picture_mb)


def test_a_folder_of_200_files_holds_nothing_more_at_its_end(tmp_path: Path, run_cli: Cli) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first = clip(folder / "000.mp4", FRAMES_PER_FILE)
    for number in range(1, FILES):
        shutil.copy(first, folder / f"{number:03d}.mp4")
    held = soak(run_cli, "folder", folder, tmp_path / "out", "auto")
    check_runs(held, FILES * FRAMES_PER_FILE)


def test_calls_from_python_hold_nothing_more_at_their_end(tmp_path: Path, run_cli: Cli) -> None:
    source = clip(tmp_path / "s.mp4", FRAMES_PER_FILE)
    held = soak(run_cli, "calls", source, tmp_path / "o.mp4", "auto")
    check_runs(held, held.frames)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_of_20000_frames_holds_nothing_more_at_its_end(tmp_path: Path, run_cli: Cli) -> None:
    source = clip(tmp_path / "s.mp4", LONG)
    check_long(soak(run_cli, "long", source, tmp_path / "o.mp4", "auto", limit_s=3000), LONG)
