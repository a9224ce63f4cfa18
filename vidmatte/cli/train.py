"""`vidmatte train`: train a network on pictures and masks, or export what was trained."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from vidmatte.cli.ticker import Ticker
from vidmatte.errors import UsageError, printable

if TYPE_CHECKING:
    from vidmatte.cli.console import Console
    from vidmatte.models.registry import Model
    from vidmatte.pipeline import Stop
    from vidmatte.training.pack import Told
    from vidmatte.training.recipe import Recipe, Size
    from vidmatte.training.session import Job, Session
    from vidmatte.training.trainer import Precision

_SIZE = re.compile(r"(\d{2,4})(?:x(\d{2,4}))?", re.ASCII)


class SizesType(click.ParamType["tuple[Size, ...]"]):
    """A side in pixels or WIDTHxHEIGHT; several that take turns are joined by +."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Size, ...]:
        """Return the sizes as (width, height)."""
        found = [_SIZE.fullmatch(part) for part in str(value).split("+")]
        sizes = [(int(m[1]), int(m[2] or m[1])) for m in found if m is not None]
        if len(sizes) != len(found):
            self.fail(f"'{value}' is not a size like 256, 320x192 or 256+320x192", param, ctx)
        return tuple(sizes)


_FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--images", type=_FOLDER, multiple=True, metavar="FOLDER",
              help="Pictures; repeat with --masks for more folders.")  # fmt: skip
@click.option("--masks", type=_FOLDER, multiple=True, metavar="FOLDER",
              help="Their masks, of the same names: a.png for a.jpg.")  # fmt: skip
@click.option("-o", "--output", type=_FOLDER, default=Path("training"), metavar="FOLDER",
              show_default=True, help="Checkpoint, curves, packed pictures, weights.")  # fmt: skip
@click.option("--export", is_flag=True, help="Train nothing; export what the checkpoint holds.")
@click.option("--model", default="live", show_default=True, help="Network; see `vidmatte models`.")
@click.option("--recipe", type=click.Choice(["live", "paper"]), default="live", show_default=True,
              help="What the other options start from; paper: U²-Net as published.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Steps in all.")
@click.option("--batch", type=click.IntRange(2), help="Pictures per step and process.")
@click.option("--size", "sizes", type=SizesType(), multiple=True,
              help="Pictures' size; several share the steps, A+B take turns.")  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="Peak.")
@click.option("--seed", type=click.IntRange(0), help="Decides every crop and shuffle.")
@click.option("--start", type=click.Path(path_type=Path), metavar="FILE",
              help="Weights to start from, normalisation unfolded.")  # fmt: skip
@click.option("--keep-start", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Share of --start that the exported weights keep.")  # fmt: skip
@click.option("--teacher", metavar="NAME|FILE", help="Larger model whose mattes are learnt, too.")
@click.option("--teacher-weight", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="The teacher's share of what is learnt.")  # fmt: skip
@click.option("--pack-side", type=click.IntRange(64, 1024), default=320, show_default=True,
              help="Side of the packed pictures, pixels.")  # fmt: skip
@click.option("--held-out", type=click.IntRange(0), default=300, show_default=True,
              help="Pictures, of ten at most one, for the MAE.")  # fmt: skip
@click.option("--validate-every", type=click.IntRange(1), default=500, show_default=True,
              help="Steps between two measurements of the MAE.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: cuda where there is one.")  # fmt: skip
@click.option("--precision", type=click.Choice(["f32", "bf16", "f16"]), default="bf16",
              show_default=True, help="Arithmetic of the network; f16 on cuda alone.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores.")
@click.option("-q", "--quiet", is_flag=True, help="Print results, errors and warnings only.")
def train(
    images: tuple[Path, ...],
    masks: tuple[Path, ...],
    *,
    output: Path,
    export: bool,
    start: Path | None,
    keep_start: float,
    quiet: bool,
    **options: Any,
) -> int:
    """Train a network on pictures and their masks; the same command continues a stopped run.

    The folder holds checkpoint.pt, curves.png and, at the end, the weights in export/. Several
    GPUs: torchrun --nproc-per-node N -m vidmatte train ...

    Example: vidmatte train --images DUTS-TR-Image --masks DUTS-TR-Mask --steps 12000
    """
    from vidmatte.cli.console import Console, watch_signals
    from vidmatte.pipeline import Stop

    stop = Stop()
    watch_signals(stop)
    first = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=quiet or not first, as_json=False)
    if export:
        return _export(output, start, keep_start)
    _check(images, masks)
    job = _job(output, list(zip(images, masks, strict=True)), start=start, **options)
    session = _session(job, console, stop)
    finished = _run(session, console, stop)
    if not finished:
        assert stop.reason is not None
        kept = f"step {session.trainer.step} is in {output}; the same command continues"
        click.echo(printable(f"stopped: {kept}"), err=True)
        return 128 + stop.reason
    return _export(output, start, keep_start) if first else 0


def _check(images: tuple[Path, ...], masks: tuple[Path, ...]) -> None:
    if not images or len(images) != len(masks):
        raise UsageError(
            f"--images is given {len(images)} times, --masks {len(masks)} times",
            hint="give both, in pairs, once or more",
        )


def _job(
    output: Path,
    folders: list[tuple[Path, Path]],
    *,
    model: str,
    recipe: Literal["live", "paper"],
    teacher: str | None,
    teacher_weight: float,
    start: Path | None,
    device: str,
    precision: Precision,
    pack_side: int,
    held_out: int,
    validate_every: int,
    threads: int | None,
    **changes: Any,
) -> Job:
    from vidmatte.models.registry import row_named
    from vidmatte.training.recipe import RECIPES
    from vidmatte.training.session import Job

    row = row_named(model)
    weight = teacher_weight if teacher else 0.0
    wanted = _changed(RECIPES[recipe], changes | {"teacher_weight": weight}, row.multiple_of)
    return Job(
        output, row, wanted, folders, start, _teacher(teacher), pack_side, held_out,
        validate_every, device, precision, threads,
    )  # fmt: skip


def _changed(recipe: Recipe, changes: dict[str, Any], step: int) -> Recipe:
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    recipe = replace(recipe, **given)
    for width, height in (size for part in recipe.sizes for size in part):
        if width % step or height % step:
            raise UsageError(
                f"--size {width}x{height} does not fit the network",
                hint=f"its pictures have sides in multiples of {step}",
            )
    return replace(recipe, warmup=min(recipe.warmup, recipe.steps // 10))


def _teacher(name: str | None) -> Model | None:
    from vidmatte.models.registry import from_file, resolve_model
    from vidmatte.models.table import models

    if name is None:
        return None
    return resolve_model(name) if name in models() else from_file(Path(name))


def _session(job: Job, console: Console, stop: Stop) -> Session:
    from vidmatte.pairs import some
    from vidmatte.training.session import Session

    session = Session(job, _packing(console, stop))
    console.clear()
    for what, names in (
        ("without a partner", [str(path) for path in session.alone]),
        ("unreadable", session.unreadable),
    ):
        if names:
            console.warn(f"left out {len(names)}, {what}: {some(names)}")
    place = session.place
    console.say(
        f"{session.count} pictures, {job.recipe.steps} steps of {job.recipe.batch * place.world} "
        f"on {place.device.type} in {place.precision}"
    )
    if session.trainer.step:
        console.say(f"going on from step {session.trainer.step}")
    return session


def _packing(console: Console, stop: Stop) -> Told:
    from vidmatte.jobs import Progress

    show = Ticker(console, stop)
    console.noun = "picture"
    started: dict[str, float] = {}

    def told(what: str, done: int, count: int) -> None:
        began = started.setdefault(what, time.monotonic())
        console.label = f"{what}  "
        show(Progress(done, time.monotonic() - began, count, Fraction(0)))

    return told


def _run(session: Session, console: Console, stop: Stop) -> bool:
    from vidmatte.jobs import Progress

    show = Ticker(console)  # the session itself stops, between two steps
    began, first = time.monotonic(), session.trainer.step
    recipe = session.job.recipe
    per_step = recipe.batch * session.place.world

    def shown(loss: float, mae: float | None) -> None:
        step = session.trainer.step
        error = "" if mae is None else f", MAE {mae:.4f}"
        console.label = f"step {step} of {recipe.steps}, loss {loss:.3f}{error}  "
        done, expected = (step - first) * per_step, (recipe.steps - first) * per_step
        show(Progress(done, time.monotonic() - began, expected, Fraction(0)))

    finished = session.run(shown, lambda: stop.requested)
    console.clear()
    return finished


def _export(output: Path, start: Path | None, keep_start: float) -> int:
    from vidmatte.training.session import export_run

    done = export_run(output, start, keep_start)
    for path in done.files:
        click.echo(printable(path))
    click.echo(
        f"mean change of a matte: {done.stored_drift:.5f} as fp16, {done.int8_drift:.5f} in 8 bits"
    )
    return 0
