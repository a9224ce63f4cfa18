"""The corpus checker finds what is wrong, and a sample of the corpus finds nothing wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import corpus_run
import pytest
from corpus_check import check_entry, chosen, judge, main
from corpus_clips import PATCHES, Clip, draw_picture, write_clip
from corpus_manifest import Entry, generate_corpus, load_manifest, shared_folder
from corpus_media import inspect, read_bar_code, read_patches
from corpus_rules import Case, complaints
from corpus_run import LIKE_A_USER, BaitListener, Run, can_run_like_a_user

needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe not installed")
GOOD = Clip()
LYING = dataclasses.replace(GOOD, turn=(0, 1, -1, 0), matrix=(0, 1, -1, 0))
SAMPLE = (
    "baseline|rate_ntsc2997|vfr_gaps_mp4|audio_late_mp4|ts_back|rotate_90|sar_4_3|mkv_rich"
    "|colour_bt601_full|corrupt_mp4|trunc_no_moov|sec_concat_mp4|name_dash|fs_fifo|stdin_ts|arg_http"
)


def entry_for(clip: Clip, **changes: Any) -> Entry:
    """Describe a clip as the manifest would."""
    rotate = {(0, 1, -1, 0): 90, (0, -1, 1, 0): 270}.get(clip.matrix, 0)
    upright = [clip.width, clip.height]
    video = {
        "stored": upright[::-1] if rotate else upright,
        "display": upright,
        "rotate_cw": rotate,
        "sar": f"{clip.sar.numerator}:{clip.sar.denominator}",
        "frames": len(clip.ids),
        "ids": list(clip.ids),
        "patches": True,
        "alpha": clip.transparent,
    }
    if clip.times_ms is None:
        video["fps"] = str(clip.fps)
    else:
        video["pts"] = [t / 1000 for t in clip.times_ms]
    track = {"channels": 1, "rate": 48000, "duration": clip.sound_s}
    props = {"video": video, "audio": [] if clip.sound is None else [track]}
    row = {"id": "clip", "file": "clip.mp4", "via": "path", "group": "time", "kind": "valid"}
    return Entry.from_manifest({**row, "expected": "ok", "props": props, **changes})


def judged(
    folder: Path, source: Clip, output: Clip, *, suffix: str = ".mp4", lossless: bool = False
) -> str:
    """Write two clips and return the complaints about the second as the first's matte."""
    entry = entry_for(source)
    was = write_clip(folder / f"source{suffix}", source)
    now = write_clip(folder / f"output{suffix}", output)
    case = Case(
        entry,
        inspect(was, turn=entry.turn, planes=lossless),
        inspect(now, planes=lossless),
        suffix,
        said="",
        drawn_patches=PATCHES,
        lossless=lossless,
    )
    return "; ".join(complaints(case))


def altered(**changes: Any) -> Clip:
    return dataclasses.replace(GOOD, **changes)


@needs_ffprobe
@pytest.mark.parametrize(
    ("source", "output"),
    [
        (GOOD, GOOD),
        (LYING, LYING),
        # Turned for good: as right as a display matrix. 4:4:4, since chroma lies otherwise then.
        tuple(dataclasses.replace(c, pix_fmt="yuv444p") for c in (LYING, GOOD)),
        (altered(times_ms=(0, 40, 90, 300, 310, 350, 390, 430)),) * 2,
        (altered(sar=Fraction(4, 3)),) * 2,
    ],
)
def test_equal_output_raises_no_complaint(tmp_path: Path, source: Clip, output: Clip) -> None:
    assert judged(tmp_path, source, output) == ""


@needs_ffprobe
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ids": tuple(range(7))}, "7 frames instead of 8"),
        ({"ids": (0, 1, 2, 2, 3, 4, 5, 6)}, r"frames 0\.\.2, 2\.\.6 instead of 0\.\.7"),
        ({"ids": (0, 1, 3, 2, 4, 5, 6, 7)}, r"frames 0\.\.1, 3, 2, 4\.\.7 instead"),
        ({"fps": 30}, "average frame rate 30 instead of 25"),
        ({"times_ms": (0, 40, 80, 120, 175, 200, 240, 280)}, r"frame 4 is shown \+15\.0 ms"),
        ({"times_ms": (0, 40, 80, 120, 160, 200, 240, 300)}, r"frame 7 is shown \+20\.0 ms"),
        ({"width": 160}, r"size \[\(160, 144\)\]"),
        ({"sar": Fraction(4, 3)}, "sample aspect ratio 4/3 instead of 1"),
        ({"turn": (-1, 0, 0, 1)}, r"frames \? instead"),
        ({"turn": (-1, 0, 0, 1), "matrix": (-1, 0, 0, 1)}, "display matrix"),
        ({"colour_shift": (0, 9, 0)}, "patches differ from the source's by"),
        ({"colour_shift": (0, 0, 20)}, r"colours of frame \d are off by up to 2\d"),
        ({"tag_matrix": 5}, "matrix tagged bt470bg instead of bt709"),
        ({"tag_range": 2}, "range tagged pc instead of tv"),
        ({"codec_options": {"x264-params": "tff=1"}}, "field order .ff instead of progressive"),
        ({"sound": None}, "0 sound tracks instead of 1"),
        ({"sound_start_s": 0.1}, r"starts \+\d+ ms from its place"),
        ({"sound_s": 0.1}, "sound 0: lasts"),
        ({"sound_bit_rate": 32_000}, "was encoded again"),
        ({"sound": "mp3"}, r"is mp3, though \.mp4 holds aac"),
        ({"sound_hole_s": 0.5}, "has a hole of"),
        ({"layout": "stereo"}, "2 channels instead of 1"),
        ({"language": "deu"}, "language deu instead of eng"),
        ({"title": "else"}, "metadata title='clip' became 'else'"),
    ],
)
def test_every_loss_is_seen(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    assert re.search(complaint, judged(tmp_path, GOOD, altered(**changes)))


@needs_ffprobe
def test_lost_turn_is_seen(tmp_path: Path) -> None:
    """The picture lies on its side, and nothing says how to turn it."""
    flat = altered(turn=(0, 1, -1, 0))
    assert "display matrix (1, 0, 0, 1) instead of (0, 1, -1, 0)" in judged(tmp_path, LYING, flat)


@needs_ffprobe
@pytest.mark.parametrize(
    ("source", "output", "complaint"),
    [
        ({"pix_fmt": "yuv420p10le"}, {}, r"8 bits per sample \(yuv420p\) instead of 10"),
        ({"pix_fmt": "yuv444p"}, {}, "chroma of yuv420p is coarser than that of yuv444p"),
        ({"chapters": 2}, {"chapters": 1}, "1 of 2 chapter streams, lost"),
    ],
)
def test_lost_depth_chroma_and_chapters_are_seen(
    tmp_path: Path, source: dict[str, Any], output: dict[str, Any], complaint: str
) -> None:
    clips = altered(**source), altered(**output)
    entry_bits = 10 if "10" in clips[0].pix_fmt else 8
    entry = entry_for(clips[0])
    entry.video["bits"] = entry_bits
    media = [inspect(write_clip(tmp_path / f"{n}.mp4", c)) for n, c in enumerate(clips)]
    found = complaints(Case(entry, media[0], media[1], ".mp4", "", PATCHES))
    assert re.search(complaint, "; ".join(found))


@needs_ffprobe
def test_lost_hdr_metadata_is_seen(tmp_path: Path) -> None:
    media = inspect(write_clip(tmp_path / "a.mp4", GOOD))
    hdr = dataclasses.replace(media, hdr={"Content light level metadata": ("max_content=1000",)})
    case = Case(entry_for(GOOD), hdr, media, ".mp4", "", PATCHES)
    assert complaints(case) == [
        "Content light level metadata lost instead of ('max_content=1000',)"
    ]


@needs_ffprobe
@pytest.mark.parametrize(("said", "lost"), [("", True), ("left out: 1 subtitle track", False)])
def test_streams_may_be_left_out_only_with_a_word(tmp_path: Path, said: str, lost: bool) -> None:
    media = inspect(write_clip(tmp_path / "a.mp4", GOOD))
    rich = dataclasses.replace(media, counts={**media.counts, "subtitle": 1})
    found = complaints(Case(entry_for(GOOD), rich, media, ".mp4", said, PATCHES))
    assert found == (["0 of 1 subtitle streams, lost without a word"] if lost else [])


LOSSLESS = {"codec": "ffv1", "sound": None}


@needs_ffprobe
def test_one_wrong_sample_is_seen_in_lossless_mode(tmp_path: Path) -> None:
    good, wrong = altered(**LOSSLESS), altered(**LOSSLESS, lone_error=1)
    assert judged(tmp_path, good, good, suffix=".mkv", lossless=True) == ""
    found = judged(tmp_path, good, wrong, suffix=".mkv", lossless=True)
    assert found == "plane Y of frame 0: 1 of 27648 samples differ, by up to 1"


@needs_ffprobe
def test_source_shown_where_it_was_transparent_is_seen(tmp_path: Path) -> None:
    source = altered(**LOSSLESS, pix_fmt="yuva420p", transparent=True)
    opaque = altered(**LOSSLESS)
    found = judged(tmp_path, source, opaque, suffix=".mkv")
    assert found == "frame 0 shows the source where the source is transparent"
    assert judged(tmp_path, source, source, suffix=".mkv") == ""


@needs_ffprobe
def test_output_of_a_jumping_source_must_be_short(tmp_path: Path) -> None:
    entry = entry_for(GOOD)
    entry.video.update(pts_jump=True)
    del entry.video["fps"]
    long = altered(times_ms=(0, 40, 80, 120, 60_000, 60_040, 60_080, 60_120))
    media = [inspect(write_clip(tmp_path / f"{n}.mp4", c)) for n, c in enumerate((GOOD, long))]
    found = complaints(Case(entry, media[0], media[1], ".mp4", "", PATCHES))
    assert found == ["lasts 60.12 s instead of about 0.28 s"]


def run_of(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "arguments": [],
        "exit_code": 1,
        "stdout": "",
        "stderr": "error: clip.mp4 is not a video\nhint: try another file\n",
        "seconds": 0.5,
        "peak_mb": 100,
        "timed_out": False,
        "output": Path("/nowhere/out.mp4"),
        "left": [],
        "contacts": 0,
        "udp_ports": [],
    }
    return Run(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "group", "complaint"),
    [
        ({}, "garbage", ""),
        ({"exit_code": 0}, "garbage", "exit 0 instead of 1 or 2"),
        ({"exit_code": -11}, "garbage", "died of signal 11"),
        ({"exit_code": 3}, "garbage", "exit 3 instead of 1 or 2"),
        ({"stderr": "clip.mp4: bad\n"}, "garbage", "0 error lines instead of one"),
        ({"stderr": "error: clip.mp4\nerror: b\n"}, "garbage", "2 error lines"),
        ({"stderr": "error: clip.mp4\nhint: a\nhint: b\n"}, "garbage", "2 hint lines"),
        ({"stderr": "error: not a video\n"}, "garbage", "does not name the file"),
        ({"stderr": "Traceback (most\nerror: clip.mp4\n"}, "garbage", "shows a traceback"),
        ({"stderr": "[h264 @ 0x5f] bad\nerror: clip.mp4\n"}, "garbage", "library's own message"),
        ({"stderr": "error: clip.mp4\x07\n"}, "garbage", "raw control characters"),
        ({"stdout": "TOP-SECRET-xxx"}, "playlist", "shows the bait file's text"),
        ({"seconds": 5.5}, "garbage", r"took 5\.5 s to refuse"),
        ({"left": ["out.part.mp4"]}, "garbage", r"left \['out\.part\.mp4'\] behind"),
        ({"contacts": 2}, "protocol", "contacted the network 2 times"),
        ({"udp_ports": [50004]}, "playlist", r"opened UDP ports \[50004\]"),
        ({"peak_mb": 900}, "bomb", "took 900 MB to refuse"),
        ({"timed_out": True, "exit_code": -9}, "fs", "did not end within"),
    ],
)
def test_refusals_are_judged(changes: dict[str, Any], group: str, complaint: str) -> None:
    entry = entry_for(GOOD, expected="clear_error", group=group)
    found = judge(entry, run_of(**changes), Path("/nowhere"), PATCHES)
    assert len(found) == bool(complaint)
    assert re.search(complaint, "; ".join(found))


@pytest.mark.parametrize(
    ("stderr", "complaint"),
    [
        ("warning: clip.mp4: 3 damaged packets skipped, first at 0:01.5\n", ""),
        ("warning: clip.mp4: 3 damaged packets skipped, from 1.50 s on\n", ""),
        ("warning: clip.mp4 is damaged at 0:01.5\n", "no warning that names a count and a time"),
        ("warning: clip.mp4: 3 damaged packets skipped\n", "no warning that names a count"),
        ("", "no warning that names a count and a time"),
        ("warning: 3 lost at 0:01.5\nwarning: 4 lost at 0:02.5\n", "warns 2 times"),
    ],
)
def test_warnings_are_judged(tmp_path: Path, stderr: str, complaint: str) -> None:
    entry = entry_for(GOOD, group="damage", warn=True)
    output = tmp_path / "out.mp4"
    run = run_of(exit_code=0, stderr=stderr, output=output, left=["out.mp4"])
    assert re.search(complaint, "; ".join(judge(entry, run, tmp_path, PATCHES)))
    assert bool(complaint) == bool(judge(entry, run, tmp_path, PATCHES))


def test_failed_run_and_leftovers_of_a_good_entry_are_seen(tmp_path: Path) -> None:
    failed = judge(entry_for(GOOD), run_of(), tmp_path, PATCHES)
    assert failed == ["exit 1: error: clip.mp4 is not a video"]
    untidy = run_of(exit_code=0, output=tmp_path / "out.mp4", left=["out.mp4", "out.part.mp4"])
    assert "output folder holds" in judge(entry_for(GOOD), untidy, tmp_path, PATCHES)[0]


def test_bar_code_and_patches_survive_drawing() -> None:
    for number in (0, 1, 7, 2047, 4095):
        picture = draw_picture(number, 320, 240)
        assert read_bar_code(picture[..., 1]) == number
        assert read_bar_code(picture[:, ::-1, 1]) is None
        assert read_bar_code(picture[::-1, :, 1]) is None
    assert [list(patch) for patch in read_patches(draw_picture(0, 320, 240))] == PATCHES


@pytest.fixture
def bait() -> Iterator[BaitListener]:
    try:
        listener = BaitListener()
    except OSError:
        pytest.skip(f"port {corpus_run.BAIT_PORT} is in use")
    with listener:
        yield listener


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 8099))", "contacted the network"),
        (
            "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM);"
            "s.bind(('127.0.0.1', 50004)); time.sleep(0.3)",
            "opened UDP ports",
        ),
        ("import time; time.sleep(60)", "did not end within"),
        ("import sys; open(sys.argv[2], 'w')", "left .*out.mp4"),
        ("import os; os.kill(os.getpid(), 11)", "died of signal 11"),
    ],
)
def test_what_a_command_does_is_watched(
    tmp_path: Path,
    bait: BaitListener,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    complaint: str,
) -> None:
    monkeypatch.setattr(corpus_run, "TIME_LIMIT_S", 3.0)
    entry = entry_for(GOOD, expected="clear_error", group="protocol", via="argv")
    command = f'{sys.executable} -c "{program}" {{input}} {{output}}'
    verdict = check_entry(entry, tmp_path, PATCHES, bait, command=command)
    assert re.search(complaint, "; ".join(verdict.reasons))


def test_memory_of_a_refusal_is_watched(tmp_path: Path, bait: BaitListener) -> None:
    entry = entry_for(GOOD, expected="clear_error", group="bomb")
    program = "import time; data = b'x' * (520 << 20); time.sleep(0.1)"
    command = f'{sys.executable} -c "{program}" {{input}} {{output}}'
    verdict = check_entry(entry, tmp_path, PATCHES, bait, command=command)
    assert re.search(r"took 5[23]\d MB to refuse", "; ".join(verdict.reasons))


@pytest.mark.skipif(not can_run_like_a_user(), reason="root, and setpriv is not usable")
def test_permissions_apply_even_to_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    prefix = LIKE_A_USER if os.geteuid() == 0 else ()
    for mode, code in ((0o400, 0), (0, 1)):
        (tmp_path / "secret").chmod(mode)
        done = subprocess.run([*prefix, "cat", tmp_path / "secret"], capture_output=True)
        assert done.returncode == code


def test_targets_choose_their_entries() -> None:
    entries = [
        entry_for(GOOD, id="own", file="a.mp4"),
        entry_for(GOOD, id="other", file="a.mkv"),
        entry_for(GOOD, id="bad", file="a.mkv", expected="clear_error"),
        entry_for(GOOD, id="broken", file="a.mkv", group="damage"),
    ]
    ids = {t: [e.id for e in chosen(entries, None, [], t)] for t in ("native", "mp4", "lossless")}
    assert ids == {
        "native": ["own", "other", "bad", "broken"],
        "mp4": ["other", "broken"],
        "lossless": ["own", "other"],
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shared_folder() / "corpus" / "make_corpus.py").exists():
        pytest.skip("the corpus generator is not here (../shared or VIDMATTE_SHARED)")
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg and ffprobe are not installed")
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, f"^({SAMPLE}|ts_plain)$")
    return folder


def test_generator_and_checker_agree_on_bar_codes(corpus: Path) -> None:
    entry = next(e for e in load_manifest(corpus)[0] if e.id == "baseline")
    assert inspect(corpus / entry.file).ids == entry.ids


@pytest.mark.parametrize("identifier", SAMPLE.split("|"))
def test_sample_of_the_corpus(corpus: Path, bait: BaitListener, identifier: str) -> None:
    entries, patches = load_manifest(corpus)
    entry = next(e for e in entries if e.id == identifier)
    assert check_entry(entry, corpus, patches, bait).reasons == []


def test_command_prints_a_table_and_fails_on_a_failure(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--corpus", str(corpus), "--only", "^fs_fifo$", "--command", "true"])
    printed = capsys.readouterr().out
    assert code == 1
    assert "0/1 entries behave as their manifest says" in printed
    assert "FAILED fs/fs_fifo: exit 0 instead of 1 or 2" in printed
