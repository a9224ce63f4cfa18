"""Ways to make `vidmatte train` say something."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from message_tools import Patch, Prepare, Scenario, both, failing, without, write
from training_pictures import make_folders

TRAIN = (
    "train -q --images d/images --masks d/masks -o t --steps 1 --batch 2 --size 64 --pack-side 64 "
    "--precision f32 --threads 1"
)


def pictures(count: int = 3) -> Prepare:
    return lambda folder, patch: make_folders(folder / "d", count, side=64) and None


def text_pictures(*numbers: int) -> Prepare:
    """Overwrite pictures by what is none."""

    def prepare(folder: Path, patch: Patch) -> None:
        for number in numbers:
            (folder / "d" / "images" / f"p{number:02d}.png").write_text("not a picture\n")

    return prepare


def folder_as_picture(folder: Path, patch: Patch) -> None:
    for path in (folder / "d" / "images").iterdir():
        path.unlink()
        path.mkdir()


def no_masks(folder: Path, patch: Patch) -> None:
    (folder / "d" / "masks" / "p00.png").rename(folder / "d" / "masks" / "other.png")


def twins(folder: Path, patch: Patch) -> None:
    shutil.copy(folder / "d" / "images" / "p00.png", folder / "d" / "images" / "p00.bmp")


def checkpoint(**state: object) -> Prepare:
    def prepare(folder: Path, patch: Patch) -> None:
        (folder / "t").mkdir()
        torch.save({"format": 1, **state}, folder / "t" / "checkpoint.pt")

    return prepare


def unpacked(folder: Path, patch: Patch) -> None:
    from vidmatte.models.network import U2Net
    from vidmatte.models.table import models

    weights = U2Net(models()["live"].network).state_dict()
    training = {"start": "nothing"}
    checkpoint(model="live", weights=weights, training=training)(folder, patch)


def folded(folder: Path, patch: Patch) -> None:
    from safetensors.numpy import save_file

    from vidmatte.models.registry import resolve_model

    save_file(resolve_model("live").load(), folder / "folded.safetensors")


def small_disk(folder: Path, patch: Patch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    patch.setattr("vidmatte.training.pack.shutil.disk_usage", lambda _: usage)


TRAINING: dict[str, Scenario] = {
    "train on nothing": Scenario("train"),
    "train without masks": Scenario("train --images d/images", pictures()),
    "train on no folder": Scenario(TRAIN),
    "train on an address": Scenario("train --images https://example.org/a --masks d"),
    "train on pictures without masks": Scenario(TRAIN, both(pictures(1), no_masks)),
    "train on two of one name": Scenario(TRAIN, both(pictures(), twins)),
    "train on no pictures": Scenario(TRAIN, both(pictures(1), text_pictures(0))),
    "train on folders": Scenario(TRAIN, both(pictures(1), folder_as_picture)),
    "train leaving some out": Scenario(TRAIN, both(pictures(4), text_pictures(1))),
    "train at a size that does not fit": Scenario(f"{TRAIN} --size 100x64", pictures()),
    "train at no size": Scenario(f"{TRAIN} --size large", pictures()),
    "train in f16 on a CPU": Scenario(f"{TRAIN} --device cpu --precision f16", pictures()),
    "train on no GPU": Scenario(f"{TRAIN} --device cuda", pictures()),
    "train an unknown network": Scenario(f"{TRAIN} --model nosuch", pictures()),
    "train from folded weights": Scenario(
        f"{TRAIN} --start folded.safetensors", both(pictures(), folded)
    ),
    "train with no such teacher": Scenario(f"{TRAIN} --teacher nosuch.pth", pictures()),
    "train into a file": Scenario(f"{TRAIN} -o s.mp4", pictures()),
    "train on a small disk": Scenario(TRAIN, both(pictures(), small_disk)),
    "train on a full disk": Scenario(TRAIN, both(pictures(), failing(
        "vidmatte.training.pack.np", "save", OSError(28, "No space left on device")))),
    "train on with another run": Scenario(TRAIN, both(pictures(), checkpoint(identity="x"))),
    "train on with a damaged checkpoint": Scenario(TRAIN, both(
        pictures(), checkpoint(), write("t/checkpoint.pt", "no checkpoint"))),
    "train without matplotlib": Scenario(TRAIN, both(pictures(), without("matplotlib.figure"))),
    "export of nothing": Scenario("train --export -o t"),
    "export with another start": Scenario(
        "train --export -o t --start s.mp4 --keep-start 0.5", unpacked
    ),
    "export without pictures": Scenario("train --export -o t", unpacked),
}  # fmt: skip
