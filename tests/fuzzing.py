"""Run damaged files through the command, each in a fork that has imported everything; judge them.

`python tests/fuzzing.py --seed N` does one case again: it writes the case's files into a folder,
runs the command on them and prints what is wrong. `--count` does many.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import av
import fuzz_cases
from fuzz_cases import Case, load_bases, make_bases, media_case, write_case
from fuzz_weights import make_weights, weights_case

from vidmatte.sequences import is_sequence, numbered_files

LIMIT_S = 10.0
LIMIT_MB = 1000  # resident; the imports alone take some 250
ADDRESS_SPACE = 8 << 30  # what no case can pass, so that a bomb does not take the machine down
LEFT_BY_EXCEPTION = 3  # of the code here, not of the command
ENOUGH = 10  # cases gone wrong
MEDIA = ("cv2", "openvino", "vidmatte.cli.run", "vidmatte.cli.console", "vidmatte.api")
HEAVY = {"media": MEDIA, "weights": (*MEDIA, "torch", "onnx", "vidmatte.models.install")}
LINES = ("error: ", "hint: ", "warning: ", "note: ", "stopped: ")
STDOUT, STDERR = "stdout.txt", "stderr.txt"


@dataclass(slots=True)
class Verdict:
    """How a case ended: exit code (negative: the signal), seconds, peak memory, what is wrong."""

    case: str
    seed: int
    base: str
    mutations: list[str]
    exit_code: int
    seconds: float
    peak_mb: int
    problems: list[str] = field(default_factory=list)
    stderr: str = ""


def run_case(case: Case, folder: Path) -> Verdict:
    """Run the real command on a case in `folder`, which is made for it; look at what it left."""
    write_case(case, folder)
    start = time.monotonic()
    code, peak_mb = _forked(lambda: _command(case, folder))
    seconds = time.monotonic() - start
    verdict = Verdict(str(case), case.seed, case.base, list(case.mutations), code, seconds, peak_mb)
    verdict.stderr = (folder / STDERR).read_text("utf-8", "replace")[:4000]
    verdict.problems = _problems(case, folder, verdict)
    return verdict


def _forked(work: Callable[[], NoReturn]) -> tuple[int, int]:
    """Do `work` in a child of its own; return its exit code (or -signal) and peak in MB."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:  # nothing of this process may go on in the child
            os._exit(LEFT_BY_EXCEPTION)
    watch = os.pidfd_open(child)
    if not select.select([watch], [], [], LIMIT_S)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(watch)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024


def _command(case: Case, folder: Path) -> NoReturn:
    from vidmatte.cli import main

    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ |= {"HOME": str(folder), "VIDMATTE_MODEL_DIR": str(folder / "models")}
    _point(0, case.stdin or os.devnull, os.O_RDONLY)
    _point(1, STDOUT, os.O_WRONLY | os.O_CREAT)
    _point(2, STDERR, os.O_WRONLY | os.O_CREAT)
    sys.argv = ["vidmatte", *case.arguments]
    main()


def _point(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _problems(case: Case, folder: Path, verdict: Verdict) -> list[str]:
    """Everything that a case may not do."""
    problems = []
    if verdict.seconds >= LIMIT_S:
        problems.append(f"hung for {LIMIT_S:g} s")
    elif verdict.exit_code < 0:
        problems.append(f"killed by {signal.Signals(-verdict.exit_code).name}")
    elif verdict.exit_code not in (0, 1, 2):
        problems.append(f"exit code {verdict.exit_code}")
    if verdict.peak_mb > LIMIT_MB:
        problems.append(f"took {verdict.peak_mb} MB")
    problems += _of_messages(verdict)
    problems += _of_leftovers(case, folder, verdict)
    if verdict.exit_code == 0:
        problems += _of_outputs(case, folder)
    return problems


def _of_messages(verdict: Verdict) -> list[str]:
    lines = verdict.stderr.splitlines()
    errors = sum(line.startswith("error: ") for line in lines)
    problems = []
    if errors != (verdict.exit_code != 0):
        problems.append(f"{errors} error lines with exit code {verdict.exit_code}")
    if sum(line.startswith("hint: ") for line in lines) > 1:
        problems.append("more than one hint")
    if "internal error" in verdict.stderr:
        problems.append("internal error")
    problems += [f"not a message: {line!r}" for line in lines if not line.startswith(LINES)][:1]
    if any(ord(c) < 32 and c != "\n" for c in verdict.stderr):
        problems.append("control characters in a message")
    return problems


def _of_leftovers(case: Case, folder: Path, verdict: Verdict) -> list[str]:
    """A part may stay after a failure if a message names it; nothing else may."""
    expected = {*case.files, STDOUT, STDERR}
    found = [p for p in folder.rglob("*") if str(p.relative_to(folder)) not in expected]
    if verdict.exit_code == 0:
        return [f"left {p.name}" for p in found if ".part" in str(p.relative_to(folder))]
    named = [p for p in found if ".part" in str(p.relative_to(folder))]
    return [f"left {p.name}" for p in found if p not in named and p.is_file()] + [
        f"left {p.name} without a word"
        for p in named
        if not any(str(n.relative_to(folder)) in verdict.stderr for n in (p, p.parent))
    ]


def _of_outputs(case: Case, folder: Path) -> list[str]:
    """What is promised after success: every output opens and has the reported pictures."""
    if not case.outputs:
        return []
    result = folder / "counts.json"
    code, _ = _forked(lambda: _count(case, folder, result))
    if code != 0:
        return [f"an output could not be read: {code}"]
    counts = json.loads(result.read_text())
    reported = json.loads((folder / STDOUT).read_text())["frames"]
    wrong = {name: count for name, count in counts.items() if count != reported}
    return [f"{reported} pictures are reported, {name} has {wrong[name]}" for name in wrong]


def _count(case: Case, folder: Path, result: Path) -> NoReturn:
    counts = {name: _pictures_in(folder / name) for name in case.outputs}
    result.write_text(json.dumps(counts))
    os._exit(0)


def _pictures_in(path: Path) -> int:
    if is_sequence(path):
        return sum(_pictures_in(picture) for _, picture in numbered_files(path))
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def run_cases(build: Callable[[int], Case], seeds: range, folder: Path) -> list[Verdict]:
    """Run one case per seed; keep the folders of a single one and of those that went wrong.

    Ends early at ten of these.
    """
    verdicts: list[Verdict] = []
    for seed in seeds:
        place = folder / str(seed)
        verdicts.append(run_case(build(seed), place))
        if not verdicts[-1].problems and len(seeds) > 1:
            shutil.rmtree(place)
        elif sum(bool(v.problems) for v in verdicts) >= ENOUGH:
            break
    return verdicts


def media_cases(bases: dict[str, bytes]) -> Callable[[int], Case]:
    """Cases of damaged videos and pictures by seed."""
    return lambda seed: media_case(seed, bases)


def weights_cases(bases: dict[str, bytes]) -> Callable[[int], Case]:
    """Cases of damaged weights by seed."""
    picture = fuzz_cases.png()
    return lambda seed: weights_case(seed, bases, picture)


KINDS = {"media": (make_bases, media_cases), "weights": (make_weights, weights_cases)}


def builder(kind: str, folder: Path) -> Callable[[int], Case]:
    """Return what makes a case of a seed; `folder` holds the undamaged files, or will."""
    make, cases = KINDS[kind]
    if not folder.exists():
        folder.mkdir(parents=True)
        make(folder)
    return cases(load_bases(folder))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kind", choices=KINDS, default="media", help="what is damaged")
    parser.add_argument("--seed", type=int, default=0, help="the first case")
    parser.add_argument("--count", type=int, default=1, help="how many, one seed after another")
    parser.add_argument("--folder", type=Path, default=Path("fuzz"), help="where files are put")
    parser.add_argument("--bases", type=Path, help="the undamaged files. Default: FOLDER/bases")
    parser.add_argument("--verdicts", type=Path, help="also write the verdicts as JSON")
    return parser.parse_args()


def main() -> int:
    """Run the cases, print the wrong ones, return 1 if there are any."""
    given = _arguments()
    for module in HEAVY[given.kind]:
        importlib.import_module(module)
    given.folder = given.folder.resolve()  # the command runs in a folder of its own
    build = builder(given.kind, given.bases or given.folder / f"{given.kind}_bases")
    if given.count == 1:
        print("files in", given.folder / str(given.seed))
        shutil.rmtree(given.folder / str(given.seed), ignore_errors=True)
    verdicts = run_cases(build, range(given.seed, given.seed + given.count), given.folder)
    if given.verdicts:
        given.verdicts.write_text(json.dumps([asdict(v) for v in verdicts]))
    wrong = [v for v in verdicts if v.problems]
    for verdict in wrong or verdicts[:1] * (given.count == 1):
        print(f"{verdict.case}\n  exit code {verdict.exit_code}: {'; '.join(verdict.problems)}")
        print(verdict.stderr.rstrip())
    codes = [v.exit_code for v in verdicts]
    print(f"{len(codes)} cases, {codes.count(0)} succeeded, {len(wrong)} went wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
