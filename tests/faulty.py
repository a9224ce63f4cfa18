"""What fault tests share: the real command with one thing in it broken, and how it must end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from conftest import Cli

LIMIT_S = 30.0  # for any command here; the slowest ends in a tenth of it
SLEEP_IN_C = """
import ctypes
def sleep_in_c():
    ctypes.CDLL(None).sleep(60)  # a foreign call: no signal handler of Python's runs meanwhile
"""


def start_broken(cli: Cli, patch: str, *arguments: object, **streams: Any) -> Any:
    """Start `vidmatte ARGUMENTS` in a process that runs the Python code `patch` first."""
    script = f"{SLEEP_IN_C}\n{patch}\nfrom vidmatte.__main__ import main\nmain()"
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    return subprocess.Popen(command, env=cli.env, **pipes)


@contextlib.contextmanager
def killed_at_exit(process: Any) -> Iterator[Any]:
    """Leave no process behind a test that fails."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: Any, timeout_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Wait for a process; kill it, and fail, past the limit."""
    with killed_at_exit(process):
        out, err = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_broken(
    cli: Cli, patch: str, *arguments: object, **streams: Any
) -> subprocess.CompletedProcess[str]:
    """Run `start_broken` to its end."""
    return ended(start_broken(cli, patch, *arguments, **streams))


def refusal(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Return the only `error:` line; fail on a traceback, a second one, or a second hint."""
    assert done.returncode == code, done.stderr
    assert no_traceback(done.stderr)
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert sum(line.startswith("hint: ") for line in lines) <= 1, done.stderr
    assert done.stdout in ("", b"", None)
    return errors[0]


def no_traceback(stderr: str) -> bool:
    return "Traceback" not in stderr and "internal error" not in stderr


def pictures_in(path: Path) -> int:
    """Count the pictures that come out of a file before the first that does not."""
    count = 0
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def at(event: str, action: str, count: int = 0) -> str:
    """Code that does `action` once `event` has been gone through `count` times."""
    return BREAKERS[event].format(count=count, action=action)


BREAKERS = {
    "opening": """
from vidmatte.sources.file import FileSource
def enter(self):
    {action}
FileSource.__enter__ = enter
""",
    "decoder": """
from vidmatte.sources.file import FileSource
frames_of = FileSource.__iter__
def frames(self):
    for frame in frames_of(self):
        if frame.index == {count}:
            {action}
        yield frame
FileSource.__iter__ = frames
""",
    "model": """
from vidmatte.backends import null
def open_backend(request):
    {action}
null.open_backend = open_backend
""",
    "backend": """
from vidmatte.backends import null
def formula(matte, index):
    matte[:] = 1
    if index == {count}:
        {action}
null.FORMULAS["ones"] = formula
""",
    "encoder": """
from vidmatte.sinks.file import FileSink
class Encoder:
    def __init__(self, stream):
        self.stream, self.count = stream, 0
    def encode(self, picture):
        if picture is not None and self.count == {count}:
            {action}
        self.count += 1
        return self.stream.encode(picture)
add = FileSink._add_video
FileSink._add_video = lambda self, muxing: Encoder(add(self, muxing))
""",
}


def hang(reached: Path) -> str:
    """Code that makes the file `reached` and then hangs in C code."""
    return f"open({str(reached)!r}, 'w').close(); sleep_in_c()"
