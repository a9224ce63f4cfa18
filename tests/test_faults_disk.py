"""Disks that are full or fill up, and folders that refuse: what the real command leaves."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest
from conftest import Cli, leftovers, make_clip, run_file
from faulty import pictures_in, refusal

from vidmatte.jobs import Cut, EncodingChoice

pytestmark = pytest.mark.fault

NULL = ("--backend", "null")
NO_MODEL = ("--backend", "nosuch")  # what is found before it is found before any model
SOMEBODY = 65534
LIBC = ctypes.CDLL(None)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds: what a muxer and an encoder hold back is a small part of it."""
    return make_clip(tmp_path_factory.mktemp("clip") / "s.mkv", 150)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("short") / "s.mp4", 5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kb)` is a folder on a disk of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size_kb: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "vidmatte-test", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def whole_and_named(folder: Path, stderr: str) -> list[str]:
    """Check that each part in a folder plays and is named in the message; return their names."""
    names = leftovers(folder)
    for name in names:
        assert ".part" in name, names
        assert name in stderr
        pictures = [folder / name] if (folder / name).is_file() else (folder / name).iterdir()
        assert all(pictures_in(path) for path in pictures)
    return names


@as_root
@pytest.mark.parametrize("name", ["o.mp4", "o.mov", "o.mkv", "o.webm", "o.ts", "o.gif", "o_%d.png"])
def test_a_disk_that_fills_in_the_middle(
    name: str, clip: Path, tmp_path: Path, small_disk: Callable[[int], Path], run_cli: Cli
) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    run_file(clip, probe / name)
    size_kb = sum(path.stat().st_size for path in probe.iterdir()) // 1024
    folder = small_disk(size_kb * 2 // 3)
    done = run_cli("run", clip, folder / name, "-b", "green", *NULL)
    assert refusal(done) == f"error: {folder / name}: the disk is full"
    kept = whole_and_named(folder, done.stderr)
    assert name.endswith(".gif") or len(kept) == 1


@as_root
def test_a_disk_that_fills_under_several_outputs_names_none_of_them(
    clip: Path, tmp_path: Path, small_disk: Callable[[int], Path], run_cli: Cli
) -> None:
    """One output is on the full disk; the others are not named as if they were whole."""
    folder = small_disk(48)
    other = tmp_path / "other"
    other.mkdir()
    done = run_cli("run", clip, other / "o.mp4", "--alpha", folder / "a.mkv",
                   "--foreground", other / "f.mov", "--backend", "null:disc")  # fmt: skip
    assert refusal(done) == f"error: {folder / 'a.mkv'}: the disk is full"
    assert whole_and_named(folder, done.stderr) == ["a.part.mkv"]
    assert whole_and_named(other, done.stderr) == ["f.part.mov", "o.part.mp4"]


@as_root
def test_a_disk_that_is_full_is_found_before_the_model(
    short: Path, small_disk: Callable[[int], Path], run_cli: Cli
) -> None:
    folder = small_disk(16)
    with pytest.raises(OSError, match="No space"):
        (folder / "filler").write_bytes(bytes(1 << 20))
    done = run_cli("run", short, folder / "o.mp4", *NO_MODEL)
    assert refusal(done) == f"error: {folder / 'o.mp4'}: the disk is full"
    assert leftovers(folder) == ["filler"]


def limited(size: int) -> Callable[[], None]:
    """For `preexec_fn`: no file may grow past `size` bytes."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


# Encoders that give the same bytes every time: x264's depend on what was in its memory before.
CODECS = {".mp4": "mpeg4", ".mov": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4"}
SizeOf = Callable[[str], int]


@pytest.fixture(scope="module")
def size_of(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> SizeOf:
    """`size_of(suffix)` is the length of an output of the clip's first second."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def size(suffix: str) -> int:
        encoding = EncodingChoice(CODECS.get(suffix))
        run_file(clip, folder / f"o{suffix}", cut=Cut(end_s=1.0), encoding=encoding)
        return (folder / f"o{suffix}").stat().st_size

    return size


LAST_BYTES = [(suffix, 1) for suffix in (*CODECS, ".webm", ".gif", ".apng")]
LAST_BYTES += [(suffix, 600) for suffix in (*CODECS, ".ts")]


@pytest.mark.parametrize(("suffix", "missing"), LAST_BYTES)
def test_a_disk_that_fills_at_the_very_end(
    suffix: str, missing: int, clip: Path, tmp_path: Path, size_of: SizeOf, run_cli: Cli
) -> None:
    """The last bytes are an index or a flushed buffer; they too are part of success."""
    codec = ("--codec", CODECS[suffix]) if suffix in CODECS else ()
    arguments = ("run", clip, tmp_path / f"o{suffix}", "--end", "1", "-b", "green", *codec, *NULL)
    limit = size_of(suffix) - missing

    done = run_cli(*arguments, preexec_fn=limited(limit))
    assert "the file would be larger than allowed" in refusal(done)
    whole_and_named(tmp_path, done.stderr)


def test_a_picture_that_does_not_fit_leaves_nothing(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    done = run_cli("run", clip, tmp_path / "o.png", "--frame", "0", *NULL, preexec_fn=limited(1000))
    assert "the file would be larger than allowed" in refusal(done)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["/dev/full", "-"])
def test_a_stream_that_takes_nothing(name: str, short: Path, run_cli: Cli) -> None:
    with open("/dev/full", "wb") as full:
        done = run_cli("run", short, name, *NULL, stdout=full)
    shown = "standard output" if name == "-" else name
    assert refusal(done) == f"error: {shown}: the disk is full"


PR_CAPBSET_DROP = 24  # linux/prctl.h
OVERRIDES = (0, 1, 2, 3)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


def drop_overrides() -> None:
    """Make file permissions count for what is executed next, even as root."""
    if os.geteuid() == 0:
        for capability in OVERRIDES:
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def locked_folder(folder: Path, mode: int) -> Path:
    """Make a folder with that mode; skip where no permission stops this user's processes."""
    folder.mkdir()
    folder.chmod(0o555)
    command = ["touch", folder / "probe"]
    touched = subprocess.run(command, preexec_fn=drop_overrides, capture_output=True, check=False)
    if touched.returncode == 0:
        pytest.skip("this user may write everywhere")
    folder.chmod(mode)
    return folder


@pytest.mark.parametrize("name", ["o.mp4", "o_%d.png"])
def test_a_folder_that_may_not_be_written_is_found_before_the_model(
    name: str, short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    folder = locked_folder(tmp_path / "locked", 0o555)
    done = run_cli("run", short, folder / name, *NO_MODEL, preexec_fn=drop_overrides)
    shown = folder / (name % 1 if "%" in name else name)
    assert refusal(done) == f"error: {shown}: the folder is not writable"
    assert leftovers(folder) == []


@as_root
def test_a_stale_part_of_somebody_else_is_one_line(
    short: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """In a folder like /tmp nobody may rename what belongs to others."""
    folder = locked_folder(tmp_path / "sticky", 0o1777)
    part = folder / "o.part.mp4"
    part.write_bytes(b"theirs")
    for path in (part, folder):
        os.chown(path, SOMEBODY, SOMEBODY)
    done = run_cli("run", short, folder / "o.mp4", *NULL, preexec_fn=drop_overrides)
    assert refusal(done) == f"error: {folder / 'o.mp4'}: cannot be written: operation not permitted"
    assert part.read_bytes() == b"theirs"
    assert leftovers(folder) == ["o.part.mp4"]


def test_a_picture_that_cannot_be_written_whole_is_removed(
    clip: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Pictures grow with their noise: some of them pass a limit that others do not."""
    run_file(clip, tmp_path / "p_%d.png", cut=Cut(end_s=1.0))
    sizes = [(tmp_path / f"p_{n}.png").stat().st_size for n in range(1, 26)]
    limit = max(sizes[:5])
    fitting = next(n for n, size in enumerate(sizes) if size > limit)

    out = tmp_path / "out"
    out.mkdir()
    done = run_cli("run", clip, out / "o_%d.png", "-b", "green", *NULL, preexec_fn=limited(limit))
    assert "the file would be larger than allowed" in refusal(done)
    assert "o.part" in done.stderr
    assert len(leftovers(out / "o.part")) == fitting
    assert all(pictures_in(path) == 1 for path in (out / "o.part").iterdir())
