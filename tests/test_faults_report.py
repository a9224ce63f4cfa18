"""What `make faults` counts, it really counts; and anything that is off makes it fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from faults_report import CORPUS_ENTRIES, main

MODULE = """
import subprocess, sys, time
import pytest
pytestmark = pytest.mark.fault

def command(code, **options):
    return subprocess.run([sys.executable, "-c", code + "  # vidmatte"],
                          capture_output=True, **options)

def test_holds(record_property):
    record_property("fuzz_cases", 7)
    assert command("print(1)").returncode == 0

def test_shows_a_traceback():
    process = subprocess.Popen([sys.executable, "-c", "1 / 0  # vidmatte"], stdout=-1, stderr=-1)
    assert process.communicate() == process.communicate()  # one command
    assert process.returncode == 1

def test_breaks():
    assert command("print(1)").returncode == 1

def test_hangs():
    command("import time; time.sleep(30)", timeout=0.3)

@pytest.mark.timeout(0.5)
def test_never_ends():
    time.sleep(30)

def test_skips():
    pytest.skip("no such thing here")

@pytest.mark.parametrize("other", [1])
def test_is_no_command(other):
    subprocess.run([sys.executable, "-c", "1 / 0"], capture_output=True)
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the plugin writes about a module in which everything happens."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "test_things.py").write_text(MODULE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = fault: x\n")
    path = folder / "facts.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "faults_plugin", "-p",
               "no:cacheprovider", "--faults-json", str(path), str(folder)]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "PYTEST_ADDOPTS": ""}
    subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=60, check=False)
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def names(rows: Any) -> list[str]:
    return sorted(row.rpartition("::test_")[2] for row in rows)


def test_every_outcome_is_counted(counted: dict[str, Any]) -> None:
    outcomes = {row.rpartition("::test_")[2]: t["outcome"] for row, t in counted["tests"].items()}
    assert outcomes == {
        "holds": "passed", "shows_a_traceback": "passed", "breaks": "failed", "hangs": "failed",
        "never_ends": "failed", "skips": "skipped", "is_no_command[1]": "passed",
    }  # fmt: skip
    assert names(counted["hangs"]) == ["hangs", "never_ends"]
    assert names(counted["tracebacks"]) == ["shows_a_traceback"]
    assert counted["commands"] == 3
    assert all(test["fault"] for test in counted["tests"].values())


def verdicts(count: int = CORPUS_ENTRIES, **changes: Any) -> list[dict[str, Any]]:
    row = {"id": "x", "group": "g", "reasons": [], "skipped": "", "exit_code": 0, "stderr": "",
           "timed_out": False}  # fmt: skip
    return [row] * (count - 1) + [row | changes]


def facts(**changes: Any) -> dict[str, Any]:
    test = {"fault": True, "outcome": "passed", "seconds": 1.0, "facts": {"fuzz_cases": 300}}
    other = test | {"fault": False, "outcome": "failed"}
    rows = {"tests/test_a.py::test_x": test | changes, "tests/test_b.py::test_y": other}
    return {"tests": rows, "commands": 5, "hangs": [], "tracebacks": []}


def report(tmp_path: Path, corpus: list[dict[str, Any]], tests: dict[str, Any]) -> int:
    (tmp_path / "verdicts.json").write_text(json.dumps(corpus))
    (tmp_path / "tests.json").write_text(json.dumps(tests))
    return main(["--tests", str(tmp_path / "tests.json"),
                 "--verdicts", str(tmp_path / "verdicts.json")])  # fmt: skip


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path, verdicts(), facts()) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"corpus 196/196, faults 1/1, 300 fuzz cases, 0 hangs, 0 tracebacks in {196 + 5} commands"
    )


@pytest.mark.parametrize(
    ("corpus", "tests", "said"),
    [
        (verdicts(reasons=["exit 3"]), facts(), "FAILED g/x: exit 3"),
        (verdicts(timed_out=True), facts(), "1 hangs"),
        (verdicts(stderr="Traceback (most recent call last):"), facts(), "1 tracebacks"),
        (verdicts(195), facts(), "the corpus has 196 entries"),
        (verdicts(), facts(outcome="failed"), "FAILED tests/test_a.py::test_x"),
        (verdicts(), facts(facts={"hangs": 2}), "2 hangs"),
        (verdicts(), facts(facts={"tracebacks": 1}), "1 tracebacks"),
        (verdicts(), facts() | {"hangs": ["t"]}, "HANG t"),
        (verdicts(), facts() | {"tracebacks": ["t"]}, "TRACEBACK t"),
        (verdicts(), facts(fault=False), "faults 0/0"),
    ],
)
def test_whatever_is_off_fails(
    corpus: list[dict[str, Any]],
    tests: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report(tmp_path, corpus, tests) == 1
    assert said in capsys.readouterr().out


def test_a_skipped_entry_is_told_and_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path, verdicts(skipped="root may read every file"), facts()) == 0
    assert "corpus 195/195 (1 skipped)" in capsys.readouterr().out


def test_results_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="was not written"):
        main(["--tests", str(tmp_path / "no.json"), "--verdicts", str(tmp_path / "no.json")])
