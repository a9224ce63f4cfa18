"""vidmatte beside backgroundremover and rembg: whole commands, one clip, the same u2netp weights.

    python benchmarks/peers.py --u2netp FILE [--clip FILE | --size 1280x720] [--frames 90]
                               [--backgroundremover-python PATH] [--rembg-python PATH]
                               [--outputs mp4 mov] [--repeat 2] [--json FILE]

Each peer lives in an environment of its own, whose Python a flag names; a peer without one, or
one that cannot be made to run, is a row that says "not run" and why. Everybody writes the same
two things: the clip over green (.mp4, H.264) and transparent (.mov, ProRes 4444), by the commands
that a user would type; starting, decoding and encoding count. Runs alternate in order. Checks
that frames out equal frames in and that a subject was found; prints seconds of wall and CPU
time, and how many times as fast vidmatte is. The last line of stdout is one JSON document.
Needs ffmpeg for the peers, and the package onnx to hand rembg its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import av
import numpy as np
from machine import machine_card
from peer_weights import write_onnx, write_pth

from vidmatte.models.registry import from_file

Output = Literal["mp4", "mov"]
Pipe = Sequence[Sequence[str]]  # commands joined by pipes, each a list of arguments

START_LIMIT_S, FRAME_LIMIT_S = 60, 2  # a peer whose worker dies waits for it for ever
PROBE_LIMIT_S = 300  # a first import compiles for a minute
GREEN = (0, 255, 0)
COVERED = 60  # green above red and blue by less than this is no background
PREVIEW_PX = (160, 90)


class FailedError(Exception):
    """A run did not end well; the message says how, in one line."""


@dataclass(frozen=True)
class Job:
    """What everybody is given."""

    clip: Path
    frames: int
    rate: str
    size: tuple[int, int]
    weights: Path
    backend: str
    folder: Path

    @property
    def green(self) -> Path:
        """A green video of the clip's size, rate and length."""
        return self.folder / "green.mp4"

    @property
    def limit_s(self) -> float:
        """How long one run may take."""
        return START_LIMIT_S + FRAME_LIMIT_S * self.frames


class Tool(Protocol):
    """One row's program."""

    @property
    def name(self) -> str:
        """Its name in the table."""

    @property
    def environment(self) -> dict[str, str]:
        """Its environment variables."""

    def steps(self, job: Job, output: Output, path: Path) -> list[Pipe]:
        """Return the commands, one after the other, that write `path`."""


@dataclass(frozen=True)
class Vidmatte:
    """Ourselves, by the command of the README."""

    model: str

    @property
    def name(self) -> str:
        return f"vidmatte {self.model}"

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def steps(self, job: Job, output: Output, path: Path) -> list[Pipe]:
        command = [sys.executable, "-m", "vidmatte", "run", str(job.clip), str(path), "--quiet"]
        command += ["--model", self.model, "--backend", job.backend]
        if self.model == "u2netp":
            command += ["--weights", str(job.weights)]
        return [[command]]


def peer_environment(python: Path) -> dict[str, str]:
    """Return our environment without what would lead its Python astray or keep it from caching."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    return environment | {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


@dataclass(frozen=True)
class BackgroundRemover:
    """Its video modes: transparent, and over a green video (H.264 must be asked for).

    Over a picture, `-toi`, is broken in 0.4.5: its filter graph lacks an input.
    """

    python: Path
    weights: Path
    name: str = "backgroundremover"

    @property
    def environment(self) -> dict[str, str]:
        return peer_environment(self.python) | {"U2NETP_PATH": str(self.weights)}

    def steps(self, job: Job, output: Output, path: Path) -> list[Pipe]:
        command = [str(self.python), "-m", "backgroundremover.cmd.cli", "-m", "u2netp"]
        command += ["-i", str(job.clip), "-o", str(path)]
        if output == "mov":
            return [[[*command, "-tv"]]]
        command += ["-tov", "-bv", str(job.green)]
        return [[[*command, "--alpha-codec", "libx264", "--alpha-pix-fmt", "yuv420p"]]]


@dataclass(frozen=True)
class Rembg:
    """Its way for video: ffmpeg pipes RGB into `rembg b`, which writes PNGs; ffmpeg joins them."""

    python: Path
    home: Path
    name: str = "rembg"

    @property
    def environment(self) -> dict[str, str]:
        own = {"U2NET_HOME": str(self.home), "MODEL_CHECKSUM_DISABLED": "1"}
        return peer_environment(self.python) | own

    def steps(self, job: Job, output: Output, path: Path) -> list[Pipe]:
        pictures = str(path.with_suffix("") / "%05d.png")
        decode = [*FFMPEG, "-i", str(job.clip), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
        matte = [str(self.python), "-c", "from rembg.cli import main; main()", "b", "-m", "u2netp"]
        if output == "mp4":
            matte += ["-bgc", *map(str, GREEN), "255"]
        matte += ["-o", pictures, *map(str, job.size)]
        encode = [*FFMPEG, "-framerate", job.rate, "-i", pictures, *ENCODINGS[output], str(path)]
        return [[decode, matte], [encode]]


FFMPEG = ("ffmpeg", "-v", "error", "-y")
# backgroundremover's reader of headers falls over a time code track, and then hangs.
PICTURES_ONLY = ("-map", "0:v:0", "-map_metadata", "-1", "-write_tmcd", "0")
ENCODINGS: dict[Output, tuple[str, ...]] = {
    "mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "mov": ("-c:v", "prores_ks", "-profile:v", "4", "-pix_fmt", "yuva444p10le"),
}


@dataclass
class Row:
    """What one tool did with one kind of output; `reason` says why there are no numbers."""

    tool: str
    output: Output
    reason: str = ""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    frames: int = 0
    matte_area: float = 0.0

    @property
    def ran(self) -> bool:
        return bool(self.wall_s) and not self.reason

    def document(self, frames_in: int) -> dict[str, Any]:
        start = {"tool": self.tool, "output": self.output}
        if not self.ran:
            return start | {"status": "not run", "reason": self.reason}
        wall_s = statistics.median(self.wall_s)
        return start | {
            "status": "ok" if self.frames == frames_in else f"{self.frames} of {frames_in} frames",
            "seconds": round(wall_s, 3),
            "cpu_seconds": round(statistics.median(self.cpu_s), 3),
            "runs_s": [round(s, 3) for s in self.wall_s],
            "frames": self.frames,
            "fps": round(frames_in / wall_s, 3),
            "matte_area": round(self.matte_area, 4),
        }


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as name:
        document = compare(options, Path(name))
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare vidmatte with its peers.")
    parser.add_argument("--u2netp", type=Path, required=True, help="u2netp weights, for everybody")
    parser.add_argument("--clip", type=Path, help="video to measure on")
    parser.add_argument("--size", default="1280x720", help="size of a generated clip")
    parser.add_argument("--frames", type=int, default=90, help="frames, at most")
    parser.add_argument("--backgroundremover-python", type=Path, help="Python that can import it")
    parser.add_argument("--rembg-python", type=Path, help="Python that can import it")
    parser.add_argument("--outputs", nargs="+", choices=get_args(Output), default=["mp4", "mov"])
    parser.add_argument("--backend", default="auto", help="vidmatte's backend")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the document here")
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    job = prepare(options, folder)
    tools: list[Tool] = [Vidmatte("u2netp"), Vidmatte("live")]
    missing: dict[str, str] = {}
    versions = {}
    for name, python in PEERS.items():
        try:
            versions[name] = probe(name, getattr(options, python))
            tools.append(set_up(name, getattr(options, python), job))
        except FailedError as exc:
            missing[name] = str(exc)
    card = make_card(job, versions)
    show_card(card)
    rows = [Row(name, kind, why) for name, why in missing.items() for kind in options.outputs]
    rows = measure(tools, options.outputs, job, options.repeat) + rows
    documents = [row.document(job.frames) for row in rows]
    show_rows(documents)
    ratios = {of: ratios_of(documents, of) for of in ("seconds", "cpu_seconds")}
    show_ratios(ratios["seconds"])
    return {"card": card, "rows": documents, "times_as_fast": ratios}


PEERS = {"backgroundremover": "backgroundremover_python", "rembg": "rembg_python"}
IMPORTS = {"backgroundremover": "backgroundremover.cmd.cli", "rembg": "rembg.cli"}


def prepare(options: argparse.Namespace, folder: Path) -> Job:
    """Make the clip."""
    clip = folder / "clip.mp4"
    if options.clip:
        cut = ["-i", str(options.clip), "-frames:v", str(options.frames), *PICTURES_ONLY]
        subprocess.run([*FFMPEG, *cut, "-c:v", "libx264", "-crf", "16", str(clip)], check=True)
    else:
        from vidmatte.sources.synthetic import SyntheticClip, write_clip

        width, height = map(int, options.size.split("x"))
        generated = SyntheticClip(width=width, height=height, frame_count=options.frames)
        write_clip(clip, generated)
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        size = stream.width, stream.height
        rate = str(stream.guessed_rate)
        frames = sum(1 for _ in container.decode(stream))
    return Job(clip, frames, rate, size, options.u2netp, options.backend, folder)


def probe(name: str, python: Path | None) -> str:
    """Import the peer once, which also fills its caches; return its version."""
    if python is None:
        raise FailedError(f"no --{name}-python")
    code = f"import importlib.metadata as m, {IMPORTS[name]}; print(m.version('{name}'))"
    try:
        result = subprocess.run(
            [python, "-c", code],
            env=peer_environment(python),
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise FailedError(f"{python.name} cannot import it: {exc}") from exc
    if result.returncode:
        raise FailedError(f"{python.name} cannot import it: {last_line(result.stderr)}")
    return last_line(result.stdout)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def set_up(name: str, python: Path, job: Job) -> Tool:
    """Give the peer the weights in the form that it loads."""
    model = from_file(job.weights, "u2netp")
    tensors = model.load()
    if name == "backgroundremover":
        path = job.folder / "u2netp.pth"
        write_pth(model.row.network, tensors, path)
        write_green(job)
        return BackgroundRemover(python, path)
    path = job.folder / "u2netp.onnx"
    try:
        write_onnx(model.row.network, tensors, path)
    except ImportError as exc:
        raise FailedError("writing its weights needs: pip install 'vidmatte[onnx]'") from exc
    return Rembg(python, job.folder)


def write_green(job: Job) -> None:
    width, height = job.size
    colour = f"color=c=0x00ff00:s={width}x{height}:r={job.rate}"
    source = ["-f", "lavfi", "-i", colour, "-frames:v", str(job.frames)]
    subprocess.run([*FFMPEG, *source, *ENCODINGS["mp4"], str(job.green)], check=True)


def measure(tools: list[Tool], outputs: list[Output], job: Job, repeat: int) -> list[Row]:
    """Run everybody `repeat` times, every second time in the opposite order."""
    rows = {(tool.name, kind): Row(tool.name, kind) for kind in outputs for tool in tools}
    once = [(tool, kind) for kind in outputs for tool in tools]
    for tool, kind in chain.from_iterable(once[:: 1 - 2 * (i % 2)] for i in range(repeat)):
        row = rows[tool.name, kind]
        if row.reason:
            continue
        try:
            run_once(tool, kind, job, row)
        except FailedError as exc:
            if isinstance(tool, Vidmatte):
                raise
            row.reason = str(exc)
    return list(rows.values())


def run_once(tool: Tool, kind: Output, job: Job, row: Row) -> None:
    path = job.folder / f"{tool.name.replace(' ', '_')}.{kind}"
    path.unlink(missing_ok=True)
    cpu, wall = children_cpu_s(), time.perf_counter()
    for pipe in tool.steps(job, kind, path):
        run_pipe(pipe, tool.environment, job)
    wall_s, cpu_s = time.perf_counter() - wall, children_cpu_s() - cpu
    frames, area = look_at(path)
    if area == 0:
        raise FailedError("its matte is empty")
    if isinstance(tool, Vidmatte):
        assert frames == job.frames, "frames out = frames in"
    row.frames, row.matte_area = frames, area
    row.wall_s.append(wall_s)
    row.cpu_s.append(cpu_s)


def children_cpu_s() -> float:
    """CPU seconds of every child that has ended, its own children included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_pipe(pipe: Pipe, environment: dict[str, str], job: Job) -> None:
    """Run commands joined by pipes; FailedError if one fails or takes too long."""
    log = job.folder / "log.txt"
    with log.open("wb") as errors:
        processes: list[subprocess.Popen[bytes]] = []
        for index, command in enumerate(pipe):
            last = index == len(pipe) - 1
            process = subprocess.Popen(
                command,
                stdin=processes[-1].stdout if processes else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if last else subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
            if processes and processes[-1].stdout:
                processes[-1].stdout.close()
            processes.append(process)
        codes = [wait(process, job.limit_s) for process in processes]
    if any(codes):
        raise FailedError(f"it ended with {codes}: {last_line(log.read_text(errors='replace'))}")


def wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Return the exit code; end the whole group of a command that hangs."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def look_at(path: Path) -> tuple[int, float]:
    """Count the frames of an output; return also the mean share of a frame that is subject."""
    areas = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(container.streams.video[0]):
                areas.append(subject_area(frame, transparent=path.suffix == ".mov"))
    except (av.FFmpegError, IndexError) as exc:
        raise FailedError(f"its output cannot be read: {exc}") from exc
    return len(areas), float(np.mean(areas)) if areas else 0.0


def subject_area(frame: av.VideoFrame, *, transparent: bool) -> float:
    small = frame.reformat(*PREVIEW_PX, "rgba").to_ndarray().astype(np.int16)
    if transparent:
        return float(small[..., 3].mean() / 255)
    green = small[..., 1] - np.maximum(small[..., 0], small[..., 2])
    return float((green < COVERED).mean())


def ratios_of(documents: list[dict[str, Any]], of: str) -> dict[str, dict[str, float]]:
    """Return, for each peer and output, how many times as long as vidmatte it took."""
    ran = {(row["tool"], row["output"]): row[of] for row in documents if of in row}
    ours = {key: value for key, value in ran.items() if key[0].startswith("vidmatte")}
    table: dict[str, dict[str, float]] = {}
    for (tool, kind), value in ran.items():
        if (tool, kind) not in ours:
            mine = {name: took for (name, output), took in ours.items() if output == kind}
            table[f"{tool} {kind}"] = {n: round(value / took, 2) for n, took in mine.items()}
    return table


def make_card(job: Job, versions: dict[str, str]) -> dict[str, Any]:
    return {
        **machine_card(),
        **versions,
        "clip": f"{job.size[0]}x{job.size[1]}, {job.frames} frames at {job.rate}",
        "backend": job.backend,
    }


def show_card(card: dict[str, Any]) -> None:
    for name, value in card.items():
        print(f"{name:18} {value}")


def show_rows(documents: list[dict[str, Any]]) -> None:
    print(
        f"\n{'':18} {'out':4} {'seconds':>8} {'CPU s':>8} {'frames':>6} {'fps':>7} {'subject':>7}"
    )
    for row in documents:
        start = f"{row['tool']:18} {row['output']:4}"
        if "fps" not in row:
            print(f"{start} not run: {row['reason']}")
            continue
        took = f"{row['seconds']:8.2f} {row['cpu_seconds']:8.2f}"
        note = "" if row["status"] == "ok" else f"  {row['status']}"
        print(f"{start} {took} {row['frames']:6} {row['fps']:7.2f} {row['matte_area']:7.3f}{note}")


def show_ratios(ratios: dict[str, dict[str, float]]) -> None:
    for peer, times in ratios.items():
        said = ", ".join(f"{name} {value:.1f} times" for name, value in times.items())
        print(f"as fast as {peer}: {said}")


if __name__ == "__main__":
    main()
