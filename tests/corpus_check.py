"""Run the real command over the whole corpus of awkward and hostile inputs, and judge it.

    python tests/corpus_check.py [--corpus DIR] [--only REGEX] [--group NAME ...]
                                 [--target native|mp4|lossless] [--backend null] [--jobs 2]
                                 [--json FILE]

Without --corpus the corpus is generated first, with make_corpus.py of the shared folder (or
$VIDMATTE_SHARED), which needs an ffmpeg program. Targets: `native` gives every entry an output in
the container family of its input; `mp4` gives .mp4 to all that would have got another; `lossless`
writes FFV1 and compares every sample. With `--backend null` the matte is all ones, so that every
picture has to come out as it was; with another only counts, times, tags and streams are compared.
Exit code 0: every entry behaved; 1: some did not.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from corpus_manifest import Entry, generate_corpus, load_manifest
from corpus_media import Media, inspect
from corpus_probe import Turn
from corpus_rules import Case, complaints
from corpus_run import (
    DEFAULT_COMMAND,
    BaitListener,
    Run,
    can_run_like_a_user,
    output_suffix,
    run_entry,
    scratch_folder,
)

CLEAR_ERROR_LIMIT_S = 5.0
PORT_PATIENCE_S = 300.0  # another check on this machine may be using the bait port
BOMB_LIMIT_MB = 500
SECRET = "TOP-SECRET"
NOT_LOSSLESS_GROUPS = ("damage", "name", "still", "fs", "stdin")
BAITED_GROUPS = ("playlist", "protocol")
QUIET_GROUPS = ("baseline", "name", "fs", "rate", "audio", "stdin")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one entry; no reasons means that it passed."""

    entry: Entry
    reasons: list[str]
    run: Run | None
    skipped: str = ""


def judge(
    entry: Entry,
    run: Run,
    corpus: Path,
    patches: list[list[int]],
    *,
    target: str = "native",
    backend: str = "null",
) -> list[str]:
    """Say everything that is wrong with a run; an empty list means that it passed."""
    reasons = list(_manners(entry, run))
    if run.timed_out:
        return reasons
    if entry.expected == "clear_error":
        return [*reasons, *_refusal(entry, run)]
    if run.exit_code != 0:
        return [*reasons, f"exit {run.exit_code}: {_last_error(run.stderr)}"]
    reasons += _warnings(entry, run)
    if run.left != [run.output.name]:
        reasons.append(f"output folder holds {run.left} instead of {run.output.name}")
    if not run.output.is_file():
        return reasons
    return [*reasons, *_compare(entry, run, corpus, patches, target, backend)]


def _compare(
    entry: Entry, run: Run, corpus: Path, patches: list[list[int]], target: str, backend: str
) -> list[str]:
    lossless = target == "lossless"
    source = _source(corpus / entry.file, entry.turn, lossless, entry.sha256)
    try:
        output = inspect(run.output, planes=lossless)
    except (ValueError, av.FFmpegError) as error:
        return [f"output cannot be read: {error}"]
    said = run.stdout + run.stderr
    case = Case(entry, source, output, run.output.suffix, said, patches, lossless)
    return complaints(case, content=backend == "null")


@functools.lru_cache(maxsize=8)
def _source(path: Path, turn: Turn, planes: bool, sha256: str) -> Media:
    return inspect(path, turn=turn, planes=planes)


def _manners(entry: Entry, run: Run) -> Iterator[str]:
    """What no run may do, whatever its outcome."""
    said = run.stdout + run.stderr
    if run.timed_out:
        yield f"did not end within {run.seconds:.0f} s"
    elif run.exit_code < 0:
        yield f"died of signal {-run.exit_code}"
    if "Traceback" in said:
        yield f"shows a traceback: {_last_line(run.stderr)}"
    noise = re.search(r"^\[\w[^\]]* @ 0x.*$", said, re.MULTILINE)
    if noise:
        yield f"shows a library's own message: {noise.group()[:80]}"
    if SECRET in said:
        yield "shows the bait file's text"
    if run.contacts and entry.group in BAITED_GROUPS:
        yield f"contacted the network {run.contacts} times"
    if run.udp_ports and entry.group in BAITED_GROUPS:
        yield f"opened UDP ports {run.udp_ports}"
    if any(ord(c) < 32 and c not in "\n\r\t\x1b" for c in said):
        yield "prints raw control characters"


def _refusal(entry: Entry, run: Run) -> Iterator[str]:
    if run.exit_code not in (1, 2) and run.exit_code >= 0:
        yield f"exit {run.exit_code} instead of 1 or 2"
    lines = run.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    hints = [line for line in lines if line.startswith("hint:")]
    if len(errors) != 1:
        yield f"{len(errors)} error lines instead of one: {_last_line(run.stderr)}"
    if len(hints) > 1:
        yield f"{len(hints)} hint lines"
    name = r"stdin|standard input|'?-'?" if entry.via == "stdin" else re.escape(_shown_name(entry))
    if errors and not re.search(name, errors[0]):
        yield f"the error does not name the file: {errors[0]}"
    if run.seconds > CLEAR_ERROR_LIMIT_S:
        yield f"took {run.seconds:.1f} s to refuse"
    if run.left:
        yield f"left {run.left} behind{_leak(entry, run)}"
    if entry.group == "bomb" and run.peak_mb > BOMB_LIMIT_MB:
        yield f"took {run.peak_mb} MB to refuse"


def _shown_name(entry: Entry) -> str:
    return entry.file if entry.via == "argv" else Path(entry.file).name


def _leak(entry: Entry, run: Run) -> str:
    """Name frames of a bait file that got out."""
    if "leak_ids" not in entry.props or not run.output.is_file():
        return ""
    try:
        ids = inspect(run.output).ids
    except (ValueError, av.FFmpegError):
        return ""
    stolen = [i for i in range(*entry.props["leak_ids"]) if i in ids]
    return f", with frames {stolen} of another file" if stolen else ""


def _warnings(entry: Entry, run: Run) -> Iterator[str]:
    lines = [line for line in run.stderr.splitlines() if line.startswith("warning:")]
    causes = Counter(re.sub(r"\d[\d:.]*", "#", line) for line in lines)
    for cause, times in causes.items():
        if times > 1:
            yield f"warns {times} times: {cause}"
    if entry.warn and not any(_has_count_and_time(line) for line in lines):
        yield f"no warning that names a count and a time, but {lines}"
    if entry.group in QUIET_GROUPS and lines:
        yield f"warns about a sound file: {lines[0]}"
    if entry.group == "change" and "sizes" in entry.video and not lines:
        yield "does not warn of the change of size"


def _has_count_and_time(line: str) -> bool:
    """Whether a line holds a time (0:01.5, 1.5 s) and, apart from it, a whole number."""
    time_form = r"\b\d+:\d\d(?::\d\d)?(?:\.\d+)?\b|\b\d+(?:\.\d+)? ?(?:s|ms|seconds?)\b"
    rest, times = re.subn(time_form, "", line)
    return times > 0 and re.search(r"(?<![\w.%])\d+(?![\w.%])", rest) is not None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing on stderr"])[-1][:200]


def _last_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    return (errors or [_last_line(text)])[-1][:200]


def check_entry(
    entry: Entry,
    corpus: Path,
    patches: list[list[int]],
    bait: BaitListener,
    *,
    command: str = DEFAULT_COMMAND,
    target: str = "native",
    backend: str = "null",
    keep: Path | None = None,
) -> Verdict:
    """Run one entry and judge it."""
    if entry.skip_if_root and not can_run_like_a_user():
        return Verdict(entry, [], None, "root may read every file, and setpriv is not usable")
    folder = scratch_folder(keep, entry.id)
    baited = entry.group in BAITED_GROUPS
    with nullcontext(str(folder)) if isinstance(folder, Path) else folder as name:
        with bait.alone if baited else nullcontext():
            run = run_entry(
                entry, corpus, Path(name), bait, command=command, target=target, backend=backend
            )
        reasons = judge(entry, run, corpus, patches, target=target, backend=backend)
        return Verdict(entry, reasons, run)


def chosen(entries: list[Entry], only: str | None, groups: list[str], target: str) -> list[Entry]:
    """Pick the entries for a target mode, a pattern of ids and a list of groups."""
    picked = [
        e
        for e in entries
        if (not groups or e.group in groups) and (not only or re.search(only, e.id))
    ]
    if target == "native":
        return picked
    picked = [e for e in picked if e.expected == "ok"]
    if target == "mp4":
        return [e for e in picked if output_suffix(e, "native") not in (".mp4", ".png")]
    return [e for e in picked if e.group not in NOT_LOSSLESS_GROUPS]


def report(verdicts: list[Verdict], target: str) -> bool:
    """Print the table, one line per failure and the total; return whether all passed."""
    groups = dict.fromkeys(v.entry.group for v in verdicts)
    print(f"{'group':12}{'passed':>8}{'failed':>8}{'skipped':>8}")
    for group in groups:
        rows = [v for v in verdicts if v.entry.group == group]
        failed, skipped = sum(bool(v.reasons) for v in rows), sum(bool(v.skipped) for v in rows)
        print(f"{group:12}{len(rows) - failed - skipped:8}{failed:8}{skipped:8}")
    for verdict in verdicts:
        if verdict.reasons:
            print(f"FAILED {verdict.entry.group}/{verdict.entry.id}: {'; '.join(verdict.reasons)}")
        if verdict.skipped:
            print(f"skipped {verdict.entry.group}/{verdict.entry.id}: {verdict.skipped}")
    failed = sum(bool(v.reasons) for v in verdicts)
    skipped = sum(bool(v.skipped) for v in verdicts)
    passed = len(verdicts) - failed - skipped
    tail = f", {skipped} skipped" if skipped else ""
    print(f"{passed}/{len(verdicts)} entries behave as their manifest says ({target}{tail})")
    return failed == 0


def _as_json(verdict: Verdict, target: str) -> dict[str, Any]:
    run = verdict.run
    row: dict[str, Any] = {
        "id": verdict.entry.id,
        "group": verdict.entry.group,
        "target": target,
        "reasons": verdict.reasons,
        "skipped": verdict.skipped,
    }
    if run is not None:
        row |= {
            "arguments": [os.fsencode(a).decode("utf8", "backslashreplace") for a in run.arguments],
            "exit_code": run.exit_code,
            "seconds": round(run.seconds, 2),
            "timed_out": run.timed_out,
            "peak_mb": run.peak_mb,
            "stdout": run.stdout,
            "stderr": run.stderr,
        }
    return row


def _listing(corpus: Path) -> set[str]:
    return {str(p.relative_to(corpus)) for p in corpus.rglob("*")}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="generated corpus (default: generate one)")
    parser.add_argument("--only", help="regular expression of entry ids")
    parser.add_argument("--group", action="append", default=[], help="group; may be repeated")
    parser.add_argument("--target", choices=["native", "mp4", "lossless"], default="native")
    parser.add_argument("--backend", default="null", help="vidmatte's backend (default null)")
    parser.add_argument("--command", default=DEFAULT_COMMAND, help="template of the command")
    parser.add_argument("--jobs", type=int, default=2, help="entries at a time (default 2)")
    parser.add_argument("--json", type=Path, help="write every verdict to this file")
    parser.add_argument("--keep", type=Path, help="keep every run's folder under this new folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check the corpus; return the exit code."""
    options = _parse(arguments)
    if shutil.which("ffprobe") is None:
        print("error: ffprobe is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="vidmatte-corpus-") as scratch:
        corpus = options.corpus.resolve() if options.corpus else Path(scratch) / "corpus"
        if options.corpus is None:
            generate_corpus(corpus, options.only)
        return _check(options, corpus)


def _check(options: argparse.Namespace, corpus: Path) -> int:
    entries, patches = load_manifest(corpus)
    entries = chosen(entries, options.only, options.group, options.target)
    before = _listing(corpus)
    try:
        listener = BaitListener(patience_s=PORT_PATIENCE_S)
    except OSError as error:
        print(f"error: cannot listen where hostile files point: {error}", file=sys.stderr)
        return 2
    with listener as bait, ThreadPoolExecutor(options.jobs) as pool:
        check = functools.partial(
            check_entry,
            corpus=corpus,
            patches=patches,
            bait=bait,
            command=options.command,
            target=options.target,
            backend=options.backend,
            keep=options.keep,
        )
        verdicts = list(pool.map(check, entries))
        contacts = bait.contacts
    if options.json:
        rows = [_as_json(v, options.target) for v in verdicts]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    good = report(verdicts, options.target)
    for name in sorted(_listing(corpus) - before):
        print(f"FAILED: {name!a} appeared among the inputs")
        good = False
    if contacts:
        print(f"FAILED: the bait address was contacted {contacts} times")
    return 0 if good and not contacts else 1


if __name__ == "__main__":
    sys.exit(main())
