"""A pytest plugin that counts what `make faults` reports: outcomes, commands, hangs, tracebacks.

    PYTHONPATH=tests python -m pytest -p faults_plugin --faults-json FILE [-m fault]

A command is a process that a test starts with this package and waits for with `communicate`.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

HANG = re.compile(r"Timeout \(?>|TimeoutExpired")


class Counter:
    """What is written to the file at the end of the session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict[str, Any]] = {}
        self.commands = 0
        self.hangs: list[str] = []
        self.tracebacks: list[str] = []
        self.current = ""

    def saw(self, stderr: str | bytes | None) -> None:
        """Look at what a finished command has printed."""
        self.commands += 1
        text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr or ""
        if "Traceback (most recent call last)" in text:
            self.tracebacks.append(self.current)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Remember which test is running."""
        self.current = item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's outcome: the worst of its phases."""
        row = self.tests.setdefault(
            report.nodeid,
            {"fault": "fault" in report.keywords, "outcome": "passed", "seconds": 0.0, "facts": {}},
        )
        row["seconds"] += report.duration
        row["facts"] |= dict(report.user_properties)
        if report.outcome != "passed":
            row["outcome"] = report.outcome
        if report.failed and HANG.search(report.longreprtext):
            self.hangs.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        facts = {
            "tests": self.tests,
            "commands": self.commands,
            "hangs": self.hangs,
            "tracebacks": self.tracebacks,
        }
        self.path.write_text(json.dumps(facts, indent=1) + "\n")


def is_ours(process: subprocess.Popen[Any]) -> bool:
    """Whether a process runs this package, and is not asked for tracebacks."""
    words = process.args if isinstance(process.args, list | tuple) else [process.args]
    return any("vidmatte" in str(word) for word in words)


def count_commands(counter: Counter) -> None:
    """Have every `communicate` tell the counter."""
    original = subprocess.Popen.communicate

    @functools.wraps(original)
    def communicate(self: subprocess.Popen[Any], *args: Any, **options: Any) -> Any:
        output = original(self, *args, **options)
        if is_ours(self) and self.__dict__.setdefault("_counted", 0) == 0:  # it may be asked again
            self.__dict__["_counted"] = 1
            counter.saw(output[1])
        return output

    subprocess.Popen.communicate = communicate  # type: ignore[method-assign]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--faults-json", type=Path, help="write what was counted to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    path = config.getoption("--faults-json")
    if path is not None:
        counter = Counter(path)
        config.pluginmanager.register(counter)
        count_commands(counter)
