"""What a run tells on the terminal: progress, notes, warnings and the last line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from vidmatte.cli.failures import hint_of, notes_of, tell
from vidmatte.errors import VidmatteError, printable

if TYPE_CHECKING:
    from vidmatte.jobs import Progress, RunResult
    from vidmatte.pipeline import Stop

PLAIN_INTERVAL_S = 5.0  # between progress lines where there is no terminal


def watch_signals(stop: Stop, *, before_exit: Callable[[], None] = lambda: None) -> None:
    """Turn Ctrl-C and SIGTERM into a request to stop; a second one ends the process at once.

    `before_exit` is called, in the handler, before it does.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            before_exit()
            os._exit(128 + number)
        stop.request(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


class Console:
    """Prints progress and results to stderr; with `as_json` the result to stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._as_json = quiet, as_json
        self._terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._wrote_progress = False
        self.label, self.noun = "", "frame"

    def progress(self, progress: Progress) -> None:
        """Show how far the run is: in place on a terminal, else as a line now and then."""
        if self._quiet or not (progress.frames or progress.waiting_for):
            return
        if not self._terminal:
            if time.monotonic() - self._shown_at < PLAIN_INTERVAL_S:
                return
            self._shown_at = time.monotonic()
        line = _progress_line(progress, self.noun) if progress.frames else progress.waiting_for
        self.overwrite(f"{self.label}{line}")

    def overwrite(self, line: str) -> None:
        """Print a line over the last such line on a terminal, elsewhere below it."""
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{line[: columns - 1]}")  # a wrapped line would pile up
            self._wrote_progress = True
        else:
            self._write(f"{line}\n")

    def show(self, result: RunResult, source: str) -> int:
        """Print warnings, notes and the last line; return the exit code."""
        self.clear()
        for warning in result.warnings:
            self._write(f"warning: {printable(f'{source}: {warning}')}\n")
        if not self._quiet:
            for note in result.notes:
                self._write(f"note: {printable(note)}\n")
        for part in result.kept_parts:
            self._write(f"stopped: what was finished is in {printable(part)}\n")
        if self._as_json:
            sys.stdout.write(json.dumps(as_document(result, source)) + "\n")
        elif not self._quiet and result.stopped_by is None:
            self._write(f"{printable(last_line(result))}\n")
        return 0 if result.stopped_by is None else 128 + result.stopped_by

    def show_error(self, error: VidmatteError, source: str) -> None:
        """Print at once how one of several inputs failed."""
        self.clear()
        hint = hint_of(error)
        tell(str(error), hint, notes_of(error))
        if self._as_json:
            document = {"input": printable(source), "error": str(error), "hint": hint}
            sys.stdout.write(json.dumps(document) + "\n")

    def say(self, line: str) -> None:
        """Print a line unless quiet."""
        if not self._quiet:
            self._write(f"{printable(line)}\n")

    def warn(self, line: str) -> None:
        """Print a warning."""
        self.clear()
        self._write(f"warning: {printable(line)}\n")

    def clear(self) -> None:
        """Remove the progress line, so that others may print."""
        if self._wrote_progress:
            self._write("\r\x1b[K")
            self._wrote_progress = False

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _progress_line(progress: Progress, noun: str) -> str:
    fps = progress.frames / progress.elapsed_s if progress.elapsed_s else 0.0
    unit = "fps" if noun == "frame" else f"{noun}s/s"
    parts = [f"{progress.frames}{_of(progress)} {noun}s", f"{fps:.1f} {unit}"]
    if progress.frame_rate:
        parts.append(f"{fps / float(progress.frame_rate):.2f}x real time")
    left = _time_left_s(progress, fps)
    if left is not None:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return "  ".join(parts)


def _of(progress: Progress) -> str:
    count = progress.expected_frames
    return f" of {count}" if count and count >= progress.frames else ""


def _time_left_s(progress: Progress, fps: float) -> float | None:
    count = progress.expected_frames
    if not count or count < progress.frames or fps <= 0:
        return None
    return (count - progress.frames) / fps


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def last_line(result: RunResult) -> str:
    """Sum a run up: frames, speed, time, what was copied, where the time went."""
    names = ", ".join(result.outputs)
    frames = _counted(result.frames, "frame")
    copied = _counted(result.copied_streams, "other stream")
    copied = f", {copied} copied" if result.copied_streams else ""
    share = result.stage_share.get(result.bottleneck, 0.0)
    return (
        f"{names}: {frames} in {result.elapsed_s:.1f} s, {result.fps:.1f} fps"
        f"{copied}; {result.model} with {result.device}{_hardware(result)}; "
        f"busiest: {result.bottleneck} ({share:.0%} of the time)"
    )


def _hardware(result: RunResult) -> str:
    """Name decoder and encoders where the GPU may have been used for them."""
    if "cuda" not in result.device:
        return ""
    return f"; {result.decoder} in, {', '.join(dict.fromkeys(result.encoders))} out"


def as_document(result: RunResult, source: str) -> dict[str, object]:
    """Return the result as a JSON document."""
    return {
        "input": printable(source),
        "outputs": [printable(name) for name in result.outputs],
        "kept_parts": [printable(name) for name in result.kept_parts],
        "frames": result.frames,
        "elapsed_s": round(result.elapsed_s, 3),
        "fps": round(result.fps, 2),
        "model": result.model,
        "device": result.device,
        "decoder": result.decoder,
        "encoders": result.encoders,
        "copied_streams": result.copied_streams,
        "stage_share": {name: round(share, 3) for name, share in result.stage_share.items()},
        "bottleneck": result.bottleneck,
        "warnings": result.warnings,
        "notes": result.notes,
        "stopped_by": result.stopped_by,
    }
