"""Measure the ranges of a model's maps on photographs, for 8-bit inference.

python benchmarks/calibrate_int8.py live --output vidmatte/weights/live_int8.json
python benchmarks/calibrate_int8.py u2netp.pth --output vidmatte/weights/u2netp_int8.json

Pictures: scikit-image's photographs and those of --pictures FOLDER. Prints mean |Δα| of int8
against f32 on the same pictures, last line JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vidmatte.backends import open_backend
from vidmatte.models.network import ConvBnRelu, ResidualUBlock, folded_network
from vidmatte.models.registry import Model, from_file, resolve_model
from vidmatte.models.table import network_size
from vidmatte.models.weights import mean_magnitude

Images = NDArray[np.uint8]


def photographs(folder: Path | None) -> list[Images]:
    from skimage import data

    found = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for path in sorted(folder.iterdir()) if folder else []:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is not None:
            found.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return [np.asarray(picture, np.uint8) for picture in found]


def prepared(model: Model, picture: Images) -> Images:
    """(1, H, W, 3) at the network's size for the picture's own aspect."""
    height, width = picture.shape[:2]
    size = network_size(width, height, model.row)
    return np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[None])


def measure(model: Model, pictures: list[Images], quantile: float) -> dict[str, float]:
    """Return per block and stage the largest `quantile` of its output over the pictures."""
    module = folded_network(model.row.network, model.load())
    ranges: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
            values = output.flatten()
            rank = max(1, round(quantile * values.numel()))
            ranges[name] = max(ranges.get(name, 0.0), float(values.kthvalue(rank).values))

        return hook

    for name, block in module.named_modules():
        if isinstance(block, (ConvBnRelu, ResidualUBlock)):
            block.register_forward_hook(watch(name))
    mean, std = np.array(model.row.mean), np.array(model.row.std)
    with torch.inference_mode():
        for picture in pictures:
            x_NHW3 = (prepared(model, picture) / 255 - mean) / std
            module(torch.from_numpy(x_NHW3).float().permute(0, 3, 1, 2))
    return {name: round(value, 4) for name, value in ranges.items()}


def difference(model: Model, pictures: list[Images]) -> list[float]:
    """Mean |Δα| of int8 against f32, per picture."""
    result = []
    for picture in pictures:
        image = prepared(model, picture)
        size = (image.shape[1], image.shape[2])
        got = [
            open_backend(model, size=size, backend="openvino", precision=p).infer(image).copy()
            for p in ("f32", "int8")
        ]
        result.append(float(np.abs(got[0] - got[1]).mean()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of an installed model, or a weights file")
    parser.add_argument("--pictures", type=Path, help="folder with more photographs")
    parser.add_argument("--quantile", type=float, default=0.9999)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    path = Path(options.model)
    model = from_file(path) if path.is_file() else resolve_model(options.model)
    pictures = photographs(options.pictures)
    facts = {
        "model": model.name,
        "weights_sha256": model.sha256,
        "mean_magnitude": mean_magnitude(model.load()),
        "pictures": len(pictures),
        "quantile": options.quantile,
        "ranges": measure(model, pictures, options.quantile),
    }
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    errors = difference(model, pictures)
    print(json.dumps({"model": model.name, "mean": float(np.mean(errors)), "each": errors}))


if __name__ == "__main__":
    main()
