"""A training run in a folder: pack the pictures, train, keep checkpoints, go on later."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vidmatte.backends import usable_cores
from vidmatte.errors import BackendError, ModelError, UsageError, printable
from vidmatte.models.network import U2Net
from vidmatte.models.registry import Model, row_named
from vidmatte.models.weights import parse_tensors, read_bytes, recognise, sha256_of
from vidmatte.pairs import find_pairs
from vidmatte.results import load_figure, write_result
from vidmatte.training.augment import Pictures
from vidmatte.training.curves import save_curves
from vidmatte.training.export import Exported, export
from vidmatte.training.pack import make_pack, open_pack, stretched
from vidmatte.training.trainer import FORMAT, Place, Precision, Trainer

if TYPE_CHECKING:
    from vidmatte.models.table import ModelRow
    from vidmatte.training.pack import Told
    from vidmatte.training.recipe import Recipe

T = TypeVar("T")

CHECKPOINT = "checkpoint.pt"
EXPORT = "export"
SAVE_EVERY_S = 120.0
_CALIBRATED_ON = 12  # pictures
_ANOTHER_FOLDER = "name another folder with --output, or the options of that run"


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, on what, where. `folders` are pairs of (pictures, masks).

    `device` is "auto", "cpu" or "cuda"; `threads` of the CPU are all cores where None.
    """

    output: Path
    row: ModelRow
    recipe: Recipe
    folders: Sequence[tuple[Path, Path]]
    start: Path | None = None
    teacher: Model | None = None
    pack_side: int = 320
    held_out: int = 300
    validate_every: int = 500
    device: str = "auto"
    precision: Precision = "bf16"
    threads: int | None = None


class Session:
    """One process of a training run.

    Making it packs the pictures (`told` is called as in `make_pack`) and goes on from the
    folder's checkpoint, if there is one. Raises VidmatteError subclasses.
    """

    def __init__(self, job: Job, told: Told) -> None:
        load_figure()
        torch.set_num_threads(job.threads or usable_cores())
        self.job = job
        self.place = join(job.device, job.precision)
        found = [find_pairs(images, masks) for images, masks in job.folders]
        pairs = [pair for part in found for pair in part.found]
        self.alone = [path for part in found for path in part.alone]
        self._counts = [len(part.found) for part in found]
        pack = in_turn(
            self.place,
            lambda: make_pack(
                job.output / "pack", pairs, side=job.pack_side, teacher=job.teacher, told=told
            ),
        )
        self.unreadable: list[str] = pack.facts["unreadable"]
        self._pictures = Pictures.load(pack, self.place.device)
        trained, self._held = split(len(pack), min(job.held_out, len(pack) // 10))
        self.count = len(trained)
        self.trainer = Trainer(job.row, job.recipe, self._pictures, trained, self.place)
        self._start = "nothing"
        if job.start is not None:
            self._start = f"weights {sha256_of(read_bytes(job.start))}"
        run = job.recipe, job.row.name, self._start, self.place.world
        self._identity = f"{pack.facts['identity']} {run!r}"
        self._begin()
        if self.place.world > 1:
            self.trainer.spread()

    def _begin(self) -> None:
        path = self.job.output / CHECKPOINT
        if path.exists():
            state = load_checkpoint(path)
            if state["identity"] != self._identity:
                raise UsageError(
                    f"{path}: is of a run with other pictures or options", hint=_ANOTHER_FOLDER
                )
            self.trainer.resume(state)
        elif self.job.start is not None:
            weights = load_start(self.job.start, self.job.row)
            self.trainer.start_from(weights, self.job.start)

    def run(self, shown: Callable[[float, float | None], None], stop: Callable[[], bool]) -> bool:
        """Train to the last step; return whether it was reached before `stop()` was true.

        `shown` gets the step's loss and the last MAE, None before it is known. Saved every two
        minutes and at the end, whichever it is.
        """
        trainer, steps = self.trainer, self.job.recipe.steps
        saved = time.monotonic()
        while trainer.step < steps and not self._agreed(stop()):
            loss = trainer.train_step()
            if trainer.step % self.job.validate_every == 0 or trainer.step == steps:
                self._validate()
            shown(loss, trainer.history.mae[-1] if trainer.history.mae else None)
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()
        if self.place.world > 1:
            torch.distributed.destroy_process_group()
        return trainer.step == steps

    def _agreed(self, stop: bool) -> bool:
        """Whether any process wants to stop: one that went on would wait for the others."""
        if self.place.world == 1:
            return stop
        wish = torch.tensor(float(stop), device=self.place.device)
        torch.distributed.all_reduce(wish)
        return bool(wish.item())

    def _validate(self) -> None:
        if self.place.rank == 0 and len(self._held):
            size = self.job.recipe.sizes[-1][0]
            self.trainer.validate(self._pictures, self._held, size)

    def _facts(self) -> dict[str, Any]:
        """What the card of the weights tells."""
        job, trainer = self.job, self.trainer
        mae = trainer.history.mae[-1] if trainer.history.mae else None
        return {
            "steps": trainer.step,
            "pictures_seen": trainer.step * job.recipe.batch * self.place.world,
            "pictures": [
                {"images": printable(images.name), "pairs": count}
                for (images, _), count in zip(job.folders, self._counts, strict=True)
            ],
            "held_out": len(self._held),
            "mae": None if mae is None else round(mae, 4),
            "start": self._start,
            "teacher": "none"
            if job.teacher is None
            else f"{job.teacher.name} {job.teacher.sha256}",
            "device": self.place.device.type,
            "precision": self.place.precision,
            "recipe": job.recipe.document(),
        }

    def save(self) -> None:
        """Write checkpoint and curves, each whole or not at all. Raises OutputError."""
        if self.place.rank != 0:
            return
        state = self.trainer.state() | {"identity": self._identity, "training": self._facts()}
        data = io.BytesIO()
        torch.save(state, data)
        write_result(self.job.output / CHECKPOINT, data.getvalue(), overwrite=True)
        title = f"{self.job.row.name}: {self.trainer.step} of {self.job.recipe.steps} steps"
        save_curves(self.trainer.history, self.job.output, title)


def export_run(output: Path, start: Path | None = None, keep_start: float = 0.0) -> Exported:
    """Export what the checkpoint in `output` holds into its folder `export`.

    `keep_start` is the share of the weights in `start`, which the run began with, that is mixed
    in: it keeps more of what they were good at (Wortsman et al. 2022, "Robust fine-tuning of
    zero-shot models", equation 1). Raises ModelError, and UsageError for another start.
    """
    state = load_checkpoint(output / CHECKPOINT)
    row, training = row_named(state["model"]), state["training"]
    network = U2Net(row.network)
    network.load_state_dict(state["weights"])
    if start is not None and keep_start:
        if sha256_of(read_bytes(start)) not in training["start"]:
            raise UsageError(
                f"{start}: the run did not begin with these weights", hint="name the same --start"
            )
        network.load_state_dict(mixed(network, load_start(start, row), keep_start))
        training = training | {"kept_of_start": keep_start}
    try:
        pack = open_pack(output / "pack")
    except (OSError, ValueError, LookupError) as exc:
        raise ModelError(
            f"{output}: the packed pictures are gone, which 8 bits are measured on",
            hint="run the training command again, it packs them",
        ) from exc
    chosen = np.linspace(0, len(pack) - 1, min(_CALIBRATED_ON, len(pack))).astype(np.intp)
    side = max(row.multiple_of, pack.images.shape[1] // row.multiple_of * row.multiple_of)
    images = [stretched(pack.images[index], side) for index in chosen]
    return export(network, row, output / EXPORT, images, training)


def mixed(network: U2Net, start: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return the network's state with `share` of `start` in every weight and statistic."""
    trained: dict[str, torch.Tensor] = network.state_dict()
    return {
        name: torch.lerp(value, start[name], share) if name in start else value
        for name, value in trained.items()
    }


def split(count: int, held_out: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the indices to train on and those held out, spread evenly over `count`."""
    held = np.unique(np.linspace(0, count - 1, held_out).round().astype(np.intp))
    return np.setdiff1d(np.arange(count), held), held


def load_start(path: Path, row: ModelRow) -> dict[str, torch.Tensor]:
    """Read weights of `row`'s network as float32 tensors by official name. Raises ModelError."""
    tensors = parse_tensors(read_bytes(path), path)
    recognise(tensors, [row.network], path)
    return {name: torch.from_numpy(np.array(value)).float() for name, value in tensors.items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted. Raises ModelError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}")
    except FileNotFoundError as exc:
        raise ModelError(
            f"{path}: there is no such checkpoint", hint="train first, or name its --output"
        ) from exc
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError,
            pickle.UnpicklingError) as exc:  # fmt: skip
        raise ModelError(
            f"{path}: cannot be read as a checkpoint", hint="remove it to train from the start"
        ) from exc
    return dict(state)


def join(device: str, precision: Precision) -> Place:
    """Return this process's place, among the others if it was started by torchrun."""
    rank, world = (int(os.environ.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise BackendError(
                "--device cuda is not usable: torch sees no NVIDIA GPU", hint="use --device cpu"
            )
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        torch.cuda.set_device(device)
    if precision == "f16" and not device.startswith("cuda"):
        raise UsageError("--precision f16 trains on cuda alone", hint="use --precision bf16 or f32")
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Place(torch.device(device), precision, rank, world)


def in_turn(place: Place, work: Callable[[], T]) -> T:
    """Let the first process do what all need, then the others find it done."""
    if place.world == 1:
        return work()
    if place.rank != 0:
        torch.distributed.barrier()
        return work()
    result = work()
    torch.distributed.barrier()
    return result
