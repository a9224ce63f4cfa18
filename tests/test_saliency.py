"""Scores of pictures against hand-computed cases; the official procedure; the command."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cli_here import CliHere
from conftest import SHARED, Cli, wait_until
from numpy.typing import NDArray

from vidmatte.backends import null
from vidmatte.errors import BackendError, InputError, UsageError
from vidmatte.evaluation.predictions import (
    FolderPrediction,
    NetworkPrediction,
    Pair,
    check_sizes,
    official_prediction,
    predictors_for,
)
from vidmatte.evaluation.saliency import Scores, f_measure, score
from vidmatte.matting import MattingChoice, Network
from vidmatte.models.registry import resolve_model
from vidmatte.pairs import find_pairs

Grey = NDArray[np.uint8]
SIDE = 64
LEVEL = 204  # .8
NULL = MattingChoice(backend="null")
EXACT = 1e-9
PUBLISHED_MAX_F, PUBLISHED_MAE = 0.943, 0.041  # U²-Net paper, table 4: ECSSD, U²-Net†
MAX_F_TOLERANCE, MAE_TOLERANCE = 0.004, 0.003


def square(level: int = 255, at: int = 16) -> Grey:
    """A square of half the side; in the middle, every quarter of the picture has an equal part."""
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[at : at + SIDE // 2, at : at + SIDE // 2] = level
    return grey


def write(path: Path, picture: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def data(folder: Path, masks: list[Grey], predictions: list[Grey]) -> Path:
    """Write images/N.jpg, masks/N.png and pred/N.png."""
    for number, (mask, prediction) in enumerate(zip(masks, predictions, strict=True)):
        write(folder / "images" / f"{number}.jpg", np.full((*mask.shape, 3), 90, np.uint8))
        write(folder / "masks" / f"{number}.png", mask)
        write(folder / "pred" / f"{number}.png", prediction)
    return folder


def pairs_of(folder: Path) -> list[Pair]:
    return check_sizes(find_pairs(folder / "images", folder / "masks").found)


def scores_of(folder: Path, *, stretch: bool = False) -> Scores:
    pairs = pairs_of(folder)
    return score(FolderPrediction("p", folder / "pred", pairs, stretch=stretch), pairs)


def test_scores_of_a_faint_square_by_hand(tmp_path: Path) -> None:
    """The prediction is the mask times c = .8, which every formula can be worked out for."""
    found = scores_of(data(tmp_path, [square()], [square(LEVEL)]))
    c, share, pixels = LEVEL / 255, 1 / 4, SIDE * SIDE
    assert found.mae == pytest.approx(share * (1 - c), abs=EXACT)
    # Thresholds 1..204 give the mask, 0 everything, those above nothing.
    precision = np.array([0.0] * 51 + [1.0] * 204 + [share])
    recall = np.array([0.0] * 51 + [1.0] * 205)
    assert np.allclose(found.precision, precision, atol=EXACT)
    assert np.allclose(found.recall, recall, atol=EXACT)
    everything = 1.3 * share / (0.3 * share + 1)
    assert found.max_f == pytest.approx(1, abs=EXACT)
    assert found.mean_f == pytest.approx((204 + everything) / 256, abs=EXACT)
    # Margolin et al. 2014: weighted precision is 1, weighted recall c; beta is 1.
    assert found.weighted_f == pytest.approx(2 * c / (1 + c), abs=1e-6)
    # Fan et al. 2017, eq. 4 to 8, for x = c y in each of four equal quarters.
    inside, outside = 2 * c / (c * c + 1), 1.0
    regions = 4 * c * c / (1 + c * c) ** 2
    expected = (share * inside + (1 - share) * outside + regions) / 2
    assert found.s == pytest.approx(expected, abs=1e-6)
    # Fan et al. 2018, eq. 3 to 5: 1 where the maps agree, a quarter for constant maps.
    assert found.max_e == pytest.approx(pixels / (pixels - 1), abs=1e-6)
    assert found.mean_e == pytest.approx((204 + 52 / 4) / 256 * pixels / (pixels - 1), abs=1e-6)


def test_f_is_that_of_the_mean_precision_and_recall(tmp_path: Path) -> None:
    """One picture is found whole, of the other a half is: F of means is not the mean of Fs."""
    half = square()
    half[:, SIDE // 2 :] = 0
    found = scores_of(data(tmp_path, [square(), square()], [square(), half]))
    precision, recall = 1.0, 0.75
    assert found.max_f == pytest.approx(1.3 * precision * recall / (0.3 * precision + recall))
    assert found.pictures == 2
    assert found.mae == pytest.approx((0 + 1 / 8) / 2, abs=EXACT)


def test_f_of_nothing_is_zero() -> None:
    assert f_measure(np.zeros(2), np.array([0.0, 1.0])).tolist() == [0, 0]


def test_an_empty_mask_counts_against_what_is_kept(tmp_path: Path) -> None:
    """An honest empty matte is right; min-max would light it up."""
    empty, faint = np.zeros((SIDE, SIDE), np.uint8), square(3)
    folder = data(tmp_path, [empty], [faint])
    found = scores_of(folder)
    assert found.mae == pytest.approx(3 / 255 / 4, abs=EXACT)
    assert found.s == pytest.approx(1 - 3 / 255 / 4, abs=EXACT)
    assert scores_of(folder, stretch=True).mae == pytest.approx(1 / 4, abs=EXACT)


def test_nothing_is_stretched_unless_official(tmp_path: Path) -> None:
    folder = data(tmp_path, [square()], [square(100)])
    assert scores_of(folder).mae == pytest.approx((1 - 100 / 255) / 4, abs=EXACT)
    assert scores_of(folder, stretch=True).mae == 0


def test_deep_and_transparent_predictions_are_read_exactly(tmp_path: Path) -> None:
    folder = data(tmp_path, [square()], [square()])
    write(folder / "pred" / "0.png", square().astype(np.uint16) * 201)  # .782 of 65535
    assert scores_of(folder).mae == pytest.approx((1 - 255 * 201 / 65535) / 4, abs=EXACT)
    cutout = np.dstack([np.full((SIDE, SIDE, 3), 70, np.uint8), square(LEVEL)])
    write(folder / "pred" / "0.png", cutout)
    assert scores_of(folder).mae == pytest.approx((1 - LEVEL / 255) / 4, abs=EXACT)


class Recorder:
    """A backend that keeps what it was shown and answers a ramp."""

    def __init__(self, answer: NDArray[np.float32]) -> None:
        self.answer, self.shown = answer, np.zeros(0)
        self.name, self.description, self.batch = "recorder", "recorder", 1
        self.input_size = 320, 320

    def infer(self, image_NHW3: Grey) -> NDArray[np.float32]:
        self.shown = image_NHW3[0].copy()
        return self.answer[None]

    def close(self) -> None:
        pass


def official(picture: Grey, answer: NDArray[np.float32]) -> tuple[NDArray[np.float64], Recorder]:
    recorder = Recorder(answer)
    return official_prediction(picture, Network(resolve_model("live"), recorder)), recorder


def test_official_divides_by_the_brightest_and_stretches_the_answer() -> None:
    picture = np.full((60, 90, 3), 50, np.uint8)
    picture[:, 45:] = 100
    ramp = np.tile(np.linspace(0.2, 0.6, 320, dtype=np.float32), (320, 1))
    result, recorder = official(picture, ramp)
    assert set(np.unique(recorder.shown[:, :150])) == {128}  # half of the brightest
    assert set(np.unique(recorder.shown[:, 170:])) == {255}
    assert result.shape == (60, 90)
    assert result.min() >= 0
    assert result.max() <= 1
    # From one end of 0..1 to the other, but for the outermost samples that shrinking averages.
    assert result[30, 0] < 0.01
    assert result[30, -1] > 0.99
    assert np.allclose(result[30], (np.arange(90) + 0.5) / 90, atol=0.01)


def test_official_survives_black_pictures_and_flat_answers() -> None:
    flat = np.full((320, 320), 0.25, np.float32)
    result, recorder = official(np.zeros((40, 30, 3), np.uint8), flat)
    assert recorder.shown.max() == 0
    assert np.allclose(result, 63 / 255)  # nothing to stretch; saved in 8 bits


def test_official_refuses_nan() -> None:
    with pytest.raises(BackendError, match="picture: the network returned NaN"):
        official(np.zeros((40, 30, 3), np.uint8), np.full((320, 320), np.nan, np.float32))


def test_official_resizes_as_scikit_image_does() -> None:
    from skimage.transform import resize

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (300, 400, 3), np.uint8)
    picture[100:120, 100:120] = 255  # the brightest, not mixed with anything
    _, recorder = official(picture, np.eye(320, dtype=np.float32))
    theirs = resize(picture / 255, (320, 320), mode="constant", anti_aliasing=False)
    theirs = theirs / theirs.max() * 255
    inner = slice(2, -2)  # their border is mixed with black
    assert np.abs(recorder.shown - theirs)[inner, inner].max() <= 0.6


def test_raw_leaves_the_curve_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(matte_HW: Any, index: int) -> None:
        matte_HW[:] = 0.5

    monkeypatch.setitem(null.FORMULAS, "ones", half)
    pairs = pairs_of(data(tmp_path, [square()], [square()]))
    model = resolve_model("live")
    lo, hi = model.row.curve.lo, model.row.curve.hi
    found = {
        mode: score(NetworkPrediction("live", model, mode, NULL), pairs)
        for mode in ("raw", "matte")  # type: ignore[var-annotated]
    }
    assert found["raw"].mae == pytest.approx(0.5, abs=1 / 255)
    curved = (0.5 - lo) / (hi - lo)
    expected = (1 - curved) / 4 + curved * 3 / 4
    assert found["matte"].mae == pytest.approx(expected, abs=1 / 255)


def test_networks_open_once_per_size_and_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are grouped by the network's size, whatever the order of their names."""
    sizes = [(64, 64), (64, 32), (64, 64), (64, 32)]
    for number, (width, height) in enumerate(sizes):
        grey = np.full((height, width), 255, np.uint8)
        write(tmp_path / "images" / f"{number}.png", np.dstack([grey] * 3))
        write(tmp_path / "masks" / f"{number}.png", grey)
    opened: list[tuple[int, int]] = []
    closed: list[None] = []
    original = NetworkPrediction._open

    def count(self: NetworkPrediction, size: tuple[int, int]) -> Network:
        opened.append(size)
        network = original(self, size)
        monkeypatch.setattr(network.backend, "close", lambda: closed.append(None))
        return network

    monkeypatch.setattr(NetworkPrediction, "_open", count)
    (predictor,) = predictors_for([], [], [], pairs_of(tmp_path), "matte", NULL)
    assert score(predictor, pairs_of(tmp_path)).mae == 0
    assert sorted(opened) == [(320, 192), (320, 320)]
    assert len(closed) == 2


def test_turned_pictures_are_scored_upright(tmp_path: Path) -> None:
    """A picture stored on its side, by its EXIF, has an upright mask."""
    picture = cv2.imencode(".jpg", np.zeros((32, 64, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture[:2] + segment + picture[2:])
    write(tmp_path / "masks" / "a.png", np.full((64, 32), 255, np.uint8))
    (pair,) = pairs_of(tmp_path)
    assert pair.size == (32, 64)
    (predictor,) = predictors_for([], [], [], [pair], "matte", NULL)
    assert score(predictor, [pair]).mae == 0


def test_reading_the_pictures_can_be_stopped(tmp_path: Path) -> None:
    folder = data(tmp_path, [square()] * 3, [square()] * 3)
    found = find_pairs(folder / "images", folder / "masks").found
    seen: list[None] = []

    def stop_at_the_second() -> None:
        seen.append(None)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_sizes(found, stop_at_the_second)
    assert len(seen) == 2


def test_labels_of_weights_are_stems_or_whole_names(tmp_path: Path) -> None:
    live = resolve_model("live").path
    paths = [tmp_path / "a" / "best.safetensors", tmp_path / "b" / "best.safetensors"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(live.read_bytes())
    alone = predictors_for([], paths[:1], [], [], "raw", NULL)
    assert [predictor.label for predictor in alone] == ["best"]
    both = predictors_for(["live"], paths, [], [], "raw", NULL)
    assert [predictor.label for predictor in both] == ["live", *map(str, paths)]
    with pytest.raises(UsageError, match="live: is named twice"):
        predictors_for(["live", "live"], [], [], [], "raw", NULL)


def test_predictions_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = data(tmp_path, [square()], [square()])
    write(folder / "pred" / "0.png", np.zeros((5, 7), np.uint8))
    with pytest.raises(InputError, match=r"0\.png: is 7x5, its picture .*0\.jpg 64x64"):
        scores_of(folder)


def command(folder: Path, *more: object) -> list[object]:
    base = ["evaluate", "saliency", "--images", folder / "images", "--masks", folder / "masks"]
    return [*base, "--backend", "null", *more]


def test_the_command_writes_table_json_csv_and_plots(tmp_path: Path, cli_here: CliHere) -> None:
    folder = data(tmp_path / "d", [square(), square()], [square(LEVEL), square(LEVEL)])
    results = {kind: tmp_path / f"o.{kind}" for kind in ("json", "csv", "png", "svg")}
    ready = ("--pred", f"ready={folder / 'pred'}", "--model", "live")
    done = cli_here(*command(folder, *ready, "--json", results["json"], "--csv", results["csv"],
                             "--plot", results["png"]))  # fmt: skip
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[2][0] == "live"
    assert lines[3] == ["ready", "1.000", "0.798", "0.889", "0.973", "1.000", "0.848", "0.050"]
    document = json.loads(results["json"].read_text())
    live, ready_row = document["rows"]
    assert document["mode"] == "matte"
    assert live["sha256"] == resolve_model("live").sha256
    assert live["parameters"] == 1415821
    assert ready_row["parameters"] is None
    assert ready_row["mae"] == pytest.approx(0.05)
    assert [len(live[curve]) for curve in ("precision", "recall", "f")] == [256] * 3
    rows = list(csv.DictReader(results["csv"].read_text().splitlines()))
    assert [row["name"] for row in rows] == ["live", "ready"]
    assert float(rows[1]["mae"]) == pytest.approx(0.05)
    assert cv2.imread(str(results["png"])).shape[1] > 1000
    done = cli_here(*command(folder, *ready, "--plot", results["svg"], "--quiet"))
    assert done.code == 0, done.err
    assert results["svg"].read_text().lstrip().startswith("<?xml")
    assert not done.err


def test_json_on_stdout_is_all_that_is_there(tmp_path: Path, cli_here: CliHere) -> None:
    folder = data(tmp_path, [square()], [square()])
    done = cli_here(*command(folder, "--pred", f"a={folder / 'pred'}", "--json", "-"))
    assert json.loads(done.out)["rows"][0]["name"] == "a"


def test_what_has_no_partner_is_named_and_left_out(tmp_path: Path, cli_here: CliHere) -> None:
    folder = data(tmp_path, [square()], [square()])
    write(folder / "images" / "alone\x1b[31m.png", np.zeros((4, 4, 3), np.uint8))
    (folder / "images" / "notes.txt").write_text("no picture")
    done = cli_here(*command(folder, "--pred", f"a={folder / 'pred'}"))
    assert done.code == 0
    assert "warning: 1 without a partner left out: alone\\x1b[31m.png" in done.err
    assert "1 picture, matte" in done.out


def test_wrong_results_are_refused_before_anything_is_read(
    tmp_path: Path, cli_here: CliHere
) -> None:
    folder = data(tmp_path, [square()], [square()])
    (folder / "images" / "0.jpg").write_bytes(b"damaged")
    csv_file = folder / "o.csv"
    csv_file.touch()
    assert "exists already" in cli_here(*command(folder, "--csv", csv_file)).refusal
    assert "its format" in cli_here(*command(folder, "--plot", folder / "o.jpg")).refusal
    mask = folder / "masks" / "0.png"
    refusal = cli_here(*command(folder, "--plot", mask, "--overwrite")).refusal
    assert f"{mask}: is also read by this run" in refusal
    same = ("--csv", folder / "n", "--json", folder / "n")
    assert "is also" in cli_here(*command(folder, *same)).refusal


@pytest.mark.fault
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, run_cli: Cli) -> None:
    folder = data(tmp_path, [square()] * 400, [square()] * 400)
    target = tmp_path / "o.csv"
    process = run_cli.start(*command(folder, "--csv", target), bufsize=0)
    assert process.stderr is not None
    loaded = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "scipy" in loaded.read_text(), 20)  # with pysodmetrics, before the work
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not out
    assert not target.exists()
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_numbers_of_u2netp_on_ecssd() -> None:
    """Needs VIDMATTE_ECSSD, a folder with images/ and ground_truth_mask/, and u2netp's weights."""
    named = os.environ.get("VIDMATTE_ECSSD")
    if not named:
        pytest.skip("VIDMATTE_ECSSD names no copy of ECSSD")
    weights = Path(
        os.environ.get("VIDMATTE_U2NETP", SHARED / "weights" / "u2netp_folded.safetensors")
    )
    if not weights.exists():
        pytest.skip("VIDMATTE_U2NETP names no weights of u2netp")
    found = find_pairs(Path(named) / "images", Path(named) / "ground_truth_mask")
    pairs = check_sizes(found.found)
    assert len(pairs) == 1000
    assert not found.alone
    (predictor,) = predictors_for([], [weights], [], pairs, "official", MattingChoice())
    scores = score(predictor, pairs)
    print(f"max F {scores.max_f:.4f}, MAE {scores.mae:.4f}")
    assert scores.max_f == pytest.approx(PUBLISHED_MAX_F, abs=MAX_F_TOLERANCE)
    assert scores.mae == pytest.approx(PUBLISHED_MAE, abs=MAE_TOLERANCE)
