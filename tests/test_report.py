"""What a report finds in clips whose answer is known, and how the command ends."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from cli_here import CliHere, Done
from conftest import Cli, leftovers, make_clip, run_file, wait_until
from faulty import killed_at_exit, run_broken, start_broken
from report_clips import FRAMES, HEIGHT, RADIUS, RATE, WIDTH, matte, mattes, pictures, write_video

from vidmatte.compute.cpu.geometry import to_upright
from vidmatte.evaluation.report.analysis import Report, ReportRun
from vidmatte.evaluation.report.limits import METRICS
from vidmatte.evaluation.report.mattes import SmallMatteReader
from vidmatte.evaluation.report.measures import HD_PX, Measurer
from vidmatte.evaluation.report.moments import MOMENTS, MOST_SPANS, Champions, Moment
from vidmatte.evaluation.report.series import BINS, MOST_TIMES, Series, Times
from vidmatte.frames import Orientation, VideoInfo
from vidmatte.pipeline import Stop

ODD = 17  # the picture that something is wrong with
FLOW_ERROR_PX = 5.0  # of an exact matte here (4.0 measured): a hard edge, 12 HD pixels a frame


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """s.mkv, its exact matte m.mkv, and gap.mkv with one matte emptied."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "s.mkv", pictures())
    write_video(folder / "m.mkv", mattes())
    write_video(folder / "gap.mkv", mattes(lambda index, matte: matte * (index != ODD)))
    return folder


def report(source: Path, output: Path, page: Path, **options: Any) -> Report:
    found = ReportRun(str(source), str(output), str(page), **options).run(Stop(), lambda _: None)
    assert found is not None
    assert page.is_file()
    return found


def test_a_steady_matte_over_a_moving_subject_is_steady(clips: Path, tmp_path: Path) -> None:
    found = report(clips / "s.mkv", clips / "m.mkv", tmp_path / "p.html")
    assert found.values["flicker"].value < FLOW_ERROR_PX
    assert found.values["area-jump"].value < 1.0
    assert found.values["blob"].value < 0.1
    assert found.cuts.count == 0
    area = 100 * math.pi * RADIUS**2 / (WIDTH * HEIGHT)
    assert found.series["area"].mean == pytest.approx(area, rel=0.01)


def test_a_matte_that_is_gone_for_one_picture_is_the_top_moment(
    clips: Path, tmp_path: Path
) -> None:
    found = report(clips / "s.mkv", clips / "gap.mkv", tmp_path / "p.html")
    top = found.moments[0]
    assert top.index == ODD
    assert top.measures.area_jump == pytest.approx(1.0, abs=0.01)
    assert not top.measures.appeared
    assert top.measures.blob_box is not None
    assert top.doubt > 10 * found.moments[1].doubt


@pytest.mark.parametrize("jitter_px", [1, 3])
def test_a_jittering_edge_raises_flicker_by_how_far_it_moves(
    jitter_px: int, clips: Path, tmp_path: Path
) -> None:
    moved = mattes(lambda index, matte: np.roll(matte, jitter_px * (index % 2), 1))
    found = report(clips / "s.mkv", write_video(tmp_path / "j.mkv", moved), tmp_path / "p.html")
    steady = report(clips / "s.mkv", clips / "m.mkv", tmp_path / "q.html")
    along_the_disc = 2 / math.pi * jitter_px * HD_PX  # the mean of |cos| over its edge
    mean = found.series["flicker"].mean
    assert mean > steady.series["flicker"].mean + along_the_disc / 4
    assert mean == pytest.approx(along_the_disc, abs=FLOW_ERROR_PX)


def test_a_cut_is_no_flicker(clips: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / "cut.mkv", pictures(cut_at=15))
    elsewhere = mattes(lambda index, m: m if index < 15 else m[::-1, ::-1])
    found = report(source, write_video(tmp_path / "m.mkv", elsewhere), tmp_path / "p.html")
    assert found.cuts.first == [15 / RATE]
    same = [v for v in found.series["flicker"].bins if v is not None]
    assert len(same) == FRAMES - 2  # neither the first nor the one after the cut
    page = (tmp_path / "p.html").read_text("utf-8")
    assert 'class="cut"' in page
    assert "scene cut" in page


@pytest.mark.parametrize(("radius", "sigma", "low", "high"),
                         [(20, 0, 3, 8), (80, 0, 3, 8), (44, 6, 80, 140)])  # fmt: skip
def test_an_uncertain_edge_is_told_by_its_width(
    radius: float, sigma: float, low: float, high: float
) -> None:
    alpha = matte(160, 90, radius)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), sigma) if sigma else alpha, np.uint8)
    image = np.zeros((180, 320, 3), np.uint8)
    found = Measurer().push(image, (alpha / 255).astype(np.float32))
    assert low < found.uncertain_px < high
    assert found.flicker_px is None


def test_every_kind_of_output_gives_the_same_matte(clips: Path, tmp_path: Path) -> None:
    """Alpha in its kinds, a lossy grey matte, numbered pictures, and a matte beside an opaque."""
    rgba = [
        np.dstack([picture, alpha]) for picture, alpha in zip(pictures(), mattes(), strict=True)
    ]
    kinds: dict[str, dict[str, Any]] = {
        "a.mkv": {}, "a.mov": {"codec": "prores_ks", "pix_fmt": "yuva444p10le"},
        "b.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    }  # fmt: skip
    outputs = [write_video(tmp_path / name, rgba, **kind) for name, kind in kinds.items()]
    outputs.append(write_video(tmp_path / "m.mp4", mattes(), codec="libx264", pix_fmt="yuv420p"))
    for index, picture in enumerate(rgba):
        write_video(tmp_path / f"n_{index}.png", [picture], codec="png", pix_fmt="rgba")
    outputs.append(tmp_path / "n_%d.png")
    want = report(clips / "s.mkv", clips / "gap.mkv", tmp_path / "want.html").series["area"].mean
    want *= FRAMES / (FRAMES - 1)
    for number, output in enumerate(outputs):
        found = report(clips / "s.mkv", output, tmp_path / f"{number}.html")
        assert found.series["area"].mean == pytest.approx(want, rel=0.01), output
        assert found.comparison.matched == FRAMES, output
        assert found.holds == ("matte" if output.suffix == ".mp4" else "alpha")
    found = report(
        clips / "s.mkv", clips / "s.mkv", tmp_path / "b.html", alpha=str(clips / "m.mkv")
    )
    assert found.holds == "opaque"
    assert found.series["area"].mean == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize(("turn", "mirror"), [(90, False), (180, False), (270, True)])
def test_mattes_of_turned_videos_are_read_upright(turn: Any, mirror: bool) -> None:
    alpha = matte(60, 50)
    turned = Orientation(turn, mirror)
    upright = to_upright(alpha, turned)
    rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), 99, np.uint8), alpha])
    for array, kind in ((alpha, "gray"), (rgba, "rgba")):
        info = VideoInfo("x", WIDTH, HEIGHT, kind, Fraction(1, 25), Fraction(25),
                         orientation=turned)  # fmt: skip
        reader = SmallMatteReader(info, (upright.shape[0], upright.shape[1]))
        read = reader.read(av.VideoFrame.from_ndarray(array, kind))
        assert read is not None
        assert np.abs(read - upright / 255).max() < 0.01


def test_a_matte_with_alpha_in_webm_is_read(clips: Path, tmp_path: Path) -> None:
    run_file(clips / "s.mkv", tmp_path / "o.webm", contents=("transparent",))
    found = report(clips / "s.mkv", tmp_path / "o.webm", tmp_path / "p.html")
    assert found.series["area"].mean == pytest.approx(100, abs=1)


def test_an_opaque_output_is_refused_with_a_way_out(cli_here: CliHere, clips: Path) -> None:
    done = cli_here("report", clips / "s.mkv", clips / "s.mkv", "--html", clips / "no.html")
    assert "no matte can be read" in done.refusal
    assert "--alpha FILE" in done.err
    assert not (clips / "no.html").exists()


def test_a_fade_from_black_is_not_taken_for_a_matte(
    cli_here: CliHere, clips: Path, tmp_path: Path
) -> None:
    fading = (picture * (index > 4) for index, picture in enumerate(pictures()))
    output = write_video(tmp_path / "o.mkv", fading)
    done = cli_here("report", clips / "s.mkv", output)
    assert "from 0.20 s on" in done.refusal
    assert leftovers(tmp_path) == ["o.mkv"]


# The command ------------------------------------------------------------------------------------


def run(cli_here: CliHere, clips: Path, tmp_path: Path, *options: str) -> Done:
    return cli_here("report", clips / "s.mkv", clips / "gap.mkv", "--html", tmp_path / "p.html",
                    *options)  # fmt: skip


def test_limits_that_are_passed_fail_and_leave_the_page(
    cli_here: CliHere, clips: Path, tmp_path: Path
) -> None:
    done = run(cli_here, clips, tmp_path, "--fail-if", "area-jump>50", "--fail-if", "blob>=99",
               "--fail-if", "flicker > 2.0")  # fmt: skip
    assert done.code == 1
    assert "area-jump is 100 % at 0.68 s (--fail-if area-jump>50); flicker is " in done.refusal
    assert "blob is" not in done.refusal
    assert "the page shows where" in done.err
    page = (tmp_path / "p.html").read_text("utf-8")
    assert "area-jump is 100 % at 0.68 s (--fail-if area-jump&gt;50)" in page


def test_limits_that_are_held_are_told(cli_here: CliHere, clips: Path, tmp_path: Path) -> None:
    done = run(cli_here, clips, tmp_path, "--fail-if", "lost-frames>0")
    assert done.code == 0, done.err
    assert "No limit is passed: lost-frames&gt;0" in (tmp_path / "p.html").read_text("utf-8")


@pytest.mark.parametrize("wrong", ["flicker", "flicker<2", "flicker>", "flicker>x", "nosuch>2",
                                   "flicker>1e400", "", "FLICKER>2"])  # fmt: skip
def test_a_limit_that_cannot_be_meant_is_refused_with_the_names(
    wrong: str, cli_here: CliHere, clips: Path, tmp_path: Path
) -> None:
    done = run(cli_here, clips, tmp_path, "--fail-if", wrong)
    assert done.code == 2
    assert done.refusal.startswith("error: --fail-if '")
    for name in METRICS:
        assert name in done.err
    assert leftovers(tmp_path) == []


def test_the_help_names_every_metric(cli_here: CliHere) -> None:
    text = " ".join(cli_here("report", "--help").out.split())
    assert f"Names: {', '.join(METRICS)}." in text


def test_json_is_one_document_of_bounded_size(
    cli_here: CliHere, clips: Path, tmp_path: Path
) -> None:
    done = run(cli_here, clips, tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    document = json.loads(done.out)
    assert document["metrics"].keys() == METRICS.keys()
    assert document["metrics"]["area-jump"] == {"value": 100.0, "unit": "%", "at_s": ODD / RATE}
    assert document["moments"][0]["frame"] == ODD
    assert document["frames"] == FRAMES
    assert len(document["series"]["flicker"]["worst"]) == FRAMES - 1  # the first has none before
    assert Path(document["page"]).is_file()


def test_damage_is_counted_and_told(cli_here: CliHere, clips: Path, tmp_path: Path) -> None:
    output = write_video(tmp_path / "m.mov", mattes(), codec="png", pix_fmt="gray")
    with av.open(str(output)) as container:
        packet = [p for p in container.demux(video=0) if p.size][ODD]
    data = bytearray(output.read_bytes())
    assert packet.pos is not None
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    output.write_bytes(data)
    done = cli_here("report", clips / "s.mkv", output, "-q", "--fail-if", "damage>0",
                    "--fail-if", "lost-frames>0")  # fmt: skip
    assert done.code == 1
    assert f"warning: {output}: 1 picture could not be decoded, first at 0.68 s" in done.err
    assert "damage is 1 (--fail-if damage>0); lost-frames is 1 at 0.68 s" in done.refusal
    page = (tmp_path / "m.mov.report.html").read_text("utf-8")
    assert "1 picture could not be decoded" in page
    assert 'class="lost"' in page


# Whole or not at all ----------------------------------------------------------------------------


def test_a_page_that_exists_is_kept(cli_here: CliHere, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text("mine")
    assert "exists already" in run(cli_here, clips, tmp_path).refusal
    assert (tmp_path / "p.html").read_text() == "mine"
    done = run(cli_here, clips, tmp_path, "--overwrite")
    assert done.code == 0
    assert (tmp_path / "p.html").read_text("utf-8").endswith("</html>\n")
    assert leftovers(tmp_path) == ["p.html"]


def test_a_disk_that_fails_leaves_the_old_page(
    cli_here: CliHere, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "p.html").write_text("mine")
    monkeypatch.setattr(os, "fsync", full)
    assert "p.html" in run(cli_here, clips, tmp_path, "--overwrite").refusal
    assert (tmp_path / "p.html").read_text() == "mine"
    assert leftovers(tmp_path) == ["p.html"]


def test_the_page_is_no_input(cli_here: CliHere, clips: Path) -> None:
    before = (clips / "gap.mkv").read_bytes()
    for name in ("s.mkv", "gap.mkv"):
        done = cli_here("report", clips / "s.mkv", clips / "gap.mkv", "--overwrite",
                        "--html", clips / name)  # fmt: skip
        assert done.code == 2
    assert (clips / "gap.mkv").read_bytes() == before


SLOW = """
import time
from vidmatte.evaluation.report.measures import Measurer
push = Measurer.push
def slow(self, image, alpha):
    open({reached!r}, "w").close()
    time.sleep(0.2)
    return push(self, image, alpha)
Measurer.push = slow
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(
    number: signal.Signals, clips: Path, tmp_path: Path, run_cli: Cli
) -> None:
    reached = tmp_path / "reached"
    process = start_broken(run_cli, SLOW.format(reached=str(reached)), "report", clips / "s.mkv",
                           clips / "m.mkv", "--html", tmp_path / "p.html")  # fmt: skip
    with killed_at_exit(process):
        wait_until(reached.exists)
        began = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 4.0
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert leftovers(tmp_path, "reached") == []


HANGS = """
from vidmatte.sources.file import FileSource
def enter(self):
    open({reached!r}, "w").close()
    sleep_in_c()
FileSource.__enter__ = enter
"""


def test_a_disk_that_hangs_can_be_left(clips: Path, tmp_path: Path, run_cli: Cli) -> None:
    reached = tmp_path / "reached"
    process = start_broken(run_cli, HANGS.format(reached=str(reached)), "report", clips / "s.mkv",
                           clips / "m.mkv", "--html", tmp_path / "p.html")  # fmt: skip
    with killed_at_exit(process):
        wait_until(reached.exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=6)
    assert process.returncode == 130


def test_it_runs_with_every_warning_an_error(clips: Path, tmp_path: Path, run_cli: Cli) -> None:
    done = run_broken(run_cli, "", "report", clips / "s.mkv", clips / "m.mkv", "--html",
                      tmp_path / "p.html")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"p.html: {FRAMES} frames in " in done.stderr


def test_one_picture_makes_a_report(tmp_path: Path) -> None:
    make_clip(tmp_path / "s.mkv", 1)
    run_file(tmp_path / "s.mkv", tmp_path / "m.mkv", contents=("matte",))
    found = report(tmp_path / "s.mkv", tmp_path / "m.mkv", tmp_path / "p.html")
    assert found.rhythm.count == 1
    assert [m.index for m in found.moments] == [0]


# Of any length ----------------------------------------------------------------------------------


def quiet(doubt: float, index: int, time_s: float) -> Moment[int]:
    from vidmatte.evaluation.report.measures import Measures

    return Moment(index, time_s, doubt, Measures(0.5, 10.0), index)


@pytest.mark.parametrize("hours", [0.01, 8])
def test_the_worst_moments_are_found_in_a_video_of_any_length(hours: float) -> None:
    seconds, kept = hours * 3600, []
    bad = {int(seconds * share) for share in np.linspace(0.03, 0.96, 10)}
    champions: Champions[int, int] = Champions(lambda still: kept.append(still) or still)
    for index in range(int(seconds)):
        champions.push(quiet(5.0 if index in bad else 0.1, index, float(index)))
        assert len(champions._kept) <= MOST_SPANS
    chosen = champions.chosen()
    assert len(chosen) == min(MOMENTS, int(seconds))
    assert {m.index for m in chosen[:10]} == bad
    assert len(kept) < MOST_SPANS * math.log2(seconds * 10)


def test_moments_are_apart_in_time() -> None:
    champions: Champions[int, int] = Champions(lambda still: still)
    for index in range(300):
        champions.push(quiet(5.0 if 100 <= index < 110 else index / 1000, index, index / 30))
    chosen = champions.chosen()
    assert sum(100 <= m.index < 110 for m in chosen) <= 2
    times = sorted(m.time_s for m in chosen)
    assert min(np.diff(times)) > 0.15


def test_a_series_keeps_the_worst_whatever_its_length() -> None:
    series = Series(0.0, 0.04)
    for index in range(100_000):
        series.add(index * 0.04, 7.0 if index == 77_777 else 1.0)
    assert len(series.bins) <= BINS
    assert series.worst == (7.0, 77_777 * 0.04)
    worst = series.bins.index(7.0)
    assert series.time_of(worst) == pytest.approx(77_777 * 0.04, abs=series.step_s)
    assert set(series.bins) == {1.0, 7.0}
    assert series.mean == pytest.approx(1.00006)


def test_times_are_counted_beyond_those_that_are_kept() -> None:
    times = Times()
    for index in range(MOST_TIMES + 5):
        times.add(float(index))
    assert times.count == MOST_TIMES + 5
    assert len(times.first) == MOST_TIMES
