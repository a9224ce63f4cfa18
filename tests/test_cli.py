"""The command line: what it says, on which stream, and how it exits."""

from __future__ import annotations

import json
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import Cli, leftovers, make_clip

from vidmatte.cli.console import Console, last_line
from vidmatte.cli.run import TimeType
from vidmatte.jobs import Progress, RunResult


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "s.mp4", 5, audio="aac")


def test_a_run_prints_one_line_on_stderr_and_nothing_on_stdout(clip: Path, run_cli: Cli) -> None:
    output = clip.with_name("o.mp4")
    done = run_cli("run", clip, output, "--backend", "null")
    assert done.returncode == 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(
        re.escape(str(output)) + r": 5 frames in [\d.]+ s, [\d.]+ fps, 1 other streams? copied; "
        r"\w+ with no network, matte ones; busiest: \w+ \(\d+% of the time\)",
        lines[0],
    )


def test_quiet_prints_nothing(clip: Path, run_cli: Cli) -> None:
    done = run_cli("run", clip, clip.with_name("o.mp4"), "--backend", "null", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_json_is_one_document_on_stdout(clip: Path, run_cli: Cli) -> None:
    output = clip.with_name("o.mp4")
    done = run_cli("run", clip, output, "--backend", "null", "--json")
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["frames"] == 5
    assert document["outputs"] == [str(output)]
    assert document["stopped_by"] is None
    assert document["copied_streams"] == 1
    assert set(document["stage_share"]) >= {"decode", "encode"}


# arguments, exit code, error line, hint (both as patterns); {clip} and {dir} are filled in.
MESSAGES = {
    "no such input": (["{dir}/no.mp4", "{dir}/o.mp4"], 1, "no.mp4: no such file", "check the path"),
    "address": (["http://example.invalid/a.mp4", "{dir}/o.mp4"], 1, "no such file",
                "addresses are not opened"),
    "input is a text": (["{text}", "{dir}/o.mp4"], 1, "is not a video or picture", None),
    "output exists": (["{clip}", "{text}"], 1, "exists already", "--overwrite"),
    "output is input": (["{clip}", "{clip}", "--overwrite"], 2, "is also", "another output name"),
    "folder missing": (["{clip}", "{dir}/no/o.mp4"], 1, "the folder does not exist", "mkdir -p"),
    "unknown extension": (["{clip}", "{dir}/o.xyz"], 2, "format from '.xyz'", r"\.mp4"),
    "no extension": (["{clip}", "{dir}/o"], 2, "from no extension", r"\.mp4"),
    "playlist": (["{clip}", "{dir}/o.m3u8"], 2, "format from '.m3u8'", r"\.mp4"),
    "prores in mp4": (["{clip}", "{dir}/o.mp4", "--codec", "prores"], 2, "cannot hold prores",
                      r"\.mov"),
    "transparent mp4": (["{clip}", "{dir}/o.mp4", "-b", "transparent"], 2,
                        "cannot hold transparency", r"\.mov"),
    "unknown codec": (["{clip}", "{dir}/o.mp4", "--codec", "nosuch"], 2, "unknown codec", "known"),
    "unknown preset": (["{clip}", "{dir}/o.mp4", "--preset", "nosuch"], 2, "unknown preset",
                       "veryfast"),
    "one picture": (["{clip}", "{dir}/o.png"], 2, "one picture cannot hold a video", "_%04d"),
    "background missing": (["{clip}", "{dir}/o.mp4", "-b", "no.jpg"], 1, "no.jpg", None),
    "background not a colour": (["{clip}", "{dir}/o.mp4", "-b", "nocolour"], 2, "nocolour",
                                "#00b140"),
    "background is a text": (["{clip}", "{dir}/o.mp4", "-b", "{text}"], 1, "is not a video", None),
    "two outputs, one name": (["{clip}", "{dir}/o.mp4", "--alpha", "{dir}/o.mp4"], 2,
                              "same name", None),
    "two outputs, one file": (["{clip}", "{dir}/o.mkv", "--alpha", "{dir}/./o.mkv"], 2,
                              "is also", None),
    "end before start": (["{clip}", "{dir}/o.mp4", "--start", "3", "--end", "2"], 2,
                         "--end must be after", None),
    "not a time": (["{clip}", "{dir}/o.mp4", "--start", "soon"], 2, "not a time", None),
    "bad crf": (["{clip}", "{dir}/o.mp4", "--crf", "99"], 2, "--crf", None),
    "no such option": (["{clip}", "{dir}/o.mp4", "--fast"], 2, "--fast", None),
    "no output": (["{clip}"], 2, "OUTPUT", None),
    }  # fmt: skip


@pytest.mark.fault
@pytest.mark.parametrize("case", MESSAGES)
def test_every_failure_is_one_line_found_before_the_model(
    case: str, clip: Path, run_cli: Cli
) -> None:
    arguments, code, message, hint = MESSAGES[case]
    text = clip.with_name("text.mp4")
    text.write_text("not a video at all, whatever its name says\n" * 20)
    filled = [a.format(clip=clip, dir=clip.parent, text=text) for a in arguments]
    # A backend that does not exist is only found when the model is loaded.
    done = run_cli("run", *filled, "--backend", "nosuch")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines
    assert "nosuch" not in lines[0] or "nosuch" in " ".join(arguments)
    assert len(lines) == (1 if hint is None and len(lines) == 1 else 2)
    if hint is not None:
        assert re.search(hint, lines[1]), lines
    assert leftovers(clip.parent, "s.mp4", "text.mp4") == []


def test_a_start_after_the_end_is_an_error(clip: Path, run_cli: Cli) -> None:
    done = run_cli("run", clip, clip.with_name("o.mp4"), "--start", "60", "--backend", "null")
    assert done.returncode == 1
    assert done.stderr == f"error: {clip}: ends before 60 s\n"
    assert leftovers(clip.parent, "s.mp4") == []


@pytest.mark.fault
def test_a_backend_that_does_not_exist_leaves_nothing(clip: Path, run_cli: Cli) -> None:
    done = run_cli("run", clip, clip.with_name("o.mp4"), "--backend", "nosuch")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: there is no backend 'nosuch'"
    assert leftovers(clip.parent, "s.mp4") == []


@pytest.mark.fault
def test_control_characters_in_names_do_not_reach_the_terminal(
    tmp_path: Path, run_cli: Cli
) -> None:
    done = run_cli("run", tmp_path / "a\x1b[31m\nb.mp4", tmp_path / "o.mp4")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[0].endswith(r"a\x1b[31m\nb.mp4: no such file")


@pytest.mark.fault
def test_an_odd_name_is_a_name_and_not_an_option_or_pattern(tmp_path: Path, run_cli: Cli) -> None:
    for name in ("ünï.mp4", "a b%d c%.mp4", "file:x.mp4", "a'b.mp4"):
        make_clip(tmp_path / "plain.mp4", 2).rename(tmp_path / name)
        done = run_cli("run", name, f"out {name}", "--backend", "null", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"out {name}").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["models", "--help"]])
def test_help_shows_an_example_and_exits_0_or_2(arguments: list[str], run_cli: Cli) -> None:
    done = run_cli(*arguments)
    assert done.returncode == (0 if arguments else 2)
    text = done.stdout + done.stderr
    assert "Usage:" in text
    assert "vidmatte run" in text or arguments[:1] == ["models"]
    assert "error:" not in text


def test_version(run_cli: Cli) -> None:
    done = run_cli("--version")
    assert done.returncode == 0
    assert re.search(r"\d+\.\d+", done.stdout)


def test_an_unknown_command_is_a_usage_error(run_cli: Cli) -> None:
    done = run_cli("matte")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.fault
def test_closed_streams_are_no_crash(clip: Path, run_cli: Cli) -> None:
    for closed, code in ((">&-", 0), ("2>&-", 0), ("<&-", 0), (">&- 2>&- <&-", 0)):
        output = clip.with_name("o.mp4")
        done = run_cli("run", clip, output, "--backend", "null", shell_prefix=f"exec {closed};")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        output.unlink()
    done = run_cli("run", "-", clip.with_name("o.mp4"), shell_prefix="exec <&-;")
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input")


def test_progress_is_a_plain_line_where_there_is_no_terminal(clip: Path, run_cli: Cli) -> None:
    done = run_cli("run", clip, clip.with_name("o.mp4"), "--backend", "null",
                   stderr=subprocess.STDOUT)  # fmt: skip
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("12.5", 12.5), ("01:02", 62.0), ("1:00:00.25", 3600.25), ("0", 0.0)],
)
def test_times(text: str, seconds: float) -> None:
    assert TimeType().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1e3", "nan", "inf", "::", "٣"])
def test_what_is_no_time(text: str) -> None:
    import click

    with pytest.raises(click.BadParameter):
        TimeType().convert(text, None, None)


def test_the_last_line_names_the_bottleneck() -> None:
    result = RunResult(
        frames=50, elapsed_s=2.0, device="D", model="M", outputs=["o.mp4"],
        stage_share={"decode": 0.2, "infer": 0.9},
    )  # fmt: skip
    assert last_line(result) == (
        "o.mp4: 50 frames in 2.0 s, 25.0 fps; M with D; busiest: infer (90% of the time)"
    )


def test_warnings_are_printed_even_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    result = RunResult(warnings=["3 pictures lost"], notes=["n"], stopped_by=2, kept_parts=["p"])
    assert Console(quiet=True, as_json=False).show(result, "in.mp4") == 130
    assert capsys.readouterr().err == (
        "warning: in.mp4: 3 pictures lost\nstopped: what was finished is in p\n"
    )


def test_an_av1_encoder_says_nothing_by_itself(clip: Path, run_cli: Cli) -> None:
    output = clip.with_name("o.mp4")
    done = run_cli("run", clip, output, "--backend", "null", "--codec", "av1", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_output_that_cannot_be_is_named(clip: Path, run_cli: Cli) -> None:
    other = clip.with_name("f.mp4")
    done = run_cli("run", clip, clip.with_name("o.mp4"), "--backend", "null", "--foreground", other)
    assert done.returncode == 2
    assert f"{other}: .mp4 cannot hold transparency" in done.stderr


def test_progress_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    console = Console(quiet=False, as_json=False)
    console.progress(Progress(10, 1.0, 100, Fraction(25)))
    assert capsys.readouterr().err == "\r\x1b[K10 of 100 frames  1"
