"""Run over a folder: which files are inputs, what their outputs are called, one per device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

from vidmatte.errors import (
    BackendError,
    InputError,
    ModelError,
    OutputError,
    UsageError,
    VidmatteError,
)
from vidmatte.jobs import Progress, RunResult
from vidmatte.pipeline import GRACE_S, Crew, Stop
from vidmatte.runner import FileRun
from vidmatte.sequences import is_sequence
from vidmatte.sinks.plan import CONTAINERS, PICTURES, Content

# What is taken for an input, by extension, and the extension of its output.
_KEPT = ("mp4", "m4v", "mov", "mkv", "webm", "ts", "gif", "apng")
_TO_MP4 = ("avi", "wmv", "asf", "flv", "f4v", "mpg", "mpeg", "mpe", "m2v", "vob", "ogv", "ogm",
           "3gp", "3g2", "mts", "m2ts", "mxf", "dv", "rm", "rmvb", "wtv", "gxf", "y4m", "nut",
           "ivf", "divx", "mjpg", "mjpeg")  # fmt: skip
_TO_PNG = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "jxl", "jp2", "exr",
           "dpx", "qoi", "psd", "ppm", "pgm", "pbm", "pam", "sgi", "pcx", "avif", "heic",
           "heif")  # fmt: skip
OUTPUT_SUFFIXES = {
    **{f".{name}": f".{name}" for name in _KEPT},
    **{f".{name}": ".mp4" for name in _TO_MP4},
    **{f".{name}": ".png" for name in _TO_PNG},
}
TRANSPARENT_SUFFIXES = {".mp4": ".mov", ".m4v": ".mov", ".ts": ".mov"}  # these hold no alpha
TRANSPARENT_BY_DEFAULT = frozenset({".png", ".gif", ".apng"})

TICK_S = 0.25  # between two looks at runs side by side
SETTLE_S = 1.0  # what a stopped run gets beyond the time its threads get: it closes its part

Start = Callable[[str, dict[str, Content]], FileRun]
Tell = Callable[[Mapping[int, Progress]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One input of a folder and what it becomes; `problem` says why it is not begun."""

    source: Path
    target: Path
    content: Content
    problem: str | None = None


@dataclass(slots=True)
class FolderPlan:
    """What a folder holds: jobs to do, outputs that exist, files that are no video or picture."""

    jobs: list[Job] = field(default_factory=list)
    finished: int = 0
    others: int = 0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How one job ended: with a result, or with an error."""

    job: Job
    result: RunResult | None = None
    error: VidmatteError | None = None


def plan_folder(
    source: Path,
    target: Path,
    *,
    background: str | None = None,
    one_picture: bool = False,
    overwrite: bool = False,
) -> FolderPlan:
    """List what there is to do, in the order of the names, and touch nothing.

    `background` is what the user named, or None: then videos get the default background and
    pictures, GIF and APNG become transparent. `one_picture` makes every output a PNG. Raises
    UsageError and InputError for folders that cannot be meant.
    """
    _check_folders(source, target)
    plan = FolderPlan()
    inputs = _inputs(source, target, plan)
    if not inputs and not plan.jobs:
        raise InputError(
            f"{source}: holds no video or picture",
            hint="its files are told apart by their extensions, like .mp4 and .png",
        )
    identities = {_identity(path) for path in inputs}
    taken: dict[Path, Path] = {}
    for path in inputs:
        suffix, content = output_kind(path.suffix, background, one_picture=one_picture)
        output = target / path.relative_to(source)
        if output.suffix.lower() != suffix:
            output = output.with_suffix(suffix)
        problem = _problem(output, taken, identities)
        if problem is None:
            taken[output] = path
            if os.path.lexists(output) and not overwrite:
                plan.finished += 1
                continue
        plan.jobs.append(Job(path, output, content, problem))
    return plan


def _problem(output: Path, taken: dict[Path, Path], inputs: set[object]) -> str | None:
    if output in taken:
        return f"its output {output} is already that of {taken[output]}"
    if os.path.exists(output) and _identity(output) in inputs:
        return f"its output {output} is also an input"
    if is_sequence(output):
        return f"its output {output} would be taken for a pattern of numbered pictures"
    return None


def output_kind(
    suffix: str, background: str | None, *, one_picture: bool = False
) -> tuple[str, Content]:
    """Return the output's extension and content for an input's extension."""
    name = ".png" if one_picture else OUTPUT_SUFFIXES[suffix.lower()]
    if background is None:
        return name, "transparent" if name in TRANSPARENT_BY_DEFAULT else "opaque"
    if background == "transparent":
        return TRANSPARENT_SUFFIXES.get(name, name), "transparent"
    return name, "opaque"


def _check_folders(source: Path, target: Path) -> None:
    if os.path.realpath(source) == os.path.realpath(target):
        raise UsageError(
            f"{target}: is the input folder too", hint="name another folder for the outputs"
        )
    if os.path.isdir(target):
        return
    if os.path.lexists(target):
        raise UsageError(f"{target}: is not a folder, but {source} is one", hint="name a folder")
    if target.suffix.lower() in (*CONTAINERS, *PICTURES):
        raise UsageError(
            f"{source} is a folder, {target} is called like a file",
            hint="name a folder for the outputs",
        )


def _inputs(source: Path, target: Path, plan: FolderPlan) -> list[Path]:
    """Walk the folder, but not the outputs' and not where links to folders lead."""
    found = []
    avoided = os.path.realpath(target)

    def unreadable(error: OSError) -> None:
        reason = (error.strerror or "cannot be read").lower()
        plan.jobs.append(Job(Path(error.filename), target, "opaque", reason))

    for folder, folders, files in os.walk(source, onerror=unreadable):
        folders[:] = sorted(f for f in folders if os.path.realpath(Path(folder, f)) != avoided)
        for name in sorted(files):
            path = Path(folder, name)
            if _is_input(path):
                found.append(path)
            else:
                plan.others += 1
    return found


def _is_input(path: Path) -> bool:
    """By extension; hidden files and unfinished outputs are none."""
    if path.name.startswith(".") or path.stem.endswith(".part"):
        return False
    return path.suffix.lower() in OUTPUT_SUFFIXES


def _identity(path: Path) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


def run_folder(
    plan: FolderPlan,
    start: Start,
    stop: Stop,
    on_progress: Tell | None = None,
    *,
    more: Sequence[Start] = (),
) -> Iterator[JobOutcome]:
    """Do the jobs one after another; yield after each how it ended. Ends early when stopped.

    `start` builds the run of one job from its input's name and its outputs. `more` has one such
    for every further device: so many jobs then run side by side, and are yielded as they end.
    `on_progress` gets the jobs that run, by their numbers from 1, on the calling thread. One job's
    failure does not stop the next. A model or device that is not there would fail them all alike:
    that error is raised if nothing has succeeded before.
    """
    shift = _Shift(plan.jobs, (start, *more), stop, on_progress)
    outcomes = shift.outcomes() if more else _in_turn(plan.jobs, start, stop, on_progress)
    succeeded = False
    for outcome in outcomes:
        if isinstance(outcome.error, (ModelError, BackendError)) and not succeeded:
            shift.give_up(outcome.error)
            raise outcome.error
        succeeded = succeeded or outcome.error is None
        yield outcome


def _in_turn(
    jobs: list[Job], start: Start, stop: Stop, on_progress: Tell | None
) -> Iterator[JobOutcome]:
    for number, job in enumerate(jobs, 1):
        if stop.requested:
            return
        yield _run_job(job, start, stop, _numbered(number, on_progress))


def _numbered(number: int, on_progress: Tell | None) -> Callable[[Progress], None] | None:
    if on_progress is None:
        return None
    return lambda progress: on_progress({number: progress})


class _Shift:
    """Runs side by side: a thread per device that takes job after job.

    The thread that owns it stays free for signals; what the runs tell reaches it there.
    """

    def __init__(
        self, jobs: list[Job], starts: Sequence[Start], stop: Stop, on_progress: Tell | None
    ) -> None:
        self._jobs = iter(list(enumerate(jobs, 1)))
        self._starts = starts
        self._stop, self._halt = stop, Stop()  # the user's, and what the runs listen to
        self._on_progress = on_progress
        self._changing = Lock()
        self._running: dict[int, Progress] = {}
        self._ended: list[JobOutcome] = []
        self._working = 0
        self._crew = Crew()

    def outcomes(self) -> Iterator[JobOutcome]:
        """Yield how each job ended as it does, and at a stop how those ended that ran."""
        self._working = len(self._starts)
        for number, start in enumerate(self._starts):
            self._crew.start(f"device-{number}", partial(self._work, start))
        try:
            while self._working and not self._stop.requested and not self._crew.errors:
                self._stop.wait(lambda: bool(self._ended) or not self._working, TICK_S)
                yield from self._take()
                if self._on_progress is not None and self._running:
                    with self._changing:
                        running = dict(sorted(self._running.items()))
                    self._on_progress(running)
            self._end()
            yield from self._take()
            self._crew.check()
        finally:
            self._end()

    def give_up(self, error: VidmatteError) -> None:
        """Stop all runs; name on `error` what is left of them."""
        self._end()
        for outcome in self._take():
            for part in outcome.result.kept_parts if outcome.result else ():
                error.add_note(f"what was finished is in {part}")

    def _end(self) -> None:
        self._halt.request(self._stop.reason or 0)
        self._crew.join(GRACE_S + SETTLE_S)

    def _take(self) -> list[JobOutcome]:
        with self._changing:
            taken, self._ended = self._ended, []
        return taken

    def _work(self, start: Start) -> None:
        try:
            while not self._halt.requested:
                with self._changing:
                    number, job = next(self._jobs, (0, None))
                if job is None:
                    break
                outcome = _run_job(job, start, self._halt, partial(self._tell, number))
                with self._changing:
                    self._running.pop(number, None)
                    self._ended.append(outcome)
                self._stop.wake()
        finally:
            with self._changing:
                self._working -= 1
            self._stop.wake()

    def _tell(self, number: int, progress: Progress) -> None:
        with self._changing:
            self._running[number] = progress


def _run_job(
    job: Job, start: Start, stop: Stop, on_progress: Callable[[Progress], None] | None
) -> JobOutcome:
    try:
        if job.problem is not None:
            raise InputError(f"{job.source}: {job.problem}", hint="rename it, or run it by itself")
        job.target.parent.mkdir(parents=True, exist_ok=True)
        result = start(str(job.source), {str(job.target): job.content}).run(stop, on_progress)
        return JobOutcome(job, result)
    except VidmatteError as exc:
        return JobOutcome(job, error=exc)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        error = OutputError(f"{job.target.parent}: {reason}", hint="name another folder")
        return JobOutcome(job, error=error)
