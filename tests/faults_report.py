"""Break everything that can be broken, and print what held: `make faults`.

    python tests/faults_report.py [--corpus DIR] [--tests FILE] [--verdicts FILE]

Runs the corpus of awkward and broken inputs (where make_corpus.py lies in the shared folder), then
every test marked `fault`, fuzzing among them. `--corpus` is a corpus made before; `--tests` what
faults_plugin wrote during an earlier run of the tests; `--verdicts` what corpus_check.py --json
wrote. Exit code 0: everything held; 1: something did not, or could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_manifest import generate_corpus, shared_folder

TESTS = Path(__file__).resolve().parent
CORPUS_ENTRIES = 196


@dataclass(slots=True)
class Section:
    """One part of the table: rows of (name, passed, failed, skipped)."""

    title: str
    rows: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, row: str, outcome: str) -> None:
        """Add one outcome: passed, failed or skipped."""
        self.rows.setdefault(row, Counter())[outcome] += 1

    def total(self, outcome: str | None = None) -> int:
        """How many of an outcome, or of all."""
        return sum(n[outcome] if outcome else n.total() for n in self.rows.values())

    @property
    def ratio(self) -> str:
        """Passed of all that ran."""
        skipped = self.total("skipped")
        note = f" ({skipped} skipped)" if skipped else ""
        return f"{self.total('passed')}/{self.total() - skipped}{note}"

    def show(self) -> None:
        """Print the rows and what failed."""
        print(f"{self.title:32}{'passed':>8}{'failed':>8}{'skipped':>9}")
        for name, n in self.rows.items():
            print(f"  {name:30}{n['passed']:8}{n['failed']:8}{n['skipped']:9}")
        for failure in self.failures:
            print(f"  FAILED {failure}")


@dataclass(slots=True)
class Tally:
    """What went wrong in a way that is counted across all runs."""

    commands: int = 0
    fuzz_cases: int = 0
    hangs: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)


def read_corpus(verdicts: list[dict[str, Any]], tally: Tally) -> Section:
    """Count the verdicts of corpus_check by group."""
    section = Section("corpus")
    for row in verdicts:
        name = f"{row['group']}/{row['id']}"
        outcome = "failed" if row["reasons"] else "skipped" if row["skipped"] else "passed"
        section.count(row["group"], outcome)
        if row["reasons"]:
            section.failures.append(f"{name}: {'; '.join(row['reasons'])}")
        tally.commands += "exit_code" in row
        if row.get("timed_out"):
            tally.hangs.append(name)
        if "Traceback (most recent call last)" in row.get("stderr", ""):
            tally.tracebacks.append(name)
    return section


def read_tests(facts: dict[str, Any], tally: Tally) -> Section:
    """Count the outcomes of tests marked `fault` by module."""
    section = Section("faults")
    for name, test in facts["tests"].items():
        if not test["fault"]:
            continue
        section.count(Path(name.partition("::")[0]).stem.removeprefix("test_"), test["outcome"])
        tally.fuzz_cases += test["facts"].get("fuzz_cases", 0)
        tally.hangs += [name] * test["facts"].get("hangs", 0)
        tally.tracebacks += [name] * test["facts"].get("tracebacks", 0)
        if test["outcome"] == "failed":
            section.failures.append(name)
    tally.commands += facts["commands"]
    tally.hangs += facts["hangs"]
    tally.tracebacks += facts["tracebacks"]
    return section


def run_corpus(corpus: Path | None, work: Path) -> list[dict[str, Any]]:
    """Make the corpus unless it is there, run the command over it, return every verdict."""
    if corpus is None:
        corpus = work / "corpus"
        generate_corpus(corpus)
    verdicts = work / "verdicts.json"
    command = [sys.executable, str(TESTS / "corpus_check.py"), "--corpus", str(corpus)]
    subprocess.run(
        [*command, "--json", str(verdicts)], stdout=subprocess.DEVNULL, check=False
    )  # its exit code says the same as the verdicts
    return _read(verdicts)


def run_tests(work: Path) -> dict[str, Any]:
    """Run every test that is marked `fault` and return what the plugin counted."""
    path = work / "tests.json"
    wanted = "fault and not slow and not soak"
    command = [sys.executable, "-m", "pytest", "-m", wanted, "-p", "faults_plugin",
               "--faults-json", str(path)]  # fmt: skip
    python_path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    subprocess.run(
        command, cwd=TESTS.parent, env=os.environ | {"PYTHONPATH": python_path}, check=False
    )
    facts: dict[str, Any] = _read(path)
    return facts


def _read(path: Path) -> Any:
    if not path.is_file():
        sys.exit(f"error: {path} was not written\nhint: see above why")
    return json.loads(path.read_text("utf-8"))


def why_no_corpus() -> str | None:
    """Say what is missing for the corpus, or None."""
    if not (shared_folder() / "corpus" / "make_corpus.py").is_file():
        return f"no make_corpus.py in {shared_folder() / 'corpus'}"
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def report(corpus: Section | None, faults: Section, tally: Tally, seconds: float | None) -> bool:
    """Print the table and the one line that sums it up; return whether everything held.

    `seconds` is what the runs took, None where they were made before.
    """
    took = "" if seconds is None else f", {seconds:.0f} s"
    for section in (corpus, faults):
        if section is not None:
            section.show()
    for kind, names in (("hang", tally.hangs), ("traceback", tally.tracebacks)):
        for name in names:
            print(f"  {kind.upper()} {name}")
    ran = "not run" if corpus is None else corpus.ratio
    print(
        f"corpus {ran}, faults {faults.ratio}, {tally.fuzz_cases} fuzz cases, "
        f"{len(tally.hangs)} hangs, {len(tally.tracebacks)} tracebacks "
        f"in {tally.commands} commands{took}"
    )
    broken = faults.total("failed") + (0 if corpus is None else corpus.total("failed"))
    complete = corpus is None or corpus.total() == CORPUS_ENTRIES
    if not complete:
        print(f"error: the corpus has {CORPUS_ENTRIES} entries")
    held = broken == 0 and not tally.hangs and not tally.tracebacks
    return held and complete and faults.total("passed") > 0


def main(arguments: list[str] | None = None) -> int:
    """Run what is not given, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="corpus made before (default: make it)")
    parser.add_argument("--tests", type=Path, help="what faults_plugin wrote in an earlier run")
    parser.add_argument("--verdicts", type=Path, help="what corpus_check.py --json wrote")
    options = parser.parse_args(arguments)
    began, tally, corpus = time.monotonic(), Tally(), None
    reason = why_no_corpus()
    with tempfile.TemporaryDirectory(prefix="vidmatte-faults-") as scratch:
        if options.verdicts is not None:
            corpus = read_corpus(_read(options.verdicts), tally)
        elif options.corpus is not None or reason is None:
            corpus = read_corpus(run_corpus(options.corpus, Path(scratch)), tally)
        else:
            print(f"corpus: not run, {reason}")
        facts = _read(options.tests) if options.tests else run_tests(Path(scratch))
    took_s = None if options.tests else time.monotonic() - began
    held = report(corpus, read_tests(facts, tally), tally, took_s)
    could_run = corpus is not None or reason is None or "make_corpus" in reason
    return 0 if held and could_run else 1


if __name__ == "__main__":
    sys.exit(main())
