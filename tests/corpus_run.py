"""Run the command under test on one corpus entry, and watch what it does meanwhile."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from corpus_manifest import Entry

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_COMMAND = f"{shlex.quote(sys.executable)} -m vidmatte run {{options}} {{input}} {{output}}"
TIME_LIMIT_S = 90
BAIT_PORT = 8099  # the address that the corpus's hostile playlists name
SDP_PORTS = (50004, 50005)  # those of its SDP file, RTP and RTCP
# Root that passes over no permissions: what a file forbids is forbidden, and Python stays readable
# wherever it lies, as it does not for another user.
LIKE_A_USER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
NATIVE_SUFFIXES = {
    ".mp4": ".mp4", ".m4v": ".mp4", ".3gp": ".mp4", "": ".mp4", ".mov": ".mov", ".webm": ".webm",
    ".gif": ".gif", ".apng": ".apng", ".png": ".png", ".jpg": ".png",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What one command did. `left` are the files in its output folder, relative to it."""

    arguments: list[str]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    peak_mb: int
    timed_out: bool
    output: Path
    left: list[str]
    contacts: int
    udp_ports: list[int]


class BaitListener:
    """Accepts connections on the port that hostile files name, and counts them.

    Hold `alone` while running an entry that may connect, so that a contact has one culprit.
    """

    def __init__(self, *, patience_s: float = 0.0) -> None:
        self.contacts = 0
        self.alone = threading.Lock()
        self._server = _listen(time.monotonic() + patience_s)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> BaitListener:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.contacts += 1
            connection.close()


def _listen(until: float) -> socket.socket:
    while True:
        try:
            return socket.create_server(("127.0.0.1", BAIT_PORT))
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(1)


def can_run_like_a_user() -> bool:
    """Whether commands can be run to which permissions apply."""
    if os.geteuid() != 0:
        return True
    try:
        return subprocess.run([*LIKE_A_USER, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def output_suffix(entry: Entry, target: str) -> str:
    """Choose the container: the source's own family, or what the target mode asks for."""
    if target == "lossless":
        return ".mkv"
    own = NATIVE_SUFFIXES.get(Path(entry.file).suffix.lower(), ".mkv")
    return ".mp4" if target == "mp4" and own != ".png" else own


def options_for(suffix: str, target: str, backend: str) -> list[str]:
    """Ask for what the suffix alone would not mean: an opaque picture, lossless pictures."""
    options = ["--backend", backend]
    if target == "lossless":
        return [*options, "--codec", "ffv1"]
    return [*options, *(["--background", "green"] if suffix in (".mov", ".webm") else [])]


def run_entry(
    entry: Entry,
    corpus: Path,
    scratch: Path,
    bait: BaitListener,
    *,
    command: str,
    target: str,
    backend: str,
) -> Run:
    """Run `command` on an entry in a fresh folder under a time limit.

    `command` is a template with {options}, {input} and {output}. The output folder is
    `scratch/out`; home, cache and temporary folders are inside `scratch`.
    """
    out = scratch / "out"
    for folder in (out, scratch / "home", scratch / "tmp", scratch / "cwd"):
        folder.mkdir(parents=True)
    suffix = output_suffix(entry, target)
    output = out / f"out{suffix}"
    options = options_for(suffix, target, backend)
    arguments = _arguments(command, options, _input(entry, corpus), str(output))
    if entry.skip_if_root and os.geteuid() == 0:
        arguments = [*LIKE_A_USER, *arguments]
    cwd = corpus if entry.via in ("argv", "cwd") else scratch / "cwd"
    contacts = bait.contacts
    stdin_file = corpus / entry.file if entry.via == "stdin" else None
    started = time.monotonic()
    exit_code, watch = _execute(arguments, cwd, scratch, stdin_file)
    return Run(
        arguments=arguments,
        exit_code=exit_code,
        stdout=(scratch / "stdout").read_text("utf8", "backslashreplace"),
        stderr=(scratch / "stderr").read_text("utf8", "backslashreplace"),
        seconds=time.monotonic() - started,
        peak_mb=watch.peak_mb,
        timed_out=watch.timed_out,
        output=output,
        left=sorted(str(p.relative_to(out)) for p in out.rglob("*")),
        contacts=bait.contacts - contacts,
        udp_ports=sorted(watch.udp_ports),
    )


def _input(entry: Entry, corpus: Path) -> str:
    if entry.via == "stdin":
        return "-"
    return entry.file if entry.via in ("argv", "cwd") else str(corpus / entry.file)


def _arguments(command: str, options: list[str], source: str, output: str) -> list[str]:
    arguments = []
    for word in shlex.split(command):
        if word == "{options}":
            arguments += options
        elif word == "{input}" and source.startswith("-") and source != "-":
            arguments += ["--", source]
        else:
            arguments.append({"{input}": source, "{output}": output}.get(word, word))
    return arguments


def _environment(scratch: Path) -> dict[str, str]:
    own = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "home/.cache"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "VIDMATTE_"))}
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH")]))
    return kept | {k: str(scratch / v) for k, v in own.items()} | {"PYTHONPATH": python_path}


class _Watch:
    """Looks at a running process: its peak memory, UDP ports of the corpus, its time limit."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0
        self.timed_out = False
        self.udp_ports: set[int] = set()
        self._pid = pid
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def finish(self) -> None:
        self._finished.set()
        self._thread.join()

    def _look(self) -> None:
        limit = time.monotonic() + TIME_LIMIT_S
        while not self._finished.wait(0.01):
            self.peak_mb = max(self.peak_mb, _peak_mb(self._pid))
            self.udp_ports |= _open_udp_ports()
            if time.monotonic() > limit:
                self.timed_out = True
                os.killpg(self._pid, signal.SIGKILL)
                return


def _execute(
    arguments: list[str], cwd: Path, scratch: Path, stdin_file: Path | None
) -> tuple[int, _Watch]:
    """Run to the end or the time limit; return the exit code and what was seen."""
    feeder = None
    with (scratch / "stdout").open("wb") as stdout, (scratch / "stderr").open("wb") as stderr:
        if stdin_file is not None:  # through a pipe: a redirected file could be seeked in
            feeder = subprocess.Popen(["cat", "--", str(stdin_file)], stdout=subprocess.PIPE)
        process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=_environment(scratch),
            stdin=feeder.stdout if feeder else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    if feeder and feeder.stdout:
        feeder.stdout.close()
    watch = _Watch(process.pid)
    process.wait()
    watch.finish()
    if feeder:
        feeder.kill()
        feeder.wait()
    return process.returncode, watch


def _peak_mb(pid: int) -> int:
    """Peak resident memory; not from rusage, which begins at the size of the forking parent."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def _open_udp_ports() -> set[int]:
    table = Path("/proc/net/udp")
    lines = table.read_text("ascii").splitlines()[1:] if table.exists() else []
    found = {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
    return found & set(SDP_PORTS)


def scratch_folder(keep: Path | None, name: str) -> tempfile.TemporaryDirectory[str] | Path:
    """Make the folder of one run: a temporary one, or one under `keep` that stays."""
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="vidmatte-corpus-")
    folder = keep / name
    folder.mkdir(parents=True)
    return folder
