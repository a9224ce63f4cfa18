"""The training loop: one optimiser, an average of the weights, checkpoints that go on exactly.

Every step follows from the recipe and the step's number, and a checkpoint holds everything else,
so a run that was interrupted and resumed equals one that was not. Under `torchrun` every process
trains on its own pictures of the step, gradients are averaged, and the first process writes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vidmatte.errors import BackendError, ModelError
from vidmatte.models.network import U2Net
from vidmatte.training.augment import Augmenter, Pictures, whole
from vidmatte.training.loss import deep_supervision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.table import ModelRow
    from vidmatte.training.recipe import Recipe, Size

Precision = Literal["f32", "bf16", "f16"]
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FORMAT = 1  # of checkpoints


class Place(NamedTuple):
    """Where a process trains, and which of how many it is."""

    device: torch.device
    precision: Precision
    rank: int = 0
    world: int = 1


@dataclass(slots=True)
class History:
    """Per `step` the loss and d0's cross entropy; per `validated` step the MAE."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    mae: list[float] = field(default_factory=list)


class Trainer:
    """Trains one network of the table on packed pictures; used by one thread."""

    def __init__(
        self,
        row: ModelRow,
        recipe: Recipe,
        pictures: Pictures,
        indices: NDArray[np.intp],
        place: Place,
    ) -> None:
        torch.manual_seed(recipe.seed)  # of the weights at the start
        self.row, self.recipe, self.place = row, recipe, place
        self.step = 0
        self.history = History()
        device = place.device
        self.network = U2Net(row.network).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        averaging = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.network, multi_avg_fn=averaging, use_buffers=True)
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=place.precision == "f16")
        self._augmenter = Augmenter(pictures, indices, recipe, rank=place.rank, world=place.world)
        self._mean = torch.tensor(row.mean, device=device)[:, None, None]
        self._std = torch.tensor(row.std, device=device)[:, None, None]
        self._model: nn.Module = self.network

    def start_from(self, state: dict[str, Tensor], source: Path) -> None:
        """Begin with the weights of a file, BN unfolded. Raises ModelError if they do not fit."""
        missing, strange = self.network.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or strange:
            raise ModelError(
                f"{source}: cannot be trained on: {(missing or strange)[0]} "
                f"{'is missing' if missing else 'is unknown'}",
                hint="start from weights whose batch normalisation is not folded",
            )
        self.average.module.load_state_dict(self.network.state_dict())

    def spread(self) -> None:
        """Join the other processes; `torch.distributed` has been initialised."""
        devices = [self.place.device] if self.place.device.type == "cuda" else None
        self._model = nn.parallel.DistributedDataParallel(self.network, device_ids=devices)

    def train_step(self) -> float:
        """Do the next step; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        self._model.train()
        batch = self._augmenter.batch(self.step)
        with self._autocast():
            logits = self._model(self._normalised(batch.image))
        loss, entropy = deep_supervision(logits, batch.target, iou_weight=self.recipe.iou_weight)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.network)
        self.step += 1
        value = loss.item()
        if not np.isfinite(value):
            raise BackendError(
                f"step {self.step}: the loss is {value}",
                hint="lower --learning-rate, or train with --precision f32",
            )
        self.history.step.append(self.step)
        self.history.loss.append(value)
        self.history.entropy.append(entropy.item())
        return value

    def validate(self, pictures: Pictures, indices: NDArray[np.intp], size: Size) -> float:
        """Return the MAE of `weights` on whole pictures that are not trained on, and note it."""
        network = self.weights().eval()
        errors = []
        with torch.inference_mode(), self._autocast():
            for index in indices:
                image, target = whole(pictures, int(index), size)
                logits = network(self._normalised(image))[0].float()
                alpha = F.interpolate(logits.sigmoid(), target.shape[2:], mode="bilinear")
                errors.append((alpha - target).abs().mean())
        mae = float(torch.stack(errors).mean())
        self.history.validated.append(self.step)
        self.history.mae.append(mae)
        return mae

    def weights(self) -> U2Net:
        """Return the network to keep: the average where there is one."""
        network = self.average.module if self.recipe.ema else self.network
        assert isinstance(network, U2Net)
        return network

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "format": FORMAT,
            "model": self.row.name,
            "step": self.step,
            "weights": self.weights().state_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": {name: getattr(self.history, name) for name in History.__slots__},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from the state of an earlier trainer of the same row and recipe."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.history = History(**state["history"])

    def _normalised(self, image_N3HW: Tensor) -> Tensor:
        return ((image_N3HW - self._mean) / self._std).to(memory_format=torch.channels_last)

    def _autocast(self) -> Any:
        if self.place.precision == "f32":
            return nullcontext()
        return torch.autocast(self.place.device.type, _DTYPES[self.place.precision])
