"""Turn a trained network into files that people run: weights, their facts, 8-bit ranges, a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from vidmatte.backends import open_backend
from vidmatte.errors import ModelError
from vidmatte.models.network import U2Net
from vidmatte.models.registry import from_file
from vidmatte.models.table import ModelRow, multiply_adds, parameter_count
from vidmatte.models.weights import sha256_of
from vidmatte.results import write_result
from vidmatte.training.calibrate import int8_facts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidmatte.models.registry import Model

MAX_DRIFT = 0.01
"""Mean |Δα| that storing as fp16, or running in 8 bits, may cost."""


class Exported(NamedTuple):
    """The files, and mean |Δα| of the stored weights and of 8 bits against the trained network."""

    files: list[Path]
    stored_drift: float
    int8_drift: float


def export(
    network: U2Net,
    row: ModelRow,
    folder: Path,
    images: Sequence[NDArray[np.uint8]],
    training: dict[str, Any],
) -> Exported:
    """Write `NAME.safetensors` (fp16, BN unfolded), `NAME.json`, `NAME_int8.json`, `MODEL_CARD.md`.

    `images` (H, W, 3) uint8 RGB, of one size that the network takes, are for the ranges and for
    comparing what was written with `network`. `training` is told in the facts and the card.
    Raises ModelError if the disk refuses or what was written answers otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{row.name}.safetensors"
    data = save({name: _half(value) for name, value in _state(network).items()}, {"format": "pt"})
    write_result(weights, data, overwrite=True)
    model = from_file(weights, row.name)
    write_result(folder / f"{row.name}_int8.json", _json(int8_facts(model, images)), overwrite=True)
    answers = _answers(network, row, images)
    stored, int8 = (_drift(model, images, answers, p) for p in ("f32", "int8"))
    if not stored <= MAX_DRIFT:
        raise ModelError(
            f"{weights}: answers differ from the trained network's by {stored:.4f}",
            hint="train longer, or with a lower --learning-rate: its values do not fit fp16",
        )
    facts = describe(row, sha256_of(data), training)
    write_result(folder / f"{row.name}.json", _json(facts), overwrite=True)
    write_result(folder / "MODEL_CARD.md", card(row, facts, stored, int8).encode(), overwrite=True)
    names = (weights.name, f"{row.name}.json", f"{row.name}_int8.json", "MODEL_CARD.md")
    return Exported([folder / name for name in names], stored, int8)


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _state(network: U2Net) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = network.state_dict()
    return {k: v.detach().cpu() for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _half(value: torch.Tensor) -> torch.Tensor:
    half = value.half().contiguous()
    return half if half.isfinite().all() else value.contiguous()


def _answers(
    network: U2Net, row: ModelRow, images: Sequence[NDArray[np.uint8]]
) -> list[NDArray[np.float32]]:
    device = next(network.parameters()).device
    mean, std = np.array(row.mean), np.array(row.std)
    found = []
    with torch.inference_mode():
        for image in images:
            x_HW3 = torch.from_numpy((image / 255 - mean) / std).float().to(device)
            logits = network.eval()(x_HW3.permute(2, 0, 1)[None])[0]
            found.append(np.asarray(logits.sigmoid()[0, 0].cpu().numpy(), np.float32))
    return found


def _drift(
    model: Model,
    images: Sequence[NDArray[np.uint8]],
    answers: Sequence[NDArray[np.float32]],
    precision: Any,
) -> float:
    height, width = images[0].shape[:2]
    backend = open_backend(
        model, size=(height, width), backend="openvino", device="cpu", precision=precision
    )
    try:
        pairs = zip(images, answers, strict=True)
        drifts = [np.abs(backend.infer(image[None])[0] - answer).mean() for image, answer in pairs]
    finally:
        backend.close()
    return float(np.mean(drifts))


def describe(row: ModelRow, sha256: str, training: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a network and its weights; those of `live` are read at run time."""
    network = row.network
    return {
        "arch": f"u2net-{row.name}" if network.stem else row.name,
        "table": {
            "in_ch": network.in_channels,
            "stem": [list(stem) for stem in network.stem],
            "stages": {name: list(stage) for name, stage in network.stages.items()},
        },
        "stage_row": "[height, in, mid, out, dilated]",
        "stem_row": "[out, stride]",
        "params": parameter_count(network),
        "gmacs_320x320": round(multiply_adds(network, 320, 320) / 1e9, 3),
        "gmacs_192x320": round(multiply_adds(network, 320, 192) / 1e9, 3),
        "input": {
            "order": "RGB",
            "scale": "x/255",
            "mean": list(row.mean),
            "std": list(row.std),
            "multiple_of": row.multiple_of,
        },
        "output": f"logits [d0,d1..d6] at 1/{network.output_stride} of the input's size; "
        "alpha=sigmoid(d0), upsample bilinear, no min-max",
        "bn": "unfolded, eps 1e-5",
        "dtype": "float16",
        "training": training,
        "sha256": sha256,
        "curve": {"lo": row.curve.lo, "hi": row.curve.hi},
    }


def card(row: ModelRow, facts: dict[str, Any], stored: float, int8: float) -> str:
    """Return the model card: what the weights are, what made them, how well they do."""
    training = facts["training"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in training["recipe"].items())
    pictures = "\n".join(
        f"- `{part['images']}`: {part['pairs']} pictures" for part in training["pictures"]
    )
    return f"""# {row.name}

`{row.name}.safetensors` (SHA-256 `{facts["sha256"]}`):
{facts["params"]:,} parameters, {facts["gmacs_320x320"]} G multiply-adds for 320x320 pixels; fp16,
BN unfolded, official names. Input: RGB/255 less {row.mean}, over {row.std}; sides in multiples of
{row.multiple_of}. Output: {facts["output"]}.
Run it with `vidmatte run INPUT OUTPUT --weights {row.name}.safetensors`.

## Training
{pictures}

Started from {training["start"]}, of which {training.get("kept_of_start", 0):.0%} are kept;
teacher: {training["teacher"]}. {training["steps"]} steps,
{training["pictures_seen"]:,} pictures seen, on {training["device"]} in {training["precision"]}.

| | |
|---|---|
{rows}

## Numbers
MAE on {training["held_out"]} held-out pictures of the same folders: {training["mae"]}. Storing as
fp16 changes a matte by {stored:.5f} on average, 8 bits by {int8:.5f}. Pictures and masks keep their
own licences; whether the weights may be used where theirs forbid it is for you to judge.
"""
