"""What `vidmatte run` tells about a folder: each file's end at once, the failed ones again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidmatte.batch import FolderPlan, JobOutcome, Start, run_folder

if TYPE_CHECKING:
    from vidmatte.cli.console import Console
    from vidmatte.pipeline import Stop
    from vidmatte.runner import Progress


def run_plan(plan: FolderPlan, start: Start, stop: Stop, console: Console) -> int:
    """Do the plan's jobs and return the exit code: 1 if one failed, 130 or 143 if stopped."""
    total = len(plan.jobs)

    def progress(number: int, progress: Progress) -> None:
        console.label = f"file {number} of {total}  "
        console.progress(progress)

    failed: list[JobOutcome] = []
    done = 0
    for outcome in run_folder(plan, start, stop, progress):
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


def _summary(plan: FolderPlan, done: int, failed: int) -> str:
    parts = [f"{done} of {len(plan.jobs)} files done"]
    if failed:
        parts.append(f"{failed} failed")
    if plan.finished:
        parts.append(f"{plan.finished} finished before")
    if plan.others:
        parts.append(f"{plan.others} other file{'s' if plan.others > 1 else ''} left alone")
    return ", ".join(parts)
