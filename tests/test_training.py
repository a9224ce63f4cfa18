"""Training learns, and an interrupted run equals one that was not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_pictures import make_folders

from vidmatte.backends import open_backend
from vidmatte.errors import BackendError, ModelError, UsageError
from vidmatte.models.network import U2Net
from vidmatte.models.registry import from_file
from vidmatte.models.table import WEIGHTS_FOLDER, models
from vidmatte.training import session as sessions
from vidmatte.training.calibrate import int8_facts
from vidmatte.training.loss import deep_supervision, iou_loss
from vidmatte.training.recipe import LIVE, PAPER, Recipe
from vidmatte.training.session import (
    Job,
    Session,
    export_run,
    load_checkpoint,
    load_start,
    split,
)

ROW = models()["live"]
# What makes weights repeatable is switched on, what makes learning slower off.
SMALL = replace(
    LIVE, steps=8, batch=2, sizes=(((64, 64),),), warmup=2, replaced=0.2, empty=0.1,
)  # fmt: skip
OVERFIT = replace(
    SMALL, steps=200, batch=5, learning_rate=3e-3, warmup=20, ema=0.9, crop=(1.0, 1.0), aspect=1.0,
    replaced=0.0, empty=0.0, colour=0.0, blurred=0.0, compressed=0.0, noisy=0.0,
)  # fmt: skip


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., Job]:
    def make(recipe: Recipe = SMALL, output: str = "run", count: int = 12, **more: Any) -> Job:
        folder = tmp_path / f"pictures{count}"
        if not folder.exists():
            make_folders(folder, count)
        options = {"pack_side": 64, "held_out": 2, "validate_every": 4, "threads": 1}
        options |= {"precision": "f32"} | more
        folders = [(folder / "images", folder / "masks")]
        return Job(tmp_path / output, ROW, recipe, folders, **options)

    return make


def trained(job: Job, steps: int | None = None) -> Session:
    """A session that went on for `steps`, or to its end, and saved."""
    session = Session(job, lambda *_: None)
    first = session.trainer.step
    session.run(
        lambda *_: None, lambda: steps is not None and session.trainer.step - first >= steps
    )
    return session


def test_ten_pictures_are_learnt_by_heart(job_of: Callable[..., Job]) -> None:
    session = Session(job_of(OVERFIT, count=10, held_out=0), lambda *_: None)
    everything = np.arange(10)
    before = session.trainer.validate(session._pictures, everything, (64, 64))
    session.run(lambda *_: None, lambda: False)
    after = session.trainer.validate(session._pictures, everything, (64, 64))
    assert before > 0.2
    assert after < 0.02  # at 32x32, half of the mask's size: the edge alone makes .01
    assert np.mean(session.trainer.history.loss[-10:]) < 0.2 * session.trainer.history.loss[0]


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_an_interrupted_run_equals_one_that_was_not(
    precision: str, job_of: Callable[..., Job]
) -> None:
    whole = trained(job_of(output="whole", precision=precision))
    trained(job_of(output="parts", precision=precision), 3)
    parts = trained(job_of(output="parts", precision=precision))
    assert parts.trainer.step == whole.trainer.step == SMALL.steps
    assert parts.trainer.history == whole.trainer.history
    one, other = (load_checkpoint(s.job.output / "checkpoint.pt") for s in (whole, parts))
    for part in ("weights", "network"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
    assert torch.equal(
        one["optimizer"]["state"][0]["exp_avg_sq"], other["optimizer"]["state"][0]["exp_avg_sq"]
    )


def test_a_finished_run_is_not_trained_again(job_of: Callable[..., Job]) -> None:
    first = trained(job_of())
    again = trained(job_of())
    assert again.trainer.history == first.trainer.history


def test_a_checkpoint_of_another_run_is_refused(job_of: Callable[..., Job], tmp_path: Path) -> None:
    trained(job_of(), 1)
    other = WEIGHTS_FOLDER / "live.safetensors"
    for job in (job_of(replace(SMALL, seed=1)), job_of(start=other)):
        with pytest.raises(UsageError, match="of a run with other pictures or options"):
            Session(job, lambda *_: None)


def test_weights_of_another_network_are_no_start(job_of: Callable[..., Job]) -> None:
    job = replace(job_of(start=WEIGHTS_FOLDER / "live.safetensors"), row=models()["u2netp"])
    with pytest.raises(ModelError, match="holds no weights of the U²-Net family"):
        Session(job, lambda *_: None)


def test_held_out_pictures_are_never_trained_on() -> None:
    trains, held = split(100, 10)
    assert len(held) == 10
    assert not set(trains) & set(held)
    assert sorted([*trains, *held]) == list(range(100))
    assert np.diff(held).max() <= 12  # spread over all folders
    assert len(split(100, 0)[1]) == 0


def test_weights_are_averaged_along_the_way(job_of: Callable[..., Job]) -> None:
    session = trained(job_of(replace(SMALL, ema=0.5)))
    kept, last = session.trainer.weights().state_dict(), session.trainer.network.state_dict()
    assert not torch.equal(kept["outconv.weight"], last["outconv.weight"])
    plain = trained(job_of(replace(SMALL, ema=0.0), output="plain"))
    assert plain.trainer.weights() is plain.trainer.network


def test_training_starts_from_weights_that_are_not_folded(
    job_of: Callable[..., Job], tmp_path: Path
) -> None:
    first = trained(job_of())
    export_run(first.job.output)
    weights = first.job.output / "export" / "live.safetensors"
    session = Session(job_of(output="second", start=weights), lambda *_: None)
    stored = first.trainer.weights().state_dict()["stage1.rebnconvin.conv_s1.weight"]
    started = session.trainer.network.state_dict()["stage1.rebnconvin.conv_s1.weight"]
    torch.testing.assert_close(started, stored, atol=1e-3, rtol=1e-3)
    from safetensors.numpy import save_file

    folded = tmp_path / "folded.safetensors"
    save_file(dict(from_file(weights).load()), folded)
    with pytest.raises(ModelError, match="cannot be trained on"):
        Session(job_of(output="third", start=folded), lambda *_: None)


def test_exported_weights_answer_as_the_trained_network(job_of: Callable[..., Job]) -> None:
    session = trained(job_of())
    done = export_run(session.job.output)
    assert {path.name for path in done.files} == {
        "live.safetensors", "live.json", "live_int8.json", "MODEL_CARD.md",
    }  # fmt: skip
    assert done.stored_drift < 1e-3
    model = from_file(done.files[0])
    backend = open_backend(model, size=(64, 64), precision="f32")
    image = session._pictures.images[:1].permute(0, 2, 3, 1).contiguous()
    mean, std = torch.tensor(ROW.mean), torch.tensor(ROW.std)
    with torch.inference_mode():
        x = ((image / 255 - mean) / std).permute(0, 3, 1, 2).float()
        wanted = session.trainer.weights().eval()(x)[0].sigmoid()[:, 0]
    got = backend.infer(image.numpy().copy())
    assert np.abs(got - wanted.numpy()).max() < 0.01
    backend.close()


def test_the_card_tells_what_was_done(job_of: Callable[..., Job]) -> None:
    session = trained(job_of())
    card = export_run(session.job.output).files[-1].read_text("utf-8")
    assert "`images`: 12 pictures" in card
    assert "8 steps" in card
    assert str(round(session.trainer.history.mae[-1], 4)) in card
    assert str(session.job.output.parent) not in card


def test_exported_ranges_hold_for_the_exported_weights(job_of: Callable[..., Job]) -> None:
    session = trained(job_of())
    model = from_file(export_run(session.job.output).files[0])
    assert model.int8_ranges(model.load())
    image = np.zeros((64, 64, 3), np.uint8)
    assert int8_facts(model, [image])["weights_sha256"] == model.sha256


def test_exported_weights_keep_a_share_of_the_start(
    job_of: Callable[..., Job], tmp_path: Path
) -> None:
    first = trained(job_of())
    start = export_run(first.job.output).files[0].rename(tmp_path / "start.safetensors")
    second = trained(job_of(replace(SMALL, seed=3), output="second", start=start))
    kept = load_start(export_run(second.job.output, start, 0.25).files[0], ROW)
    began, ended = load_start(start, ROW), second.trainer.weights().state_dict()
    name = "stage1.rebnconvin.conv_s1.weight"
    wanted = 0.25 * began[name] + 0.75 * ended[name]
    torch.testing.assert_close(kept[name], wanted, atol=1e-3, rtol=1e-3)
    assert "of which 25% are kept" in (second.job.output / "export" / "MODEL_CARD.md").read_text()
    with pytest.raises(UsageError, match="did not begin with these weights"):
        export_run(first.job.output, start, 0.25)


def test_nothing_to_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such checkpoint"):
        export_run(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no checkpoint"])
def test_a_damaged_checkpoint_is_told(
    content: bytes, job_of: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        Session(job_of(), lambda *_: None)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_no_number_ends_the_run(job_of: Callable[..., Job]) -> None:
    job = job_of(replace(SMALL, learning_rate=1e30, warmup=0))
    with pytest.raises(BackendError, match="the loss is"):
        trained(job)


def test_half_precision_needs_cuda(job_of: Callable[..., Job]) -> None:
    with pytest.raises(UsageError, match="f16 trains on cuda alone"):
        Session(job_of(precision="f16"), lambda *_: None)


def test_curves_are_written_as_picture_and_numbers(job_of: Callable[..., Job]) -> None:
    session = trained(job_of())
    assert (session.job.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = (session.job.output / "curves.csv").read_text().splitlines()
    assert lines[0] == "step,loss,entropy,mae"
    assert len(lines) == 1 + SMALL.steps
    assert [bool(line.split(",")[3]) for line in lines[1:]] == [False, False, False, True] * 2


def test_it_is_saved_now_and_then(
    job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SAVE_EVERY_S", 0.0)
    session = Session(job_of(), lambda *_: None)
    saved: list[int] = []
    monkeypatch.setattr(session, "save", lambda: saved.append(session.trainer.step))
    session.run(lambda *_: None, lambda: False)
    assert saved == [*range(1, SMALL.steps + 1), SMALL.steps]


def test_the_steps_are_shared_among_the_sizes() -> None:
    recipe = replace(LIVE, steps=9)
    assert [recipe.sizes_at(s)[0] for s in range(9)] == [128] * 3 + [192] * 3 + [256] * 3
    turns = replace(LIVE, steps=4, sizes=(((256, 256), (320, 192)),))
    assert [turns.sizes_at(s) for s in range(4)] == [(256, 256), (320, 192)] * 2


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = replace(LIVE, steps=1000, warmup=100)
    peak = recipe.learning_rate
    assert recipe.learning_rate_at(0) == pytest.approx(peak / 100)
    assert recipe.learning_rate_at(100) == pytest.approx(peak)
    assert recipe.learning_rate_at(550) == pytest.approx(peak * (0.01 + 0.99 / 2), rel=1e-3)
    assert recipe.learning_rate_at(1000) == pytest.approx(peak * 0.01)
    assert PAPER.learning_rate_at(500_000) == 1e-3


def test_the_loss_sums_all_outputs() -> None:
    """Hand-computed: logit 0 costs ln 2 for either target; IoU of 1/2 everywhere is 1/3 or 1/2."""
    logits = [torch.zeros(1, 1, 2, 2)] * 7
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    loss, entropy = deep_supervision(logits, target, iou_weight=0.0)
    assert float(loss) == pytest.approx(7 * math.log(2))
    assert float(entropy) == pytest.approx(math.log(2))
    loss, _ = deep_supervision(logits, target, iou_weight=2.0)
    # intersection 2 · ½, union 4 · ½ + 2 − 1
    assert float(loss) == pytest.approx(7 * math.log(2) + 2 * (1 - 1 / 3))


def test_the_target_is_averaged_down_to_the_outputs() -> None:
    logits = [torch.zeros(1, 1, 1, 1)] * 7
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    sure = [torch.full((1, 1, 1, 1), math.log(1 / 3))] * 7  # sigmoid gives 1/4, the target's mean
    at_mean, _ = deep_supervision(sure, target, iou_weight=0.0)
    off, _ = deep_supervision(logits, target, iou_weight=0.0)
    assert float(at_mean) < float(off)
    assert float(off) == pytest.approx(7 * math.log(2))


def test_iou_of_an_empty_picture_is_what_is_lit() -> None:
    alpha = torch.full((1, 1, 4, 4), 0.25)
    assert float(iou_loss(alpha, torch.zeros(1, 1, 4, 4))) == pytest.approx(0.25)
    assert float(iou_loss(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))) == pytest.approx(0)


def test_any_network_of_the_table_trains(tmp_path: Path, job_of: Callable[..., Job]) -> None:
    job = replace(job_of(replace(SMALL, steps=1)), row=models()["u2netp"], output=tmp_path / "p")
    session = trained(job)
    assert isinstance(session.trainer.weights(), U2Net)
    assert export_run(tmp_path / "p").files[0].name == "u2netp.safetensors"
