"""Mattes of videos against the truth: how they are read, compared, told and shown."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from cli_here import CliHere
from conftest import Cli, make_clip, run_file, wait_until
from numpy.typing import NDArray
from test_imports import HEAVY, modules_after

from vidmatte.errors import InputError
from vidmatte.evaluation.contact import contact_sheet, error_picture
from vidmatte.evaluation.reading import MatteReader, open_mattes
from vidmatte.evaluation.video import Compared, Moment, VideoErrors, compare
from vidmatte.evaluation.video_metrics import METRICS
from vidmatte.frames import plane_views

Grey = NDArray[np.uint8]
HEIGHT, WIDTH = 48, 64
ROUNDING = 1e-6


def matte(index: int) -> Grey:
    """A soft disc that wanders, whole inside and empty outside."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 20 - 2 * index, y - 24)
    return np.rint(255 * np.clip((14 - distance) / 6, 0, 1)).astype(np.uint8)


def frame_of(picture: NDArray[Any], pix_fmt: str) -> av.VideoFrame:
    if not pix_fmt.startswith("yuv"):
        return av.VideoFrame.from_ndarray(picture, format=pix_fmt)
    frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
    for plane, samples in zip(plane_views(frame, writable=True), picture, strict=True):
        plane[...] = samples
    return frame


def write_video(
    path: Path,
    pictures: list[NDArray[Any]],
    pix_fmt: str = "gray",
    codec: str = "ffv1",
    *,
    given: str | None = None,
    colour_range: int = 0,
    rate: int = 25,
) -> Path:
    """Encode arrays of the format `given` (default: `pix_fmt`)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.color_range = colour_range
        for index, picture in enumerate(pictures):
            frame = frame_of(picture, given or pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_pictures(folder: Path, pictures: list[NDArray[Any]], name: str = "m_%04d.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / (name % index)), picture)
    return folder / name


def read(name: Path | str) -> list[NDArray[Any]]:
    with open_mattes(str(name)) as source:
        reader = MatteReader(source.info)
        return [reader.read(frame.picture) for frame in source]


CLIP = [matte(index) for index in range(4)]
DEEP = [(grey.astype(np.uint16) * 257) for grey in CLIP]


def rgba(grey: Grey) -> NDArray[Any]:
    return np.dstack([np.full((HEIGHT, WIDTH, 3), (200, 30, 90), grey.dtype), grey])


def luma(grey: Grey, low: int, high: int, bits: int = 8) -> NDArray[Any]:
    """One 4:4:4 picture without colour whose luma shows `grey` between two code values."""
    samples = np.rint(low + grey / 255 * (high - low))
    middle = np.full((2, HEIGHT, WIDTH), 1 << (bits - 1))
    stacked = np.concatenate([samples[None], middle])
    return stacked.astype(np.uint8 if bits == 8 else np.uint16)


def test_grey_is_read_exactly(tmp_path: Path) -> None:
    for name, pictures, pix_fmt in (("g8", CLIP, "gray"), ("g16", DEEP, "gray16le")):
        found = read(write_video(tmp_path / f"{name}.mkv", pictures, pix_fmt))
        assert all(np.array_equal(a, b) for a, b in zip(found, pictures, strict=True)), name
    deep = read(write_pictures(tmp_path / "deep", DEEP))  # big-endian in PNG
    assert all(np.array_equal(a, b) for a, b in zip(deep, DEEP, strict=True))


def test_grey_in_rgb_is_read_exactly(tmp_path: Path) -> None:
    found = read(write_pictures(tmp_path, [np.dstack([grey] * 3) for grey in CLIP]))
    assert all(np.array_equal(a, b) for a, b in zip(found, CLIP, strict=True))


def test_alpha_is_read_exactly(tmp_path: Path) -> None:
    pictures = [rgba(grey) for grey in CLIP]
    for name in (
        write_video(tmp_path / "t.mov", pictures, "argb", "qtrle", given="rgba"),
        write_pictures(tmp_path / "t", pictures),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(read(name), CLIP, strict=True)), name


def test_an_opaque_grey_picture_with_an_alpha_channel_is_a_grey_matte(tmp_path: Path) -> None:
    opaque = [np.dstack([grey] * 3 + [np.full_like(grey, 255)]) for grey in CLIP]
    found = read(write_pictures(tmp_path, opaque))
    assert all(np.array_equal(a, b) for a, b in zip(found, CLIP, strict=True))


@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv444p", 8), ("yuv444p10le", 10)])
def test_video_range_is_spread(tmp_path: Path, pix_fmt: str, bits: int) -> None:
    low, high = 16 << (bits - 8), 235 << (bits - 8)
    peak = 255 if bits == 8 else 65535
    narrow = [luma(grey, low, high, bits) for grey in CLIP]
    found = read(write_video(tmp_path / "n.mkv", narrow, pix_fmt, colour_range=1))
    for a, b in zip(found, CLIP, strict=True):
        assert a.min() == 0
        assert a.max() == peak
        assert np.abs(a / peak - b / 255).max() <= 0.5 / (high - low) + 0.5 / peak
    whole = [luma(grey, 0, (1 << bits) - 1, bits) for grey in CLIP]
    found = read(write_video(tmp_path / "w.mkv", whole, pix_fmt, colour_range=2))
    for a, b in zip(found, CLIP, strict=True):
        assert np.abs(a / peak - b / 255).max() <= 0.5 / ((1 << bits) - 1) + 0.5 / peak


def test_colour_is_refused(tmp_path: Path) -> None:
    """The composite in place of the matte is the mistake that is made."""
    make_clip(tmp_path / "c.mp4", 2)
    green = write_pictures(tmp_path / "g", [np.full((HEIGHT, WIDTH, 3), (64, 177, 0), np.uint8)])
    with pytest.raises(InputError, match="is in colour"):
        read(green)


def test_a_folder_is_its_one_row_of_pictures(tmp_path: Path) -> None:
    for number, name in enumerate(("m_%04d.png", "%d.png", "x%03d_matte.png")):
        folder = write_pictures(tmp_path / str(number), CLIP, name).parent
        (folder / "notes.txt").write_text("no picture")
        found = read(folder)
        assert all(np.array_equal(a, b) for a, b in zip(found, CLIP, strict=True)), name
    write_pictures(folder, CLIP, "y%d.png")
    with pytest.raises(InputError, match="several rows"):
        read(folder)
    with pytest.raises(InputError, match="no row"):
        read(write_pictures(tmp_path / "e", [], "y%d.png").parent)


def ignore(_: object) -> None:
    pass


def compare_arrays(tmp_path: Path, prediction: list[Any], truth: list[Any]) -> VideoErrors:
    a = write_video(tmp_path / "a.mkv", prediction)
    b = write_video(tmp_path / "b.mkv", truth)
    return compare(str(a), str(b), conn=True, each=ignore)


def test_every_frame_is_compared_with_its_own(tmp_path: Path) -> None:
    wrong = [grey.copy() for grey in CLIP]
    wrong[2][5, 5:15] = 51  # .2 on 10 pixels of background
    found = compare_arrays(tmp_path, wrong, CLIP)
    expected = 1e3 * 10 * 0.2 / (HEIGHT * WIDTH)
    assert found.columns["mad"].tolist() == pytest.approx([0, 0, expected, 0], rel=1e-5)
    assert found.columns["conn"][2] == pytest.approx(10 * 0.2 / 1e3, rel=1e-5)
    flicker = 1e2 * (10 * 0.2**2 / (HEIGHT * WIDTH)) ** 0.5
    assert np.isnan(found.columns["dtssd"][0])
    assert list(found.columns["dtssd"])[1:] == pytest.approx([0, flicker, flicker], rel=1e-5)
    assert found.means["mad"] == pytest.approx(expected / 4, rel=1e-5)
    assert found.means["dtssd"] == pytest.approx(flicker * 2 / 3, rel=1e-5)
    assert list(found.times_s) == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-3)
    assert found.worst("mad", 1) == [2]


def test_own_mattes_in_every_shape_are_equal(tmp_path: Path) -> None:
    """One run's matte as video, as pictures and as the alpha of transparent pictures."""
    source = make_clip(tmp_path / "s.mp4", 6)
    kinds = {"m.mkv": "matte", "m_%d.png": "matte", "t_%d.png": "transparent"}
    run_file(source, *(tmp_path / name for name in kinds), backend="null:disc",
             contents=tuple(kinds.values()))  # type: ignore[arg-type]  # fmt: skip
    for other in ("m_%d.png", "t_%d.png"):
        found = compare(str(tmp_path / "m.mkv"), str(tmp_path / other), conn=True, each=ignore)
        assert found.frames == 6
        assert found.means == pytest.approx(dict.fromkeys(METRICS, 0), abs=1e-12), other


def test_other_lengths_are_told_with_both_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mkv: has 2 frames, .*b\.mkv 4"):
        compare_arrays(tmp_path, CLIP[:2], CLIP)
    with pytest.raises(InputError, match=r"a\.mkv: has 4 frames, .*b\.mkv 3"):
        compare_arrays(tmp_path, CLIP, CLIP[:3])


def test_an_unreadable_picture_is_named_with_the_counts(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path / "p", CLIP)
    (tmp_path / "p" / "m_0002.png").write_text("no picture")
    truth = write_video(tmp_path / "t.mkv", CLIP)
    with pytest.raises(InputError, match=r"has 3 frames, .* 4; .*m_0002\.png"):
        compare(str(pattern), str(truth), conn=False, each=ignore)


def errors_of(mads: list[float], rate: float = 25) -> VideoErrors:
    found = VideoErrors(WIDTH, HEIGHT)
    for index, value in enumerate(mads):
        found.times_s.append(index / rate)
        for name in METRICS:
            found.columns[name].append(value)
    return found


def test_worst_moments_are_apart_in_time() -> None:
    ramp = [float(index) for index in range(200)]
    assert errors_of(ramp).worst("mad", 3) == [199, 174, 149]
    single = [1.0] * 100
    single[40], single[41], single[90] = 5, 6, 4
    assert errors_of(single).worst("mad", 2) == [41, 90]
    assert errors_of([3.0]).worst("mad", 6) == [0]
    assert len(errors_of([0.0] * 5).worst("mad", 5)) == 5
    unknown = errors_of([math.nan, 0.0, 1.0])
    assert unknown.worst("dtssd", 3) == [2, 1]


def test_the_error_picture_tells_more_from_less() -> None:
    prediction = np.array([[0, 1, 1, 0]], np.float32)
    truth = np.array([[0, 1, 0, 1]], np.float32)
    right_out, right_in, kept, lost = error_picture(prediction, truth)[0].astype(int)
    assert right_out.tolist() == [255, 255, 255]
    assert np.ptp(right_in) == 0
    assert kept[0] > kept[2] + 100  # red
    assert lost[2] > lost[0] + 100  # blue


def test_the_contact_sheet_shows_what_was_compared() -> None:
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    moments = [Moment(n, 1.0, Compared(matte(n), empty, n / 25)) for n in range(3)]
    sheet = cv2.imdecode(np.frombuffer(contact_sheet(moments, "MAD", "$x"), np.uint8), 1)
    height, width, _ = sheet.shape
    assert height > 3 * width / 3.2 * HEIGHT / WIDTH  # three rows of three
    red = (sheet[..., 2].astype(int) - sheet[..., 0]) > 60
    assert red[:, width * 2 // 3 :].mean() > 0.05
    assert red[:, : width // 2].mean() == 0


def command(*arguments: object) -> list[object]:
    return ["evaluate", "video", *arguments]


def test_the_command_writes_table_csv_json_and_sheet(tmp_path: Path, cli_here: CliHere) -> None:
    wrong = [grey.copy() for grey in CLIP]
    wrong[2][:] = 0
    pred = write_video(tmp_path / "a.mkv", wrong)
    truth = write_pictures(tmp_path / "truth", CLIP).parent
    out = {kind: tmp_path / f"o.{kind}" for kind in ("csv", "json", "png")}
    done = cli_here(*command("--pred", pred, "--truth", truth, "--csv", out["csv"], "--json",
                             out["json"], "--contact", out["png"], "--moments", 2))  # fmt: skip
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("4 frames, 64x48")
    assert [line.split()[0] for line in lines[1:]] == ["MAD", "MSE", "Grad", "Conn", "dtSSD"]
    assert lines[1].split()[-2:] == ["2", "0:00.08"]
    rows = list(csv.DictReader(out["csv"].read_text().splitlines()))
    expected = 1e3 * CLIP[2].mean() / 255
    assert [row["frame"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[2]["mad"]) == pytest.approx(expected, rel=1e-5)
    assert rows[0]["dtssd"] == ""
    document = json.loads(out["json"].read_text())
    assert document["frames"] == 4
    assert document["worst"][0]["frame"] == 2
    assert document["means"]["mad"] == pytest.approx(expected / 4, rel=1e-5)
    assert document["per_frame"]["dtssd"][0] is None
    assert cv2.imread(str(out["png"])).shape[1] > 1000


def test_json_on_stdout_without_conn(tmp_path: Path, cli_here: CliHere) -> None:
    video = write_video(tmp_path / "a.mkv", CLIP)
    done = cli_here(*command("--pred", video, "--truth", video, "--no-conn", "--json", "-"))
    means = json.loads(done.out)["means"]
    assert means.pop("conn") is None
    assert means == pytest.approx({"mad": 0, "mse": 0, "grad": 0, "dtssd": 0}, abs=1e-12)


def test_damage_that_both_share_is_a_warning(tmp_path: Path, cli_here: CliHere) -> None:
    pattern = write_pictures(tmp_path / "p\x1b", CLIP)
    (tmp_path / "p\x1b" / "m_0002.png").unlink()
    done = cli_here(*command("--pred", pattern, "--truth", pattern))
    assert done.code == 0, done.err
    assert "warning: " in done.err
    assert "1 picture missing in the numbering" in done.err
    assert "\x1b" not in done.err


def test_a_result_is_never_an_input(tmp_path: Path, cli_here: CliHere) -> None:
    pattern = write_pictures(tmp_path, CLIP)
    first = tmp_path / "m_0000.png"
    arguments = command("--pred", pattern, "--truth", tmp_path, "--contact", first, "--overwrite")
    assert "is also" in cli_here(*arguments).refusal
    assert cv2.imread(str(first)) is not None


@pytest.mark.fault
def test_a_signal_ends_a_comparison(tmp_path: Path, run_cli: Cli) -> None:
    video = write_video(tmp_path / "a.mkv", CLIP * 500)
    target = tmp_path / "o.csv"
    arguments = command("--pred", video, "--truth", video, "--csv", target)
    process = run_cli.start(*arguments)
    opened = Path(f"/proc/{process.pid}/fd")
    wait_until(lambda: any(os.path.realpath(fd) == str(video) for fd in opened.iterdir()), 20)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert not out
    assert not target.exists()


def test_help_of_evaluate_is_light(run_cli: Cli) -> None:
    code = (
        "import sys\nfrom vidmatte.cli import program\n"
        "try: program(sys.argv[1:], standalone_mode=True)\nexcept SystemExit: pass"
    )
    for name in ("saliency", "video"):
        loaded = modules_after(code, run_cli, "evaluate", name, "--help")
        assert not loaded & {*HEAVY, "numpy", "matplotlib", "py_sod_metrics"}
