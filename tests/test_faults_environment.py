"""Broken surroundings: closed streams, odd locales, no home, a wrong clock, too little of anything.

The real command, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from cli_here import CliHere
from conftest import Cli, decode, leftovers, make_clip, wait_until
from faulty import ended, killed_at_exit, no_traceback, refusal, start_broken
from safetensors.numpy import save

from vidmatte.models.table import convolutions, models

pytestmark = pytest.mark.fault

FRAMES = 10
NETWORK = models()["u2netp"].network
CTRL_C_S = 2.0
SLACK_S = 1.5  # other tests on the same two cores
NULL = ("--backend", "null")
AS_ROOT = os.geteuid() == 0
needs_setpriv = pytest.mark.skipif(
    not AS_ROOT or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
# Root without the right to pass over permissions: what a folder forbids is forbidden.
LIKE_A_USER = 'set -- setpriv --bounding-set -dac_override,-dac_read_search "$@";' * AS_ROOT


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "s.mp4", FRAMES, audio="aac")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("stream") / "s.ts", 100, (160, 96))


def is_plain(text: str) -> bool:
    """Whether nothing in it acts on a terminal."""
    return all(c == "\n" or c.isprintable() for c in text)


# Names and locales

LOCALES = {
    "ascii": {"LC_ALL": "POSIX", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
              "PYTHONIOENCODING": "ascii"},
    "absent": {"LC_ALL": "xx_XX.ISO-8859-15", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf8": {"LC_ALL": "C.UTF-8"},
}  # fmt: skip
ODD_NAME = os.fsdecode(b"a\xff\xe9\n\r\x1b]0;x\x07\x1b[31m \xc3\xa9.mp4")


@pytest.mark.parametrize("locale", LOCALES)
def test_names_that_are_no_text_in_any_locale(
    locale: str, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    run_cli.env |= LOCALES[locale]
    source, output = tmp_path / ODD_NAME, tmp_path / f"o{ODD_NAME}"
    shutil.copy(clip, source)
    done = run_cli("run", source, output, *NULL, "--json", "-b", source)
    assert done.returncode == 0, done.stderr
    assert is_plain(done.stdout)
    assert is_plain(done.stderr)
    assert json.loads(done.stdout)["frames"] == FRAMES
    assert len(decode(output)) == FRAMES
    done = run_cli("run", source, output, *NULL)
    assert "exists already" in refusal(done)
    assert is_plain(done.stderr)
    done = run_cli("run", f"{source}x", f"{output}x.mp4", *NULL)
    assert "no such file" in refusal(done)
    assert is_plain(done.stderr)


def test_names_as_long_as_they_may_be(clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    longest = tmp_path / ("n" * 251 + ".mp4")
    shutil.copy(clip, longest)
    done = run_cli("run", longest, tmp_path / ("o" * 246 + ".mp4"), *NULL)
    assert done.returncode == 0, done.stderr
    for length in (251, 252, 5000):  # with room for .part, for itself, for nothing
        done = run_cli("run", longest, tmp_path / ("p" * length + ".mp4"), *NULL)
        if done.returncode:
            assert "the name is too long" in refusal(done)
    assert all(name.startswith(("n", "o", "p" * 251)) for name in leftovers(tmp_path))


def test_names_too_long_for_anything_are_one_line(
    clip: Path, tmp_path: Path, cli_here: CliHere
) -> None:
    """Regression: an internal error where a name was tried as a folder first."""
    name, output = tmp_path / ("x" * 300), tmp_path / "o.mp4"
    for arguments in (
        (name, output),
        (f"{name}.mp4", output),
        (f"{name}_%04d.png", output),
        (clip, name),
        (clip, f"{name}_%04d.png"),
        (clip.parent, name),
        (clip, output, "-b", f"{name}.png"),
        (clip, output, "--weights", f"{name}.pth"),
        (clip, output, "--alpha", f"{name}.mkv"),
    ):
        assert "x" * 300 in cli_here("run", *arguments, *NULL).refusal
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(AS_ROOT and shutil.which("setpriv") is None, reason="needs setpriv")
def test_folders_that_may_not_be_entered(clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    """Regression: an internal error for an input, and a background was taken for a colour."""
    locked, output = tmp_path / "locked", tmp_path / "o.mp4"
    locked.mkdir()
    shutil.copy(clip, locked / "s.mp4")
    locked.chmod(0)
    try:
        for words, arguments in {
            "s.mp4: permission denied": (locked / "s.mp4", output),
            "locked/s.mp4: permission denied": (clip, output, "-b", locked / "s.mp4"),
            "no such file": (locked / "f_%04d.png", output),
            "the folder is not writable": (clip, locked / "o.mp4"),
            "locked": (locked, tmp_path / "out"),
        }.items():
            done = run_cli("run", *arguments, *NULL, shell_prefix=LIKE_A_USER)
            assert words in next(x for x in done.stderr.splitlines() if x.startswith("error: "))
            assert done.returncode == 1
            assert no_traceback(done.stderr)
    finally:
        locked.chmod(0o700)
    assert leftovers(tmp_path) == ["locked"]


# Standard streams


def test_standard_input_that_ends_early_keeps_what_came(
    stream: Path, tmp_path: Path, run_cli: Cli
) -> None:
    data = stream.read_bytes()
    process = run_cli.start(
        "run", "-", tmp_path / "o.mp4", *NULL, stdin=subprocess.PIPE, text=False
    )
    with killed_at_exit(process):
        _, err = process.communicate(data[: len(data) * 3 // 5], timeout=30)
    assert process.returncode == 0, err
    assert 40 < len(decode(tmp_path / "o.mp4")) < 80
    assert leftovers(tmp_path) == ["o.mp4"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "noise"])
def test_standard_input_that_is_no_video(device: str, tmp_path: Path, run_cli: Cli) -> None:
    """The noise is always the same: one of some 2,500 streams looks like endless H.263."""
    if device == "noise":
        noise = tmp_path / device
        noise.write_bytes(np.random.default_rng(0).bytes(32 << 20))
        device = str(noise)
    with open(device, "rb") as stream:
        done = run_cli("run", "-", tmp_path / "o.mp4", *NULL, stdin=stream)
    assert "standard input" in refusal(done)
    assert leftovers(tmp_path, "noise") == []


def test_standard_input_that_is_a_terminal(tmp_path: Path, run_cli: Cli) -> None:
    master, slave = pty.openpty()
    try:
        done = run_cli("run", "-", tmp_path / "o.mp4", *NULL, stdin=slave)
    finally:
        os.close(master)
        os.close(slave)
    assert "is a terminal" in refusal(done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_nobody_ever_fills_is_left_by_a_signal(
    number: signal.Signals, tmp_path: Path, run_cli: Cli
) -> None:
    os.mkfifo(tmp_path / "fifo")
    stdin = os.open(tmp_path / "fifo", os.O_RDWR)  # opening it for reading only would block here
    process = run_cli.start("run", "-", tmp_path / "o.mp4", *NULL, stdin=stdin)
    os.close(stdin)
    with killed_at_exit(process):
        wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) > 1)
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert time.monotonic() - began < CTRL_C_S + SLACK_S
    assert process.returncode == 128 + number
    assert no_traceback(err)
    assert leftovers(tmp_path) == ["fifo"]


@pytest.mark.parametrize("arguments", [["--help"], ["models", "list"], ["run", "S", "O", "--json"]])
def test_results_that_nobody_can_read_are_an_error(
    arguments: list[str], clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """A full disk and a reader that has gone; the picture itself is whole."""
    names = {"S": str(clip), "O": str(tmp_path / "o.mp4")}
    words = [names.get(word, word) for word in arguments]
    words += NULL if "run" in words else ()
    with open("/dev/full", "wb") as full:
        done = run_cli(*words, stdout=full)
    assert "the disk is full" in refusal(done)
    reader, writer = os.pipe()
    os.close(reader)
    done = run_cli(*words, *(["--overwrite"] if "run" in words else []), stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert no_traceback(done.stderr)
    if "run" in words:
        assert len(decode(tmp_path / "o.mp4")) == FRAMES


def test_video_into_a_reader_that_has_gone_or_a_full_disk(clip: Path, run_cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_cli("run", clip, "-", *NULL, stdout=writer)
    os.close(writer)
    assert "the reader has gone" in refusal(done)
    with open("/dev/full", "wb") as full:
        assert "the disk is full" in refusal(run_cli("run", clip, "-", *NULL, stdout=full))


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_messages_that_nobody_can_read_change_nothing(
    stderr: str, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    prefix = f"exec {stderr};"
    assert run_cli("run", clip, tmp_path / "o.mp4", *NULL, shell_prefix=prefix).returncode == 0
    assert len(decode(tmp_path / "o.mp4")) == FRAMES
    assert run_cli("run", clip, tmp_path / "o.mp4", *NULL, shell_prefix=prefix).returncode == 1
    assert run_cli("run", clip, shell_prefix=prefix).returncode == 2


@pytest.mark.parametrize("columns", ["1", "0", "-7", "x", "100000"])
def test_a_terminal_of_any_width(columns: str, stream: Path, tmp_path: Path, run_cli: Cli) -> None:
    run_cli.env |= {"TERM": "dumb", "COLUMNS": columns, "LINES": columns}
    master, slave = pty.openpty()
    process = run_cli.start("run", stream, tmp_path / "o.mp4", *NULL, stderr=slave)
    os.close(slave)
    shown = bytearray()
    with contextlib.suppress(OSError), killed_at_exit(process):  # EIO: the other end has gone
        while block := os.read(master, 1000):
            shown += block
    os.close(master)
    assert process.wait(timeout=10) == 0, shown
    assert b"100 frames in" in shown


# Home, caches, temporary files


def test_a_run_leaves_nothing_outside_its_output(clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    for name in ("home", "cache", "data", "tmp", "out", "cwd"):
        (tmp_path / name).mkdir()
    run_cli.env |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache"),
                    "XDG_DATA_HOME": str(tmp_path / "data"),
                    "TMPDIR": str(tmp_path / "tmp")}  # fmt: skip
    done = run_cli("run", clip, tmp_path / "out" / "o.mp4", cwd=tmp_path / "cwd")
    assert done.returncode == 0, done.stderr
    files = [p.name for p in tmp_path.rglob("*") if not p.is_dir()]
    assert files == ["o.mp4"]
    assert leftovers(tmp_path) == ["cache", "cwd", "data", "home", "out", "tmp"]


@pytest.mark.parametrize("where", ["missing", "not writable", "a file", "unset", "empty"])
def test_no_home_is_needed(where: str, clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    folder = tmp_path / "home"
    if where == "a file":
        folder.write_text("x")
    elif where == "not writable":
        folder.mkdir(mode=0o500)
    value = "" if where == "empty" else str(folder)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR"):
        run_cli.env[name] = value
        if where == "unset":
            del run_cli.env[name]
    (tmp_path / "out").mkdir()
    prefix = LIKE_A_USER if shutil.which("setpriv") or not AS_ROOT else ""
    done = run_cli("run", clip, tmp_path / "out" / "o.mp4", shell_prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert len(decode(tmp_path / "out" / "o.mp4")) == FRAMES
    assert run_cli("models", "list", shell_prefix=prefix).returncode == 0


def test_a_store_that_cannot_be_written_or_read_is_named(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    if AS_ROOT and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to give up root's rights")
    weights = tmp_path / "u2netp.safetensors"
    shape = {conv.weight_key: conv.weight_shape for conv in convolutions(NETWORK)}
    shape |= {conv.bias_key: (conv.out_channels,) for conv in convolutions(NETWORK)}
    weights.write_bytes(save({key: np.zeros(size, np.float16) for key, size in shape.items()}))
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    run_cli.env["VIDMATTE_MODEL_DIR"] = str(locked / "models")
    done = run_cli("models", "import", weights, shell_prefix=LIKE_A_USER)
    assert f"cannot write into {locked / 'models'}: Permission denied" in refusal(done)
    assert "hint: " in done.stderr
    run_cli.env["VIDMATTE_MODEL_DIR"] = str(tmp_path / "own")
    assert run_cli("models", "import", weights).returncode == 0
    (tmp_path / "own" / "u2netp.safetensors").chmod(0)
    run = ("run", clip, tmp_path / "o.mp4", "--model", "u2netp")
    assert "u2netp.safetensors cannot be read" in refusal(run_cli(*run, shell_prefix=LIKE_A_USER))
    (tmp_path / "own").chmod(0)
    assert refusal(run_cli(*run, shell_prefix=LIKE_A_USER))
    assert leftovers(tmp_path, "locked", "own", weights.name) == []
    (tmp_path / "own").chmod(0o700)


# Time

CLOCKS = {
    "1970": "time.time = lambda: 0.0",
    "1900": "time.time = lambda: -2208988800.0",
    "back": "ticks = itertools.count(2e9, -3600)\ntime.time = lambda: next(ticks)",
    "forth": "ticks = itertools.count(0, 1e8)\ntime.time = lambda: next(ticks)",
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_clock_that_is_wrong_or_jumps(
    clock: str, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    patch = (
        f"import itertools, time\n{CLOCKS[clock]}\ntime.time_ns = lambda: int(time.time() * 1e9)"
    )
    output = tmp_path / "o.mp4"
    done = ended(start_broken(run_cli, patch, "run", clip, output, *NULL, "--json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["elapsed_s"] < 30
    assert result["fps"] > 0
    assert len(decode(output)) == FRAMES


# Too little of something


def ends_well(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The error line, or "" for success; fail on anything between."""
    if done.returncode == 0:
        assert len(decode(folder / "o.mp4")) == FRAMES
        return ""
    error = refusal(done)
    assert "hint: " in done.stderr
    assert leftovers(folder) == []
    return error


@pytest.mark.parametrize("megabytes", [150, 300, 450, 600, 800, 950, 1200])
def test_little_address_space_is_one_line(
    megabytes: int, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Regression: it was a crash in OpenCV's BLAS at 1 GB and an internal error below."""
    done = run_cli("run", clip, tmp_path / "o.mp4", shell_prefix=f"ulimit -v {megabytes}000;")
    error = ends_well(done, tmp_path)
    if megabytes <= 300:
        assert "out of memory" in error or "threads" in error


@pytest.mark.parametrize("megabytes", [950, 1050, 1500])
def test_little_address_space_without_a_network(
    megabytes: int, clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    limit = f"ulimit -v {megabytes}000;"
    ends_well(run_cli("run", clip, tmp_path / "o.mp4", *NULL, shell_prefix=limit), tmp_path)


@pytest.mark.parametrize("count", [7, 8, 16, 32, 64])
def test_few_descriptors(count: int, clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    """Regression: an index that cannot be read for want of a descriptor was called damaged."""
    done = run_cli("run", clip, tmp_path / "o.mp4", shell_prefix=f"ulimit -n {count};")
    error = ends_well(done, tmp_path)
    assert not error or "too many" in error
    assert not error or "hint: raise the limit: ulimit -n" in done.stderr
    assert not error or count < 16


@needs_setpriv
@pytest.mark.parametrize("count", [0, 2, 4, 6, 8, 10, 40])
def test_few_threads(count: int, clip: Path, run_cli: Cli) -> None:
    """Regression: BLAS interrupted the process; a decoder without threads meant a damaged file."""
    user = 61000 + os.getpid() % 1000  # nobody else's processes count
    prefix = (
        f"set -- prlimit --nproc={count} setpriv --reuid {user} --regid {user} --clear-groups"
        " --inh-caps +dac_read_search --ambient-caps +dac_read_search"
        ' --bounding-set -all,+dac_read_search "$@";'
    )
    with tempfile.TemporaryDirectory() as name:  # that user may not enter pytest's folder
        folder = Path(name)
        folder.chmod(0o777)
        done = run_cli("run", clip, folder / "o.mp4", *NULL, shell_prefix=prefix)
        if done.returncode:
            error = refusal(done)
            assert "thread" in error or (count > 2 and "cannot be encoded" in error)
            assert leftovers(folder) == []
        else:
            assert len(decode(folder / "o.mp4")) == FRAMES
    assert done.returncode == 1 if count < 4 else done.returncode == 0 or count < 40


def test_one_core(clip: Path, tmp_path: Path, run_cli: Cli) -> None:
    core = min(os.sched_getaffinity(0))
    patch = f"import os\nos.sched_setaffinity(0, [{core}])"
    output = tmp_path / "o.mp4"
    done = ended(start_broken(run_cli, patch, "run", clip, output, "--json"))
    assert done.returncode == 0, done.stderr
    assert "1 thread" in json.loads(done.stdout)["device"]
    assert len(decode(output)) == FRAMES
