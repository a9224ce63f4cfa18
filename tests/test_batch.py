"""A folder goes in, the same folder comes out; one bad file does not spoil it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from conftest import Cli, decode, make_clip

from vidmatte.batch import OUTPUT_SUFFIXES, Job, output_kind, plan_folder, run_folder
from vidmatte.cli.console import Console
from vidmatte.cli.folder import run_plan
from vidmatte.errors import InputError, ModelError, UsageError
from vidmatte.frames import VideoInfo
from vidmatte.jobs import Progress, RunResult
from vidmatte.matting import MattingChoice, NetworkKeeper
from vidmatte.outputs import plan_for
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun
from vidmatte.sinks.plan import Content

SLOW = ("--backend", "null", "--preset", "veryslow", "--crf", "1")
SOME_PICTURES = 200_000  # bytes of a part: more than a GOP of the noise that is encoded


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), 90, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A video, a picture in a subfolder, a broken file, and what is neither."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    make_clip(tmp_path / "in" / "clip.mp4", 3)
    write_picture(tmp_path / "in" / "sub" / "photo.jpg")
    (tmp_path / "in" / "broken.mov").write_text("no video")
    (tmp_path / "in" / "notes.txt").write_text("no video")
    (tmp_path / "in" / ".hidden.mp4").write_text("no video")
    (tmp_path / "in" / "old.part.mp4").write_text("no video")
    return tmp_path / "in"


def start(source: str, outputs: dict[str, Content]) -> FileRun:
    return FileRun(source, outputs, matting=MattingChoice(backend="null"))


def names(jobs: list[Job], root: Path) -> list[str]:
    return [str(job.target.relative_to(root)) for job in jobs]


@pytest.mark.parametrize("background", [None, "green", "transparent"])
@pytest.mark.parametrize("one_picture", [False, True])
@pytest.mark.parametrize("suffix", sorted(OUTPUT_SUFFIXES))
def test_every_output_of_the_table_can_be_written(
    suffix: str, one_picture: bool, background: str | None
) -> None:
    name, content = output_kind(suffix, background, one_picture=one_picture)
    info = VideoInfo("", 64, 48, "yuv420p", *(1,) * 2, is_still=name == ".png")  # type: ignore[arg-type]
    plan = plan_for(f"out{name}", info, content, codec=None, crf=None, preset=None)
    assert plan.content == content


@pytest.mark.parametrize(
    ("suffix", "background", "expected"),
    [
        (".mp4", None, (".mp4", "opaque")),
        (".MOV", None, (".mov", "opaque")),
        (".avi", None, (".mp4", "opaque")),
        (".jpg", None, (".png", "transparent")),
        (".gif", None, (".gif", "transparent")),
        (".mp4", "transparent", (".mov", "transparent")),
        (".webm", "transparent", (".webm", "transparent")),
        (".jpg", "beach.jpg", (".png", "opaque")),
    ],
)
def test_outputs_follow_their_inputs(
    suffix: str, background: str | None, expected: tuple[str, str]
) -> None:
    assert output_kind(suffix, background) == expected


def test_plan_mirrors_the_tree_and_leaves_the_rest(folder: Path, tmp_path: Path) -> None:
    plan = plan_folder(folder, tmp_path / "out")
    assert names(plan.jobs, tmp_path / "out") == ["broken.mov", "clip.mp4", "sub/photo.png"]
    assert (plan.finished, plan.others) == (0, 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault
def test_one_failure_does_not_stop_the_rest(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    outcomes = list(run_folder(plan_folder(folder, target), start, Stop()))
    assert [o.error is None for o in outcomes] == [False, True, True]
    assert len(decode(target / "clip.mp4")) == 3
    assert decode(target / "sub" / "photo.png")[0].format.name == "rgba"
    assert sorted(p.name for p in target.rglob("*") if p.is_file()) == ["clip.mp4", "photo.png"]
    again = plan_folder(folder, target)
    assert names(again.jobs, target) == ["broken.mov"]
    assert again.finished == 2
    assert len(plan_folder(folder, target, overwrite=True).jobs) == 3


@pytest.mark.fault
def test_outputs_are_not_fed_back(folder: Path) -> None:
    target = folder / "out"
    list(run_folder(plan_folder(folder, target), start, Stop()))
    assert names(plan_folder(folder, target, overwrite=True).jobs, target) == [
        "broken.mov", "clip.mp4", "sub/photo.png"
    ]  # fmt: skip


@pytest.mark.fault
def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "b" / "x.png")
    write_picture(tmp_path / "a" / "b" / "b" / "x.png")
    plan = plan_folder(tmp_path / "a" / "b", tmp_path / "a", overwrite=True)
    problems = {str(job.source.relative_to(tmp_path)): job.problem for job in plan.jobs}
    assert problems["a/b/x.png"] is None
    assert "is also an input" in str(problems["a/b/b/x.png"])


def test_two_inputs_with_one_output_name(folder: Path, tmp_path: Path) -> None:
    (folder / "clip.avi").write_bytes((folder / "clip.mp4").read_bytes())
    plan = plan_folder(folder, tmp_path / "out")
    outcomes = {o.job.source.name: o.error for o in run_folder(plan, start, Stop())}
    assert outcomes["clip.avi"] is None
    assert "is already that of" in str(outcomes["clip.mp4"])
    again = plan_folder(folder, tmp_path / "out")
    assert [j.source.name for j in again.jobs] == ["broken.mov", "clip.mp4"]


@pytest.mark.fault
def test_links_to_folders_are_not_followed(folder: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "elsewhere" / "secret.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert len(plan_folder(folder, tmp_path / "out").jobs) == 3


def test_a_name_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "in_%03d" / "p.png")
    write_picture(tmp_path / "in_%03d" / "img_%03d.png")
    plan = plan_folder(tmp_path / "in_%03d", tmp_path / "out")
    assert "pattern" in str(plan.jobs[0].problem)
    assert plan.jobs[1].problem is None


@pytest.mark.fault
@pytest.mark.parametrize("target", ["in", "in/../in", "notes", "new.mp4"])
def test_folders_that_cannot_be_meant(folder: Path, target: str) -> None:
    (folder.parent / "notes").write_text("a file")
    with pytest.raises(UsageError):
        plan_folder(folder, folder.parent / target)


@pytest.mark.fault
def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no video or picture"):
        plan_folder(tmp_path / "in", tmp_path / "out")


def test_stop_ends_between_files(folder: Path, tmp_path: Path) -> None:
    stop = Stop()
    ended = []
    for outcome in run_folder(plan_folder(folder, tmp_path / "out"), start, stop):
        ended.append(outcome)
        stop.request(signal.SIGINT)
    assert len(ended) == 1


def test_missing_model_ends_at_once(folder: Path, tmp_path: Path) -> None:
    def without_model(source: str, outputs: dict[str, Content]) -> FileRun:
        return FileRun(source, outputs, matting=MattingChoice(model="none"))

    (folder / "broken.mov").unlink()
    with pytest.raises(ModelError):
        list(run_folder(plan_folder(folder, tmp_path / "out"), without_model, Stop()))


def test_command_line_tells_of_each_file(run_cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = run_cli("run", folder, tmp_path / "out", "--backend", "null")
    assert done.returncode == 1
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error", "failed"))]
    assert len(errors) == 2
    assert all("broken.mov" in line for line in errors)
    assert "2 of 3 files done, 1 failed, 3 other files left alone" in done.stderr


def test_json_is_one_line_per_file(run_cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = run_cli("run", folder, tmp_path / "out", "--backend", "null", "--json")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [("error" in d, d.get("frames")) for d in documents] == [
        (True, None), (False, 3), (False, 1)
    ]  # fmt: skip
    assert "error" in done.stderr


@pytest.mark.parametrize("option", ["--alpha", "--foreground", "--rate"])
def test_options_for_one_input(run_cli: Cli, folder: Path, tmp_path: Path, option: str) -> None:
    done = run_cli("run", folder, tmp_path / "out", option, "7")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.fault
def test_ctrl_c_ends_the_folder_and_names_the_part(
    run_cli: Cli, folder: Path, tmp_path: Path
) -> None:
    make_clip(folder / "a.mp4", 100, (320, 180))
    process = run_cli.start("run", folder, tmp_path / "out", *SLOW)
    part = tmp_path / "out" / "a.part.mp4"
    for _ in range(1000):
        if part.exists() and part.stat().st_size > SOME_PICTURES:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors
    assert str(part) in errors
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.part.mp4"]


class FakeRun:
    """Stands for a FileRun that tells of one frame and is stopped if asked."""

    def run(self, stop: Stop, on_progress: Callable[[Progress], None]) -> RunResult:
        on_progress(Progress(1, 1.0, expected_frames=2, frame_rate=Fraction(25)))
        return RunResult(stopped_by=stop.reason)


def test_progress_counts_the_files(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    plan = plan_folder(folder, tmp_path / "out")
    code = run_plan(
        plan, lambda *_: cast("FileRun", FakeRun()), Stop(), Console(quiet=False, as_json=False)
    )
    shown = capsys.readouterr().err
    assert code == 0
    for number in (1, 2, 3):
        assert f"file {number} of 3  1 of 2 frames" in shown


def test_network_is_kept_for_the_same_shape_and_never_shared() -> None:
    keeper = NetworkKeeper()
    choice = MattingChoice(backend="null")
    small = VideoInfo("", 64, 48, "yuv420p", Fraction(1, 25), Fraction(25))
    first = keeper.open(small, choice).backend
    assert keeper.open(small, choice).backend is not first  # still in use
    first.close()
    second = keeper.open(small, choice).backend
    second.close()
    assert keeper.open(small, choice).backend is second
    second.close()
    assert keeper.open(replace(small, width=96), choice).backend is not second
    keeper.close()


def test_kept_network_gives_the_same_mattes(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path / f"{n}.mp4", 3) for n in "ab"]
    keeper = NetworkKeeper()
    for clip in clips:
        for networks in (None, keeper):
            name = str(clip.with_suffix(".kept.mkv" if networks else ".fresh.mkv"))
            FileRun(str(clip), {name: "matte"}, networks=networks).run(Stop())
    keeper.close()
    for clip in clips:
        kept, fresh = (decode(clip.with_suffix(f".{w}.mkv")) for w in ("kept", "fresh"))
        for a, b in zip(kept, fresh, strict=True):
            np.testing.assert_array_equal(a.to_ndarray(), b.to_ndarray())
