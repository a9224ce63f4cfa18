"""What a live session tells on the terminal: one status line, events, and the last line."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from vidmatte.cli.console import Console
from vidmatte.errors import printable

if TYPE_CHECKING:
    from vidmatte.live.contracts import LiveResult, LiveStatus

TERMINAL_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 10.0  # between status lines where there is no terminal
STATES = {
    "matte": "matte",
    "none": "ROOM SHOWN (background none)",
    "pass-through": "ROOM SHOWN",
    "frozen": "frozen",
    "closed": "background alone",
    "idle": "camera off, nobody looks",
}


class LiveConsole(Console):
    """Prints a session's events and status to stderr; with `as_json` its result to stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        super().__init__(quiet=quiet, as_json=as_json)
        self._cpu = CpuShare()
        self._interval_s = TERMINAL_INTERVAL_S if self._terminal else PLAIN_INTERVAL_S
        self._next_s = time.monotonic() + self._interval_s

    def event(self, line: str) -> None:
        """Print what happened, unless quiet."""
        self.clear()
        self.say(line)

    def show_status(self, status: LiveStatus) -> None:
        """Show how it goes: in place on a terminal, else as a line; does nothing until it is time.

        Once a second on a terminal, every ten seconds elsewhere.
        """
        now_s = time.monotonic()
        if self._quiet or now_s < self._next_s:
            return
        self._next_s = now_s + self._interval_s
        self.overwrite(status_line(status, self._cpu.share()))

    def finish(self, result: LiveResult, recorded: str | None) -> int:
        """Print the last line or the JSON document; return the exit code."""
        self.clear()
        if self._as_json:
            sys.stdout.write(json.dumps(as_document(result, recorded)) + "\n")
        else:
            self.say(last_line(result, recorded))
        return 128 + result.stopped_by if result.stopped_by else 0


class CpuShare:
    """The share of the machine's cores that this process used since the last look."""

    def __init__(self) -> None:
        self._cores = _cores()
        self._used_s, self._at_s = _cpu_s(), time.monotonic()

    def share(self) -> float:
        """Return 0..1 of all cores that this process may use."""
        used_s, at_s = _cpu_s(), time.monotonic()
        elapsed_s = max(at_s - self._at_s, 1e-6)
        share = (used_s - self._used_s) / elapsed_s / self._cores
        self._used_s, self._at_s = used_s, at_s
        return min(max(share, 0.0), 1.0)


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _cores() -> int:
    from vidmatte.backends import usable_cores

    return usable_cores()


def status_line(status: LiveStatus, cpu_share: float | None) -> str:
    """Say in one line how a session is doing, the most wanted first: terminals cut it.

    `cpu_share` is 0..1 of the cores, None where it is not known.
    """
    counts = status.counts
    parts = [
        f"in {status.in_fps:.1f} out {status.out_fps:.1f} fps",
        f"latency {status.latency_p50_ms:.0f}/{status.latency_p95_ms:.0f} ms",
        f"dropped {counts.dropped}",
        f"repeated {counts.repeated}",
        _used(status, cpu_share),
        STATES[status.state],
        printable(status.background),
        "" if status.present else "nobody there",
        printable(status.level),
    ]
    return "  ".join(part for part in parts if part)


def _used(status: LiveStatus, cpu_share: float | None) -> str:
    on_gpu = "GPU" if "cuda" in status.device.lower() else ""
    if cpu_share is None:
        return on_gpu
    return f"{on_gpu} CPU {cpu_share:.0%}".strip()


def last_line(result: LiveResult, recorded: str | None) -> str:
    """Sum a session up."""
    status, counts = result.status, result.status.counts
    parts = [
        f"webcam: {counts.shown} pictures in {result.elapsed_s:.1f} s",
        f"{counts.dropped} dropped, {counts.repeated} repeated, "
        f"{counts.closed} of the background alone",
        f"latency {status.latency_p50_ms:.0f}/{status.latency_p95_ms:.0f} ms (p50/p95)",
    ]
    if recorded is not None:
        parts.append(f"recorded in {printable(recorded)}")
    if status.device:
        parts.append(status.device)
    return "; ".join(parts)


def as_document(result: LiveResult, recorded: str | None) -> dict[str, object]:
    """Return a session's result as a JSON document."""
    return {
        "status": asdict(result.status),
        "elapsed_s": round(result.elapsed_s, 3),
        "recorded": None if recorded is None else printable(recorded),
        "stopped_by": result.stopped_by or None,
    }
