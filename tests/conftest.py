"""What every test may use: small clips, the command line in a subprocess, a watch on threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cli_here import CliHere
from numpy.typing import NDArray

from vidmatte.frames import layout_of
from vidmatte.jobs import Cut, EncodingChoice, RunResult
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun, MattingChoice
from vidmatte.sinks.plan import Content

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("VIDMATTE_SHARED", Path(__file__).parents[2] / "shared"))
THREADS_END_S = 2.0
CLI_TIMEOUT_S = 30.0
AUDIO_RATE = 48000
LOSSLESS = EncodingChoice(codec="ffv1")


@pytest.fixture(scope="session", autouse=True)
def usual_umask() -> Iterator[None]:
    """Make what tests make writable for its owner alone: a shared store of weights is refused."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves one of our threads running."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("vidmatte"):
            thread.join(THREADS_END_S)
            assert not thread.is_alive(), f"leaked thread {thread.name}"


@pytest.fixture
def gpu() -> int:
    """The GPU to test on; skips where there is none, unless one is required."""
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("VIDMATTE_REQUIRE_CUDA") == "1":
            pytest.fail("VIDMATTE_REQUIRE_CUDA=1 and torch sees no GPU")
        pytest.skip("needs an NVIDIA GPU")
    return 0


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: on small tensors several only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Cli:
    """Starts `python -m vidmatte` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "VIDMATTE_"))}
        self.env |= {"HOME": str(home)}
        self.env |= dict.fromkeys(("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"), str(home))
        self.env["PYTHONPATH"] = str(REPOSITORY)

    def start(self, *args: object, shell_prefix: str = "", **streams: Any) -> subprocess.Popen[str]:
        """Start it; `shell_prefix` (like "ulimit -f 100;") runs first in the same process."""
        command = [sys.executable, "-W", "error", "-m", "vidmatte", *map(str, args)]
        if shell_prefix:
            command = ["bash", "-c", f'{shell_prefix} exec "$@"', "bash", *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
        return subprocess.Popen(command, env=self.env, **pipes)

    def __call__(
        self, *args: object, timeout: float = CLI_TIMEOUT_S, shell_prefix: str = "", **streams: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; raises TimeoutExpired after killing it."""
        streams.setdefault("stdin", subprocess.DEVNULL)
        process = self.start(*args, shell_prefix=shell_prefix, **streams)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def run_cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """`run_cli(*args, timeout=...)` runs the real command and returns what it did."""
    return Cli(tmp_path_factory.mktemp("home"))


@pytest.fixture
def cli_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CliHere:
    """`cli_here(*args)` runs the command inside this process, which takes a tenth of the time."""
    return CliHere(monkeypatch, capfd)


def run_file(
    source: Path | str,
    *outputs: Path | str,
    backend: str = "null",
    contents: tuple[Content, ...] = (),
    temporal: bool = True,
    encoding: EncodingChoice | None = None,
    cut: Cut | None = None,
    background: str = "green",
    overwrite: bool = False,
    strict: bool = False,
    stop: Stop | None = None,
) -> RunResult:
    """Run one file in this process, by default with the matte that is all ones."""
    kinds = contents or ("opaque",) * len(outputs)
    job = FileRun(
        str(source),
        {str(output): kind for output, kind in zip(outputs, kinds, strict=True)},
        background=background,
        matting=MattingChoice(backend=backend, temporal=temporal),
        encoding=encoding,
        cut=cut,
        overwrite=overwrite,
        strict=strict,
    )
    return job.run(stop or Stop())


def fill_picture(picture: av.VideoFrame, index: int) -> None:
    """Paint a moving gradient with fine noise into every plane, as deep as the format is."""
    layout = layout_of(picture.format.name)
    peak = 255 if layout is None else layout.peak
    sample = np.dtype(np.uint8 if peak <= 255 else "<u2")
    noise = np.random.default_rng(index)
    for number, plane in enumerate(picture.planes):
        rows = np.frombuffer(memoryview(plane), np.uint8).view(sample)
        rows = rows.reshape(plane.height, -1)
        y, x = np.mgrid[: rows.shape[0], : rows.shape[1]]
        ramp = 0.2 + 0.6 * (((x + y + 3 * index) % 97) / 97 if number == 0 else y / rows.shape[0])
        rows[...] = np.clip(ramp * peak + noise.normal(0, peak / 60, rows.shape), 0, peak)


def make_clip(
    path: Path,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    colour: tuple[int, int, int, int] = (2, 0, 2, 2),
    sar: Fraction = Fraction(1),
    display_matrix: list[int] | None = None,
    field_order: str | None = None,
    audio: str | None = None,
    audio_s: float | None = None,
    audio_start_s: float = 0.0,
    audio_first: bool | None = None,
    metadata: dict[str, str] | None = None,
    chapters: int = 0,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write a small clip.

    `pts` counts `time_base` (default: one per frame at `rate`). `colour` is matrix, range,
    primaries, transfer. `audio_first` puts all the sound before (True) or after (False) the
    pictures in the file; None interleaves.
    """
    base = time_base or 1 / Fraction(rate)
    with av.open(str(path), "w", options=muxer or {}) as container:
        container.metadata.update(metadata or {})
        video = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        assert isinstance(video, av.VideoStream)
        context = video.codec_context
        context.width, context.height = size
        context.pix_fmt, context.time_base, context.gop_size = pix_fmt, base, gop
        context.colorspace, context.color_range = colour[:2]
        context.color_primaries, context.color_trc = colour[2:]
        context.sample_aspect_ratio = video.sample_aspect_ratio = sar
        if display_matrix is not None:
            video.set_display_matrix(display_matrix)
        if chapters:
            container.set_chapters([_chapter(n) for n in range(chapters)])
        sound: list[av.Packet[Any]] = []
        if audio is not None:
            length_s = frames / float(rate) if audio_s is None else audio_s
            sound = _sound(container, audio, length_s, audio_start_s)
        pictures = _video_packets(video, frames, pts, base, field_order)
        _mux_all(container, pictures, sound, audio_first)
    return path


def _video_packets(
    video: av.VideoStream,
    frames: int,
    pts: list[int] | None,
    base: Fraction,
    field_order: str | None,
) -> list[av.Packet[Any]]:
    context = video.codec_context
    if field_order is not None:
        context.flags |= (1 << 18) | (1 << 29)
        context.options = context.options | {"x264-params": f"{field_order}=1"}
    packets: list[av.Packet[Any]] = []
    for index in range(frames):
        picture = av.VideoFrame(context.width, context.height, context.pix_fmt)
        fill_picture(picture, index)
        picture.pts, picture.time_base = index if pts is None else pts[index], base
        packets += video.encode(picture)
    return packets + video.encode(None)


def _sound(
    container: av.container.OutputContainer, codec: str, length_s: float, start_s: float
) -> list[av.Packet[Any]]:
    stream = container.add_stream(codec, rate=AUDIO_RATE, layout="mono")
    assert isinstance(stream, av.AudioStream)
    stream.metadata["language"] = "eng"
    sample_format = stream.codec_context.codec.audio_formats[0].name  # type: ignore[index]
    resampler = av.AudioResampler(sample_format, "mono", AUDIO_RATE)
    packets: list[av.Packet[Any]] = []
    for start in range(0, int(length_s * AUDIO_RATE), 960):
        time = np.arange(start, start + 960) / AUDIO_RATE
        wave = (np.sin(2 * np.pi * 440 * time) / 4).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
        frame.sample_rate, frame.time_base = AUDIO_RATE, Fraction(1, AUDIO_RATE)
        frame.pts = start + int(start_s * AUDIO_RATE)
        for ready in resampler.resample(frame):
            packets += stream.encode(ready)
    return packets + stream.encode(None)


def _mux_all(
    container: av.container.OutputContainer,
    pictures: list[av.Packet[Any]],
    sound: list[av.Packet[Any]],
    audio_first: bool | None,
) -> None:
    if audio_first is None:
        everything = sorted(pictures + sound, key=_decode_time)
    else:
        everything = sound + pictures if audio_first else pictures + sound
    container.start_encoding()
    for packet in everything:
        container.mux(packet)


def _decode_time(packet: av.Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base


def _chapter(number: int) -> Any:
    return {
        "id": number + 1,
        "start": number * 100,
        "end": number * 100 + 100,
        "time_base": Fraction(1, 1000),
        "metadata": {"title": f"part {number}"},
    }


def decode(path: Path | str) -> list[av.VideoFrame]:
    """Decode every picture of a file."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path | str) -> list[Fraction]:
    """Presentation times in seconds of every picture, as a decoder gives them."""
    return [f.pts * f.time_base for f in decode(path) if f.pts is not None and f.time_base]


def plane_arrays(picture: av.VideoFrame) -> list[NDArray[Any]]:
    """Copy the visible bytes of each plane."""
    layout = layout_of(picture.format.name)
    wide = 1 if layout is None or layout.bits <= 8 else 2
    arrays = []
    for number, plane in enumerate(picture.planes):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        pixel = wide if layout is not None else picture.format.padded_bits_per_pixel // 8
        if layout is None and len(picture.planes) > 1:
            pixel = number + 1  # nv12
        arrays.append(rows[:, : plane.width * pixel].copy())
    return arrays


def digest(picture: av.VideoFrame) -> str:
    """Hash the visible samples of a picture."""
    return hashlib.sha256(b"".join(a.tobytes() for a in plane_arrays(picture))).hexdigest()


def packets_of(path: Path | str, kind: str) -> list[tuple[Fraction, bytes]]:
    """Time and bytes of every packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None and packet.time_base is not None
        ]


def leftovers(folder: Path, *expected: str) -> list[str]:
    """Names in a folder beyond the expected ones."""
    return sorted(p.name for p in folder.iterdir() if p.name not in expected)


Predicate = Callable[[], bool]


def wait_until(condition: Predicate, timeout_s: float = 10.0) -> None:
    """Wait for something another process does; fail when it does not come."""
    import time

    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
