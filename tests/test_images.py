"""Numbered pictures are read as a video, and only what the pattern means."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Cli, decode, run_file

from vidmatte.errors import InputError, OutputError, UsageError
from vidmatte.inputs import source_of
from vidmatte.sequences import is_sequence, numbered_files
from vidmatte.sources.file import FileSource
from vidmatte.sources.images import ImageSequenceSource


def write_picture(path: Path, level: int, size: tuple[int, int] = (32, 24)) -> None:
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), level, np.uint8))


def levels_of(source: ImageSequenceSource) -> list[int]:
    return [int(f.picture.to_ndarray(format="rgb24")[0, 0, 0]) for f in source]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures 8, 9, 10, 11 and 13, whose level is their number, and names that are not meant."""
    for number in (8, 9, 10, 11, 13):
        write_picture(tmp_path / f"f_{number:03d}.png", number)
    write_picture(tmp_path / "f_12.png", 200)
    write_picture(tmp_path / "f_0012.png", 201)
    write_picture(tmp_path / "f_abc.png", 202)
    return tmp_path / "f_%03d.png"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f_%04d.png", True),
        ("f_%d.png", True),
        ("f_%4d.png", True),
        ("100%.png", False),
        ("f_%03d_%d.png", False),
        ("f_%s.png", False),
        ("f_%%d.png", False),
        ("f_%999999999d.png", False),
        ("a%04d/f.png", False),
    ],
)
def test_patterns_are_told_from_names(name: str, expected: bool) -> None:
    assert is_sequence(Path(name)) is expected


def test_numbers_come_in_order_whatever_their_width(tmp_path: Path) -> None:
    for number in (2, 10, 1, 100):
        write_picture(tmp_path / f"p{number}.png", number)
    assert [n for n, _ in numbered_files(tmp_path / "p%d.png")] == [1, 2, 10, 100]


def test_sequence_starts_at_the_lowest_number_and_names_the_hole(pictures: Path) -> None:
    with ImageSequenceSource(pictures) as source:
        assert levels_of(source) == [8, 9, 10, 11, 13]
        assert source.info.frame_rate == 25
        assert source.info.frame_count == 5
        assert source.damage == ["1 picture missing in the numbering, first after 11"]


def test_times_follow_the_rate(pictures: Path) -> None:
    with ImageSequenceSource(pictures, rate=Fraction(30000, 1001)) as source:
        assert [f.pts * f.time_base for f in source] == [
            Fraction(1001 * k, 30000) for k in range(5)
        ]


def test_cut_keeps_the_pictures_from_start_to_before_end(pictures: Path) -> None:
    with ImageSequenceSource(pictures, rate=Fraction(10), start_s=0.1, end_s=0.3) as source:
        assert levels_of(source) == [9, 10]
    with pytest.raises(InputError, match="start"), ImageSequenceSource(pictures, start_s=9.0):
        pass


@pytest.mark.fault
def test_unreadable_picture_is_counted_and_keeps_its_time(pictures: Path) -> None:
    pictures.with_name("f_009.png").write_bytes(b"not a picture")
    pictures.with_name("f_012.png").symlink_to("nowhere.png")
    with ImageSequenceSource(pictures, rate=Fraction(10)) as source:
        assert [f.pts for f in source] == [0, 2, 3, 5]
        assert source.damage == ["2 pictures could not be read, first f_009.png at 0.10 s"]


@pytest.mark.fault
def test_nothing_readable_says_why(tmp_path: Path) -> None:
    (tmp_path / "f_1.png").write_bytes(b"")
    with (
        pytest.raises(InputError, match=r"f_1\.png: is empty"),
        ImageSequenceSource(tmp_path / "f_%d.png"),
    ):
        pass


@pytest.mark.fault
def test_videos_are_no_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "f_1.png", 1)
    (tmp_path / "f_2.png").write_bytes(b"YUV4MPEG2 W2 H2 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(6))
    with ImageSequenceSource(tmp_path / "f_%d.png") as source:
        assert len(list(source)) == 1
        assert "could not be read" in source.damage[0]


@pytest.mark.fault
def test_playlist_in_a_picture_opens_nothing(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png", 99)
    (tmp_path / "f_1.png").write_text("ffconcat version 1.0\nfile secret.png\n")
    with pytest.raises(InputError), ImageSequenceSource(tmp_path / "f_%d.png"):
        pass


@pytest.mark.fault
def test_too_large_pictures_end_the_run(tmp_path: Path) -> None:
    write_picture(tmp_path / "f_1.png", 1, (64, 16))  # FFmpeg counts rows of 64 pixels
    write_picture(tmp_path / "f_2.png", 2, (64, 64))
    with ImageSequenceSource(tmp_path / "f_%d.png", max_pixels=1024) as source:
        frames = iter(source)
        next(frames)
        with pytest.raises(InputError, match="over the limit"):
            next(frames)


def test_sequence_becomes_a_video_of_one_size(tmp_path: Path, pictures: Path) -> None:
    write_picture(pictures.with_name("f_014.png"), 14, (64, 48))
    result = run_file(pictures, tmp_path / "out.mkv")
    written = decode(tmp_path / "out.mkv")
    assert [(p.width, p.height) for p in written] == [(32, 24)] * 6
    assert any("size changes" in w for w in result.warnings)
    assert any("missing in the numbering" in w for w in result.warnings)


def test_file_called_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "f_1.png", 1)
    write_picture(tmp_path / "f_%d.png", 50)
    source = source_of(str(tmp_path / "f_%d.png"))
    assert isinstance(source, FileSource)
    with source:
        assert [int(f.picture.to_ndarray(format="rgb24")[0, 0, 0]) for f in source] == [50]


def test_rate_is_for_numbered_pictures_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="own frame rate"):
        source_of(str(tmp_path / "in.mp4"), rate=Fraction(10))


@pytest.mark.fault
@pytest.mark.parametrize("output", ["f_009.png", "f_%03d.png"])
def test_outputs_never_replace_the_inputs(pictures: Path, output: str) -> None:
    before = pictures.with_name("f_011.png").read_bytes()
    with pytest.raises(UsageError, match="is also"):
        run_file(pictures, pictures.with_name(output), overwrite=True)
    assert pictures.with_name("f_011.png").read_bytes() == before


def test_output_sequence_asks_before_replacing_any_number(tmp_path: Path, pictures: Path) -> None:
    write_picture(tmp_path / "o_3.png", 77)
    with pytest.raises(OutputError, match=r"o_3\.png: exists already"):
        run_file(pictures, tmp_path / "o_%d.png")
    write_picture(tmp_path / "o_6.png", 78)
    result = run_file(pictures, tmp_path / "o_%d.png", overwrite=True)
    assert result.notes[-1] == "1 pictures of an earlier run stay, first o_6.png"
    assert [n for n, _ in numbered_files(tmp_path / "o_%d.png")] == [1, 2, 3, 4, 5, 6]


def test_command_line_reads_a_sequence(run_cli: Cli, tmp_path: Path, pictures: Path) -> None:
    target = tmp_path / "out.mkv"
    done = run_cli("run", pictures, target, "--backend", "null", "--rate", "12.5")
    assert done.returncode == 0, done.stderr
    assert len(decode(target)) == 5
    assert decode(target)[-1].time == pytest.approx(4 / 12.5, abs=1e-3)
    missing = run_cli("run", tmp_path / "none_%d.png", target, "--overwrite")
    assert missing.returncode == 1
    assert "no numbered pictures" in missing.stderr
