"""`vidmatte run`: one input, or a folder of them, without its background."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidmatte.cli.options import fit_option, network_options
from vidmatte.errors import UsageError

if TYPE_CHECKING:
    from vidmatte.backends import Precision
    from vidmatte.batch import FolderPlan, Start
    from vidmatte.frames import Samples
    from vidmatte.jobs import Cut

TRANSPARENT = "transparent"

_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)", re.ASCII)
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?:/([1-9]\d{0,8}))?")
_SIZE = re.compile(r"(\d+)x(\d+)", re.ASCII)


class TimeType(click.ParamType[float]):
    """Seconds, or [HH:]MM:SS[.mmm]."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        match = _TIME.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' is not a time like 12.5 or 01:02:03", param, ctx)
        hours, minutes, seconds = match.groups()
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)


class SizeType(click.ParamType[int]):
    """WIDTHxHEIGHT as a number of pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return width times height."""
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' is not a size like 8192x4320", param, ctx)
        return int(match[1]) * int(match[2])


class RateType(click.ParamType[Fraction]):
    """Frames per second: 25, 29.97 or 30000/1001."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fraction:
        """Return frames per second."""
        match = _RATE.fullmatch(str(value))
        rate = Fraction(match[1]) / int(match[2] or 1) if match else Fraction(0)
        if not Fraction(1, 3600) <= rate <= 1000:
            self.fail(f"'{value}' is not a rate like 25, 29.97 or 30000/1001", param, ctx)
        return rate


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", metavar="OUTPUT")
@click.option(
    "-b",
    "--background",
    default=None,
    help="Colour, picture, video, blur[:STRENGTH], or transparent. "
    "Default: green; transparent where the output's kind is made for it.",
)
@fit_option
@click.option("--alpha", "alpha_file", metavar="FILE", help="Also write the matte, losslessly.")
@click.option(
    "--foreground",
    "foreground_file",
    metavar="FILE",
    help="Also write the foreground, transparent, old background colour removed.",
)
@network_options
@click.option(
    "--wait-engine",
    is_flag=True,
    help="Wait for TensorRT's engine to be built, instead of beginning with PyTorch.",
)
@click.option("--codec", metavar="NAME", help="Video codec: h264, hevc, prores, qtrle, ffv1, vp9 …")
@click.option("--crf", type=click.IntRange(0, 63), help="Quality; lower is better. Default: 18.")
@click.option("--preset", metavar="NAME", help="Encoder preset. Default: veryfast.")
@click.option("--start", type=TimeType(), metavar="TIME", help="Begin here, e.g. 00:12.")
@click.option("--end", type=TimeType(), metavar="TIME", help="Stop before here.")
@click.option("--frame", type=TimeType(), metavar="TIME", help="Only the picture at this time.")
@click.option(
    "--rate",
    type=RateType(),
    metavar="FPS",
    help="Frames per second of numbered pictures. Default: 25.",
)
@click.option("--no-audio", is_flag=True, help="Leave the sound out.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--strict", is_flag=True, help="Make damage in the input an error.")
@click.option(
    "--max-size",
    type=SizeType(),
    metavar="WxH",
    help="Refuse pictures with more pixels. Default: 8192x4320.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Make the matte hard at this alpha.")
@click.option("--grow", type=click.IntRange(-100, 100), help="Grow the subject by pixels.")
@click.option("--feather", type=click.FloatRange(0, 100), help="Soften the edge by pixels.")
@click.option("--largest-subject", is_flag=True, help="Keep only the largest connected subject.")
@click.option("--no-temporal", is_flag=True, help="Matte every frame by itself.")
@click.option("--no-refine", is_flag=True, help="Do not fit the matte to the picture's edges.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print results as JSON, one line per input.",
)
def run(
    source: str,
    output: str,
    *,
    background: str | None,
    fit: str,
    alpha_file: str | None,
    foreground_file: str | None,
    model: str | None,
    weights: Path | None,
    device: str,
    backend: str,
    precision: Precision,
    wait_engine: bool,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    start: float | None,
    end: float | None,
    frame: float | None,
    rate: Fraction | None,
    no_audio: bool,
    overwrite: bool,
    strict: bool,
    max_size: int | None,
    threshold: float | None,
    grow: int | None,
    feather: float | None,
    largest_subject: bool,
    no_temporal: bool,
    no_refine: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Write INPUT to OUTPUT without its background.

    INPUT is a video, a picture, a folder of them (then OUTPUT is a folder too, and what is
    finished in it is skipped), pictures named like frame_%04d.png, or - for standard
    input. OUTPUT's extension says what is written: .mp4 .mkv .mov .webm .gif .apng, .png and
    .webp for pictures, frame_%04d.png for a sequence, - for standard output.

    Example: vidmatte run input.mp4 output.mp4 --background beach.jpg
    """
    from vidmatte.cli.console import Console, watch_signals
    from vidmatte.pipeline import Stop

    stop = Stop()
    watch_signals(stop)  # before the imports that take time
    from vidmatte.backends._spread import parse_devices
    from vidmatte.jobs import EncodingChoice
    from vidmatte.matting import MattingChoice, NetworkKeeper
    from vidmatte.outputs import contents_of
    from vidmatte.runner import FileRun

    console = Console(quiet=quiet or as_json, as_json=as_json)
    cut = _cut(start, end, frame)
    matting = MattingChoice(
        model, weights, backend, device, precision,
        temporal=not no_temporal,
        refinement=not no_refine,
        adjust=_adjustment(threshold, grow, feather, largest_subject=largest_subject),
        wait_engine=wait_engine,
    )  # fmt: skip
    encoding = EncodingChoice(codec, crf, preset, audio=not no_audio)

    def start_on(device: str) -> Start:
        return partial(
            FileRun,
            background=background if background not in (None, TRANSPARENT) else "green",
            fit=fit,
            matting=replace(matting, device=device),
            encoding=encoding,
            cut=cut,
            rate=rate,
            max_pixels=max_size,
            overwrite=overwrite,
            strict=strict,
            networks=NetworkKeeper(),
        )

    if not os.path.isdir(source):
        contents = contents_of(output, alpha_file, foreground_file, background)
        job = start_on(device)(source, contents)
        return console.show(job.run(stop, console.progress), source)
    if alpha_file is not None or foreground_file is not None or rate is not None:
        raise UsageError(
            "--alpha, --foreground and --rate are for one input, not for a folder",
            hint="leave them out, or name one file",
        )
    from vidmatte.cli.folder import run_plan

    plan = _folder_plan(
        source, output, background, fit, one_picture=frame is not None, overwrite=overwrite
    )
    first, *more = [start_on(name) for name in parse_devices(device)]
    return run_plan(plan, first, stop, console, more=more)


def _folder_plan(
    source: str,
    output: str,
    background: str | None,
    fit: str,
    *,
    one_picture: bool,
    overwrite: bool,
) -> FolderPlan:
    from vidmatte.backdrop import Backdrop
    from vidmatte.batch import plan_folder

    if background not in (None, TRANSPARENT):
        Backdrop(background, fit).check()  # a wrong one would fail every file
    return plan_folder(
        Path(source),
        Path(output),
        background=background,
        one_picture=one_picture,
        overwrite=overwrite,
    )


def _cut(start: float | None, end: float | None, frame: float | None) -> Cut:
    from vidmatte.jobs import Cut

    if frame is not None:
        if start is not None or end is not None:
            raise UsageError("--frame and --start/--end exclude each other", hint="leave one out")
        return Cut(start_s=frame, frames=1)
    if end is not None and end <= (start or 0.0):
        raise UsageError("--end must be after --start", hint="both count from the input's start")
    return Cut(start_s=start, end_s=end)


def _adjustment(
    threshold: float | None, grow: int | None, feather: float | None, *, largest_subject: bool
) -> Callable[[Samples], Samples] | None:
    if threshold is None and not grow and not feather and not largest_subject:
        return None
    from vidmatte.compute.cpu.adjust import adjust

    def edit(alpha: Samples) -> Samples:
        return adjust(
            alpha,
            threshold=threshold,
            grow_px=grow or 0,
            feather_px=feather or 0.0,
            largest=largest_subject,
        )

    return edit
