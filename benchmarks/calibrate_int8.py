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

import cv2
import numpy as np
from numpy.typing import NDArray

from vidmatte.backends import open_backend
from vidmatte.models.registry import Model, from_file, resolve_model
from vidmatte.models.table import network_size
from vidmatte.training.calibrate import QUANTILE, int8_facts

Image = NDArray[np.uint8]


def photographs(folder: Path | None) -> list[Image]:
    from skimage import data

    found = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for path in sorted(folder.iterdir()) if folder else []:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is not None:
            found.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return [np.asarray(picture, np.uint8) for picture in found]


def prepared(model: Model, picture: Image) -> Image:
    """(H, W, 3) at the network's size for the picture's own aspect."""
    height, width = picture.shape[:2]
    size = network_size(width, height, model.row)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def difference(model: Model, images: list[Image]) -> list[float]:
    """Mean |Δα| of int8 against f32, per picture."""
    result = []
    for image in images:
        size = (image.shape[0], image.shape[1])
        got = [
            open_backend(model, size=size, backend="openvino", precision=p)
            .infer(image[None])
            .copy()
            for p in ("f32", "int8")
        ]
        result.append(float(np.abs(got[0] - got[1]).mean()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of an installed model, or a weights file")
    parser.add_argument("--pictures", type=Path, help="folder with more photographs")
    parser.add_argument("--quantile", type=float, default=QUANTILE)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    path = Path(options.model)
    model = from_file(path) if path.is_file() else resolve_model(options.model)
    pictures = photographs(options.pictures)
    images = [prepared(model, picture) for picture in pictures]
    facts = int8_facts(model, images, options.quantile)
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    errors = difference(model, images)
    print(json.dumps({"model": model.name, "mean": float(np.mean(errors)), "each": errors}))


if __name__ == "__main__":
    main()
