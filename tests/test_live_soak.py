"""A call may go on all day: memory, threads and descriptors of a live session stay flat.

Camera, virtual camera and network are lost and come back all the time, backgrounds and states
change. Memory is what the kernel counts (RssAnon after malloc_trim).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Cli

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

QUICK_S, LONG_S, HOUR_S = 15, 120, 3600
WARM_SHARE = 1 / 4  # of the samples, until every part has been lost once
# A network opened again comes to lie elsewhere, 3 to 6 MB up or down. Every picture kept would be
# 15 MB over the quick form, one in ten as much over the long one, one in 300 over the hour.
MB_QUICK, MB_LONG, MB_HOUR = 9.0, 9.0, 9.0
SLACK_S = 60


def soak(cli: Cli, seconds: float, *extra: str) -> dict[str, Any]:
    script = Path(__file__).with_name("live_soaking.py")
    done = subprocess.run(
        [sys.executable, str(script), str(seconds), *extra],
        env=cli.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds + SLACK_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def growth(told: dict[str, Any], name: str) -> float:
    """How much the median of the last third is above that of the first, after the start."""
    values = [s[name] for s in told["samples"]]
    values = values[round(WARM_SHARE * len(values)) :]
    third = len(values) // 3
    assert third >= 5, "too few samples"
    return statistics.median(values[-third:]) - statistics.median(values[:third])


def check(told: dict[str, Any], seconds: float, grown_mb: float) -> None:
    assert told["exact"], "every picture is counted"
    assert not told["hanging"]
    assert told["shown"] > seconds, "it did work"
    assert min(told["opened"].values()) >= 1
    assert told["opened"]["camera"] >= seconds / 10
    assert growth(told, "memory_mb") < grown_mb
    assert growth(told, "threads") <= 0
    assert growth(told, "descriptors") <= 0


def test_a_quarter_of_a_minute_leaves_nothing_behind(run_cli: Cli) -> None:
    check(soak(run_cli, QUICK_S), QUICK_S, MB_QUICK)


@pytest.mark.soak
@pytest.mark.timeout(LONG_S + 2 * SLACK_S)
def test_two_minutes_leave_nothing_behind(run_cli: Cli) -> None:
    told = soak(run_cli, LONG_S)
    check(told, LONG_S, MB_LONG)
    assert told["opened"]["network"] >= 4
    assert told["opened"]["output"] >= 6


@pytest.mark.soak
def test_pictures_that_are_kept_would_be_seen(run_cli: Cli) -> None:
    assert growth(soak(run_cli, QUICK_S, "leak"), "memory_mb") > MB_QUICK


@pytest.mark.slow
@pytest.mark.timeout(HOUR_S + 2 * SLACK_S)
def test_an_hour_leaves_nothing_behind(run_cli: Cli) -> None:
    told = soak(run_cli, HOUR_S)
    check(told, HOUR_S, MB_HOUR)
    assert told["opened"]["network"] >= 100
