"""What `vidmatte run` tells about a folder: each file's end at once, the failed ones again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from vidmatte.batch import FolderPlan, JobOutcome, Start, run_folder
from vidmatte.jobs import Progress

if TYPE_CHECKING:
    from vidmatte.cli.console import Console
    from vidmatte.pipeline import Stop


def run_plan(
    plan: FolderPlan, start: Start, stop: Stop, console: Console, *, more: Sequence[Start] = ()
) -> int:
    """Do the plan's jobs and return the exit code: 1 if one failed, 130 or 143 if stopped.

    `more` has a further `start` for every further device, see `run_folder`.
    """
    total = len(plan.jobs)

    def progress(running: Mapping[int, Progress]) -> None:
        numbers = ", ".join(map(str, running))
        console.label = f"file{'s' * (len(running) > 1)} {numbers} of {total}  "
        console.progress(_together(list(running.values())))

    failed: list[JobOutcome] = []
    done = 0
    for outcome in run_folder(plan, start, stop, progress, more=more):
        if outcome.error is not None:
            console.show_error(outcome.error, str(outcome.job.source))
            failed.append(outcome)
        elif outcome.result is not None:
            console.show(outcome.result, str(outcome.job.source))
            done += outcome.result.stopped_by is None
    console.say(_summary(plan, done, len(failed)))
    for outcome in failed:
        console.say(f"failed: {outcome.job.source}")
    if stop.reason is not None:
        return 128 + stop.reason
    return 1 if failed else 0


def _together(running: Sequence[Progress]) -> Progress:
    """Sum up runs side by side as one, which is as fast as they are together."""
    if len(running) == 1:
        return running[0]
    frames = sum(progress.frames for progress in running)
    fps = sum(progress.frames / progress.elapsed_s for progress in running if progress.elapsed_s)
    expected = [progress.expected_frames for progress in running]
    known = [count for count in expected if count is not None]
    total = sum(known) if len(known) == len(expected) else None
    return Progress(frames, frames / fps if fps else 0.0, total, Fraction(0))


def _summary(plan: FolderPlan, done: int, failed: int) -> str:
    parts = [f"{done} of {len(plan.jobs)} files done"]
    if failed:
        parts.append(f"{failed} failed")
    if plan.finished:
        parts.append(f"{plan.finished} finished before")
    if plan.others:
        parts.append(f"{plan.others} other file{'s' if plan.others > 1 else ''} left alone")
    return ", ".join(parts)
