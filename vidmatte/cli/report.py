"""`vidmatte report`: a page about an output, where no truth is known."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING

import click

from vidmatte.cli.run import RateType, SizeType, TimeType
from vidmatte.errors import VidmatteError

if TYPE_CHECKING:
    from vidmatte.cli.console import Console
    from vidmatte.evaluation.report.analysis import Report


@click.command()
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT")
@click.option(
    "--alpha",
    metavar="FILE",
    help="The matte, as `vidmatte run --alpha FILE` writes it, where OUT is opaque.",
)
@click.option("--html", metavar="FILE", help="The page. Default: OUT with .report.html behind it.")
@click.option(
    "--fail-if",
    multiple=True,
    metavar="EXPR",
    help='Exit with 1 if, e.g., "flicker>2.0"; repeatable. Names: flicker, flicker-mean, '
    "area-jump, blob, uncertain, uncertain-mean, lost-frames, extra-frames, time-shift, drift, "
    "damage, lost-sound.",
)
@click.option("--start", type=TimeType(), metavar="TIME", help="OUT begins here in IN.")
@click.option("--end", type=TimeType(), metavar="TIME", help="OUT ends before here in IN.")
@click.option(
    "--rate",
    type=RateType(),
    metavar="FPS",
    help="Frames per second where IN is numbered pictures. Default: 25.",
)
@click.option("--overwrite", is_flag=True, help="Replace a page that exists.")
@click.option(
    "--max-size",
    type=SizeType(),
    metavar="WxH",
    help="Refuse pictures with more pixels. Default: 8192x4320.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON document.")
def report(
    source: str,
    output: str,
    *,
    alpha: str | None,
    html: str | None,
    fail_if: tuple[str, ...],
    start: float | None,
    end: float | None,
    rate: Fraction | None,
    overwrite: bool,
    max_size: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Write a page that shows how good OUT is, which `vidmatte run` has made of IN.

    OUT is transparent (.mov, .webm, .png …) or a grey matte; for an opaque one name its matte with
    --alpha. The page shows the twelve most doubtful moments, flicker, area jumps, uncertain edges,
    lost pictures and shifted times. Lengths (flicker, uncertain) are in pixels of a picture 1920
    long, areas (area-jump, blob) in percent, times in seconds.

    Example: vidmatte report input.mp4 output.mov --fail-if "lost-frames>0"
    """
    from vidmatte.cli.console import Console, watch_signals
    from vidmatte.pipeline import Stop

    stop = Stop()
    watch_signals(stop)  # before the imports that take time
    from vidmatte.evaluation.report.analysis import ReportRun
    from vidmatte.evaluation.report.limits import limit_of

    console = Console(quiet=quiet or as_json, as_json=as_json)
    job = ReportRun(
        source,
        output,
        html,
        alpha=alpha,
        limits=[limit_of(expression) for expression in fail_if],
        start_s=start,
        end_s=end,
        rate=rate,
        max_pixels=max_size,
        overwrite=overwrite,
    )
    found = job.run(stop, console.progress)
    if found is None:
        assert stop.reason is not None
        return 128 + stop.reason
    _show(found, console, as_json=as_json)
    if found.passed:
        raise VidmatteError(
            f"{output}: {'; '.join(found.passed)}", hint=f"the page shows where: {found.page}"
        )
    return 0


def _show(found: Report, console: Console, *, as_json: bool) -> None:
    """Print warnings, notes, the checks and the last line, or the document."""
    from vidmatte.evaluation.report.checks import checks_of
    from vidmatte.evaluation.report.document import document_of

    console.clear()
    for line in found.damage:
        console.warn(line)
    for note in found.notes:
        console.say(f"note: {note}")
    if as_json:
        click.echo(json.dumps(document_of(found)))
        return
    for check in checks_of(found):
        line = f"{found.output.name}: {check.title.lower()}: {check.text}"
        if check.title == "Damage":  # has been told
            continue
        if check.grade == "bad":
            console.warn(line)
        elif check.grade == "look":
            console.say(f"note: {line}")
    frames = found.rhythm.count
    fps = frames / found.elapsed_s if found.elapsed_s else 0.0
    console.say(
        f"{found.page}: {frames} frame{'' if frames == 1 else 's'} in {found.elapsed_s:.1f} s, "
        f"{fps:.1f} fps"
    )
