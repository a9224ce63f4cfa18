"""Pictures with masks that a small network can learn: bright ellipses over dark noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def pictured(seed: int, side: int = 96) -> tuple[Picture, Picture]:
    """One picture (side, side, 3) RGB and its mask (side, side)."""
    random = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    centre = tuple(int(v) for v in random.integers(side // 3, 2 * side // 3, 2))
    axes = tuple(int(v) for v in random.integers(side // 8, side // 4, 2))
    cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 255, -1)
    image = random.integers(0, 90, (side, side, 3)).astype(np.uint8)
    image[mask > 0] = random.integers(150, 256, 3)
    return image, mask


def make_folders(folder: Path, count: int, side: int = 96) -> tuple[Path, Path]:
    """Write `count` pictures and masks; return their folders."""
    images, masks = folder / "images", folder / "masks"
    for path in (images, masks):
        path.mkdir(parents=True)
    for index in range(count):
        image, mask = pictured(index, side)
        cv2.imwrite(str(images / f"p{index:02d}.png"), image[..., ::-1])
        cv2.imwrite(str(masks / f"p{index:02d}.png"), mask)
    return images, masks
