"""Which pictures of an output belong to which of the input, and what is lost, extra or shifted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
from cli_here import CliHere
from report_clips import FRAMES, mattes, pictures, write_video

from vidmatte.evaluation.report.analysis import Report, ReportRun
from vidmatte.evaluation.report.checks import checks_of
from vidmatte.evaluation.report.pairs import Comparison, Follower, Rhythm, paired
from vidmatte.frames import Frame, VideoInfo
from vidmatte.pipeline import Stop

MS, RATE = Fraction(1, 1000), Fraction(25)
STEADY = [40 * index for index in range(20)]  # 25 a second, in ms


def info(rate: Fraction = RATE) -> VideoInfo:
    return VideoInfo("x", 64, 48, "gray", MS, rate)


def frames(times_ms: list[int]) -> list[Frame]:
    return [Frame(cast("Any", None), i, t, MS) for i, t in enumerate(times_ms)]


def compared(
    source: list[int], output: list[int], *, in_order: bool = False
) -> tuple[Comparison, list[tuple[int, int | None]], Rhythm]:
    """Pair times in ms; return what was found, the pairs, and the rhythm of the source."""
    follower = Follower(iter(frames(output)), info(), info(), in_order=in_order)
    rhythm = Rhythm(0.001)
    pairs = [
        (frame.pts, None if found[0] is None else found[0].pts)
        for frame, found in paired(iter(frames(source)), info(), rhythm, [follower])
    ]
    return follower.found, pairs, rhythm


def test_equal_times_all_match() -> None:
    found, pairs, rhythm = compared(STEADY, STEADY)
    assert pairs == [(t, t) for t in STEADY]
    assert (found.lost.count, found.extra.count, found.shifted) == (0, 0, 0)
    assert rhythm.is_constant
    assert rhythm.rate == pytest.approx(25)


@pytest.mark.parametrize("lost", [0, 7, 19])
def test_a_lost_picture_is_found_with_its_time(lost: int) -> None:
    output = [t for t in STEADY if t != 40 * lost]
    found, pairs, _ = compared(STEADY, output)
    assert found.lost.first == [0.04 * lost]
    assert found.extra.count == 0
    assert pairs[lost] == (40 * lost, None)
    assert found.matched == 19


def test_an_extra_picture_is_found_with_its_time() -> None:
    found, pairs, _ = compared(STEADY, sorted([*STEADY, 125, 900]))
    assert found.extra.first == [0.125, 0.9]
    assert pairs == [(t, t) for t in STEADY]


def test_a_shift_within_a_tick_is_none() -> None:
    found, _, _ = compared(STEADY, [t + index % 2 for index, t in enumerate(STEADY)])
    assert found.shifted == 0


def test_a_shift_is_told_with_its_worst_time() -> None:
    found, _, _ = compared(STEADY, [t + (9 if t == 400 else 0) for t in STEADY])
    assert (found.shifted, found.worst_shift_s, found.worst_shift_at_s) == (
        1,
        pytest.approx(0.009),
        0.4,
    )
    assert found.drift_s == 0
    early, _, _ = compared(STEADY, [max(0, t - 9) for t in STEADY])
    assert early.worst_shift_s == pytest.approx(-0.009)


def test_a_drift_grows_from_the_first_to_the_last() -> None:
    found, _, _ = compared(STEADY, [t + index // 2 * 2 for index, t in enumerate(STEADY)])
    assert found.drift_s == pytest.approx(0.018)


@pytest.mark.parametrize("by", [2, -2])
def test_a_whole_file_that_is_late_or_early_is_told(by: int) -> None:
    found, _, _ = compared([t + 400 for t in STEADY], [t + 400 + 40 * by for t in STEADY])
    assert found.displaced == by
    assert (found.lost.count, found.extra.count) == (2, 2)


def test_lost_here_and_extra_there_is_no_displacement() -> None:
    found, _, _ = compared(STEADY, sorted({*STEADY, 125} - {400}))
    assert found.displaced == 0


def test_a_variable_rate_is_followed() -> None:
    times = [0, 40, 50, 400, 407, 3000, 3033]
    found, pairs, rhythm = compared(times, [t for t in times if t != 407])
    assert found.lost.first == [0.407]
    assert pairs[3] == (400, 400)
    assert not rhythm.is_constant


def test_a_constant_rate_made_of_a_variable_one_shifts_and_loses() -> None:
    times = [0, 33, 66, 150, 180, 300, 320, 340]
    found, _, _ = compared(times, [40 * index for index in range(9)])
    assert found.shifted > 0
    assert found.lost.count + found.extra.count > 0


def test_numbered_pictures_pair_in_order() -> None:
    found, pairs, _ = compared(STEADY, [10 * i for i in range(18)], in_order=True)
    assert pairs[17] == (680, 170)
    assert found.lost.first == [0.72, 0.76]
    assert found.shifted == 0


def test_nothing_to_follow_is_all_lost() -> None:
    found, _, _ = compared(STEADY, [])
    assert found.lost.count == len(STEADY)
    assert compared([], STEADY)[0].extra.count == len(STEADY)


# In files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("source") / "s.mkv", pictures())


def report(source: Path, output: Path, **options: Any) -> Report:
    job = ReportRun(str(source), str(output), overwrite=True, **options)
    found = job.run(Stop(), lambda _: None)
    assert found is not None
    return found


def told(report: Report, title: str) -> tuple[str, str]:
    return next((c.grade, c.text) for c in checks_of(report) if c.title == title)


def test_a_dropped_frame_in_a_file_is_found_with_its_time(source: Path, tmp_path: Path) -> None:
    output = write_video(tmp_path / "m.mkv", mattes(), time=lambda i: None if i == 17 else i)
    found = report(source, output)
    assert told(found, "Pictures") == ("bad", f"1 of {FRAMES} lost, first at 0.68 s.")
    assert found.values["lost-frames"].at_s == 0.68
    assert found.values["flicker"].value < 5  # the one after is compared with none


def test_times_that_containers_round_differently_agree(source: Path, tmp_path: Path) -> None:
    output = write_video(tmp_path / "m.mov", mattes(), codec="png", pix_fmt="gray",
                         base=Fraction(1, 90000), time=lambda i: 3600 * i + 30)  # fmt: skip
    grade, text = told(report(source, output), "Time stamps")
    assert grade == "good"
    assert "constant, 25 per second" in text


def test_shifted_times_in_a_file_are_told(source: Path, tmp_path: Path) -> None:
    output = write_video(tmp_path / "m.mkv", mattes(), base=MS, time=lambda i: 40 * i + i // 3)
    found = report(source, output)
    assert told(found, "Time stamps")[0] == "bad"
    assert found.values["time-shift"].value == pytest.approx(0.009)
    assert found.values["drift"].value == pytest.approx(0.009)


def test_a_part_of_the_input_is_compared_from_its_start(source: Path, tmp_path: Path) -> None:
    output = write_video(tmp_path / "m.mkv", mattes()[10:20])
    assert report(source, output, start_s=0.4, end_s=0.8).values["lost-frames"].value == 0
    assert report(source, output).values["lost-frames"].value == 20


def test_lost_sound_is_told(tmp_path: Path, cli_here: CliHere) -> None:
    from conftest import make_clip, run_file

    with_sound = make_clip(tmp_path / "s.mkv", 5, audio="aac")
    run_file(with_sound, tmp_path / "kept.mov", contents=("transparent",))
    run_file(make_clip(tmp_path / "q.mkv", 5), tmp_path / "lost.mov", contents=("transparent",))
    assert told(report(with_sound, tmp_path / "kept.mov"), "Sound")[0] == "good"
    found = report(with_sound, tmp_path / "lost.mov")
    assert told(found, "Sound") == ("bad", "1 of 1 tracks lost.")
    assert found.values["lost-sound"].value == 1
