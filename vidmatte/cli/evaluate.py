"""`vidmatte evaluate`: measure mattes against the truth."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vidmatte.cli.ticker import Ticker
from vidmatte.errors import UsageError, printable

if TYPE_CHECKING:
    from vidmatte.backends import Precision
    from vidmatte.cli.console import Console
    from vidmatte.evaluation.predictions import Mode, Pair, Predictor
    from vidmatte.evaluation.saliency import Scores
    from vidmatte.evaluation.video_metrics import Metric
    from vidmatte.pipeline import Stop

    Decorator = Callable[[Callable[..., int]], Callable[..., int]]
    Targets = dict[str, tuple[Path | None, tuple[str, ...]]]

STDOUT = Path("-")


def _path(option: str, metavar: str, text: str, *, required: bool = False) -> Decorator:
    kind = click.Path(path_type=Path)
    return click.option(option, type=kind, metavar=metavar, required=required, help=text)


@click.group()
def evaluate() -> None:
    """Measure mattes against the truth: of pictures, or of a video.

    Example: vidmatte evaluate video --pred matte.mkv --truth truth.mkv
    """


@evaluate.command()
@_path("--images", "FOLDER", "Pictures.", required=True)
@_path("--masks", "FOLDER", "Their masks, of the same names: a.png for a.jpg.", required=True)
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="Model; several may be given. Default: live.")  # fmt: skip
@click.option("--weights", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Your own weights file; several may be given.")  # fmt: skip
@click.option("--pred", "folders", multiple=True, metavar="NAME=FOLDER",
              help="Finished mattes; several may be given.")  # fmt: skip
@click.option("--official", is_flag=True,
              help="As the U²-Net authors: 320x320, every result stretched to 0..1.")  # fmt: skip
@click.option("--raw", is_flag=True, help="The network's answer, without refinement and curve.")
@click.option("--size", type=click.IntRange(64, 2048), metavar="PIXELS",
              help="Longer side of the network's picture. Default: 320.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--backend", default="auto", show_default=True, help="auto, openvino, torch, null.")
@click.option("--precision", type=click.Choice(["auto", "f32", "f16", "bf16", "int8"]),
              default="auto", show_default=True,
              help="Arithmetic of the network; auto is f32 with --official.")  # fmt: skip
@_path("--json", "FILE", "Write scores and curves as JSON; - prints them in place of the table.")
@_path("--csv", "FILE", "Write the table as CSV.")
@_path("--plot", "FILE", "Draw the curves, and size against score: .png or .svg.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Print results, errors and warnings only.")
def saliency(
    images: Path,
    masks: Path,
    *,
    models: tuple[str, ...],
    weights: tuple[Path, ...],
    folders: tuple[str, ...],
    official: bool,
    raw: bool,
    size: int | None,
    device: str,
    backend: str,
    precision: Precision,
    json: Path | None,
    csv: Path | None,
    plot: Path | None,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Score mattes of pictures against masks: F, S and E measures, and MAE.

    Mattes are scored as `vidmatte run` makes them: nothing is stretched. --official repeats the
    published procedure instead, so that published numbers can be checked.

    Example: vidmatte evaluate saliency --images DIR --masks DIR --model live --model u2netp
    """
    console, stop = _begin(quiet=quiet)
    from vidmatte.evaluation.predictions import check_sizes, predictors_for
    from vidmatte.matting import MattingChoice

    mode = _mode(official=official, raw=raw, size=size)
    _check_packages(plots=plot is not None)
    found = _found_pairs(images, masks, console)
    targets: Targets = {
        "--json": (json, ()),
        "--csv": (csv, ()),
        "--plot": (plot, (".png", ".svg")),
    }
    _check(targets, [str(path) for pair in found for path in pair], overwrite=overwrite)
    pairs = check_sizes(found, Ticker(console, stop).leave_if_asked)
    choice = MattingChoice(None, None, backend, device, precision)
    predictors = predictors_for(models, weights, folders, pairs, mode, choice, size or 320)
    scores = _scored(predictors, pairs, console, stop)
    plural = "s" * (len(pairs) != 1)
    title = f"{printable(images)}: {len(pairs)} picture{plural}, {mode}"
    _write_saliency(scores, title, mode, json, csv, plot, overwrite=overwrite)
    return 0


def _begin(*, quiet: bool) -> tuple[Console, Stop]:
    from vidmatte.cli.console import Console, watch_signals
    from vidmatte.pipeline import Stop

    stop = Stop()
    watch_signals(stop)  # before the imports that take time
    return Console(quiet=quiet, as_json=False), stop


def _mode(*, official: bool, raw: bool, size: int | None) -> Mode:
    if official and raw:
        raise UsageError("--official and --raw exclude each other", hint="leave one out")
    if official and size is not None:
        raise UsageError("--official is at 320x320, --size is for others", hint="leave one out")
    return "official" if official else "raw" if raw else "matte"


def _check_packages(*, plots: bool) -> None:
    from vidmatte.evaluation.saliency import load_pysodmetrics
    from vidmatte.results import load_figure

    load_pysodmetrics()
    if plots:
        load_figure()


def _found_pairs(images: Path, masks: Path, console: Console) -> list[tuple[Path, Path]]:
    from vidmatte.pairs import find_pairs, some

    pairs = find_pairs(images, masks)
    if pairs.alone:
        names = some([path.name for path in pairs.alone])
        console.warn(f"{len(pairs.alone)} without a partner left out: {names}")
    return pairs.found


def _check(targets: Targets, inputs: Sequence[str], *, overwrite: bool) -> None:
    from vidmatte.results import check_results

    files = {option: target for option, target in targets.items() if target[0] != STDOUT}
    check_results(files, inputs, overwrite=overwrite)


def _scored(
    predictors: Sequence[Predictor], pairs: Sequence[Pair], console: Console, stop: Stop
) -> list[Scores]:
    from vidmatte.evaluation.saliency import score
    from vidmatte.jobs import Progress

    console.noun = "picture"
    show = Ticker(console, stop)
    started_s, done, total = time.monotonic(), 0, len(predictors) * len(pairs)

    def each() -> None:
        nonlocal done
        done += 1
        show(Progress(done, time.monotonic() - started_s, total, Fraction(0)))

    scores = []
    for predictor in predictors:
        console.label = f"{printable(predictor.label)}  "
        scores.append(score(predictor, pairs, each))
        console.clear()
        if predictor.parameters is not None:
            facts = predictor.facts
            console.say(f"note: weights {facts['weights']}: SHA-256 {facts['sha256']}")
            console.say(f"note: {predictor.label} with {facts['backend']}")
    return scores


def _write_saliency(
    scores: Sequence[Scores],
    title: str,
    mode: Mode,
    json: Path | None,
    csv: Path | None,
    plot: Path | None,
    *,
    overwrite: bool,
) -> None:
    from vidmatte.evaluation.plots import plot_scores
    from vidmatte.evaluation.tables import saliency_csv, saliency_json, saliency_table
    from vidmatte.results import write_result

    if csv is not None:
        write_result(csv, saliency_csv(scores), overwrite=overwrite)
    if plot is not None:
        data = plot_scores(scores, title, plot.suffix.lower()[1:])
        write_result(plot, data, overwrite=overwrite)
    text = f"{title}\n{saliency_table(scores)}\n"
    _write_document(json, saliency_json(scores, mode), text, overwrite=overwrite)


def _write_document(json: Path | None, document: bytes, text: str, *, overwrite: bool) -> None:
    """Write the document where it is wanted; print the text unless the document is printed."""
    from vidmatte.results import write_result

    if json is not None and json != STDOUT:
        write_result(json, document, overwrite=overwrite)
    sys.stdout.write(document.decode() if json == STDOUT else text)


@evaluate.command()
@click.option("--pred", "prediction", required=True, metavar="INPUT",
              help="The mattes: a video, frame_%04d.png, or a folder of these.")  # fmt: skip
@click.option("--truth", required=True, metavar="INPUT", help="The true mattes, likewise.")
@click.option("--no-conn", is_flag=True, help="Leave Conn out: several times as fast.")
@_path("--json", "FILE", "Write all errors as JSON; - prints them in place of the table.")
@_path("--csv", "FILE", "Write a line of errors per frame as CSV.")
@_path("--contact", "FILE", "Show the worst moments on a sheet: .png.")
@click.option("--by", type=click.Choice(["mad", "mse", "grad", "conn", "dtssd"]), default="mad",
              show_default=True, help="What makes a moment the worst.")  # fmt: skip
@click.option("--moments", type=click.IntRange(1, 24), default=6, show_default=True,
              help="How many moments.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Print results, errors and warnings only.")
def video(
    prediction: str,
    truth: str,
    *,
    no_conn: bool,
    json: Path | None,
    csv: Path | None,
    contact: Path | None,
    by: Metric,
    moments: int,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Compare a video's mattes with the truth: MAD, MSE, Grad, Conn and dtSSD.

    Mattes are grey, or the alpha channel of what they are read from. The scales are those that
    Robust Video Matting publishes.

    Example: vidmatte evaluate video --pred matte.mkv --truth truth_%04d.png --contact worst.png
    """
    console, stop = _begin(quiet=quiet)
    from vidmatte.evaluation.contact import contact_sheet
    from vidmatte.evaluation.reading import open_mattes
    from vidmatte.evaluation.tables import VIDEO_NAMES, video_csv, video_json, video_table
    from vidmatte.evaluation.video import compare
    from vidmatte.evaluation.video import moments as read_moments
    from vidmatte.results import load_figure, write_result

    if no_conn and by == "conn":
        raise UsageError("--by conn and --no-conn exclude each other", hint="leave one out")
    if contact is not None:
        load_figure()
    inputs = [file for name in (prediction, truth) for file in open_mattes(name).files]
    targets: Targets = {"--json": (json, ()), "--csv": (csv, ()), "--contact": (contact, (".png",))}
    _check(targets, inputs, overwrite=overwrite)
    found = compare(prediction, truth, conn=not no_conn, each=Ticker(console, stop))
    for warning in found.warnings:
        console.warn(warning)
    console.clear()
    if csv is not None:
        write_result(csv, video_csv(found), overwrite=overwrite)
    if contact is not None:
        worst = read_moments(
            prediction, truth, found, by, moments, Ticker(console, stop).leave_if_asked
        )
        title = f"{printable(Path(prediction).name)}: worst {VIDEO_NAMES[by]}"
        write_result(contact, contact_sheet(worst, VIDEO_NAMES[by], title), overwrite=overwrite)
    names = {"prediction": printable(prediction), "truth": printable(truth)}
    document = video_json(names, found, by, moments)
    _write_document(json, document, f"{video_table(found)}\n", overwrite=overwrite)
    return 0
