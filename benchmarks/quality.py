"""Measure mattes against generated clips whose true alpha is known.

    python benchmarks/quality.py                  # the embedded weights
    python benchmarks/quality.py --weights FILE   # one's own or official ones

Compares per-frame bilinear mattes, the same smoothed by an average over time (EMA), ours, and ours
with parts switched off, all with the model's own curve. The last line is one JSON document.

Errors, on alpha 0..1, in the scales of Robust Video Matting (Lin et al. 2021, section 4.1):
MAD and MSE times 1e3; gradient error as Rhemann et al. 2009 ("A Perceptually Motivated Online
Benchmark for Image Matting", section 3; Gaussian derivative of sigma 1.4), divided by 1e3; dtSSD as
Erofeev et al. 2015 ("Perceptually Motivated Benchmark for Video Matting", eq. 2), per frame,
times 1e2.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vidmatte.backends import Backend, open_backend
from vidmatte.compute.cpu.refine import refine, upsample
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.frames import MATRIX_BT709, RANGE_LIMITED, plane_views
from vidmatte.matting import LOOKAHEAD
from vidmatte.models.registry import Model, resolve_model
from vidmatte.sources.synthetic import SCENARIOS, Scenario, SyntheticClip

Map = NDArray[np.float32]
Picture = NDArray[np.uint8]

NETWORK_SIZE = 192, 320
EMA_WEIGHT = 0.5
GRADIENT_SIGMA = 1.4
# A pixel counts as inside or far outside when the truth says so this far around it.
MARGIN_PX = 12


@dataclass(frozen=True, slots=True)
class Shot:
    """A clip as the network and the refinement see it, and its truth."""

    probabilities: list[Map]
    images: list[Picture]
    planes: list[list[Picture]]
    truths: list[Picture]


@dataclass(slots=True)
class Errors:
    """Errors of one run of mattes, one entry per frame; `dtssd` from the second frame on."""

    mad: list[float] = field(default_factory=list)
    mse: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    dtssd: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Return the mean over the frames of each error."""
        return {name: float(np.mean(getattr(self, name))) for name in self.__slots__}


def shoot(clip: SyntheticClip, backend: Backend, frames: Iterable[int]) -> Shot:
    """Render `frames` of `clip` as 4:2:0 BT.709 and ask the network about each."""
    shot = Shot([], [], [], [])
    reformatter = VideoReformatter()
    height, width = backend.input_size
    for index in frames:
        rendered = clip.render(index)
        small = cv2.resize(rendered.image, (width, height), interpolation=cv2.INTER_AREA)
        shot.images.append(np.asarray(small, np.uint8))
        shot.probabilities.append(backend.infer(small[None])[0].copy())
        picture = reformatter.reformat(
            av.VideoFrame.from_ndarray(rendered.image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=MATRIX_BT709,
            dst_color_range=RANGE_LIMITED,
        )
        shot.planes.append([plane.copy() for plane in plane_views(picture)])
        shot.truths.append(rendered.alpha)
    return shot


def per_frame(shot: Shot) -> list[Map]:
    return shot.probabilities


def ema(shot: Shot) -> list[Map]:
    out = [shot.probabilities[0]]
    for probability in shot.probabilities[1:]:
        out.append(EMA_WEIGHT * out[-1] + (1 - EMA_WEIGHT) * probability)
    return out


def steady(shot: Shot, lookahead: int = LOOKAHEAD) -> list[Map]:
    temporal = TemporalFilter(lookahead=lookahead)
    out: list[Map] = []
    for probability, image in zip(shot.probabilities, shot.images, strict=True):
        out += temporal.push(probability, image)
    return out + temporal.flush()


def bilinear(shot: Shot, maps: Sequence[Map], lo: float, hi: float) -> list[Picture]:
    height, width = shot.truths[0].shape
    return [np.asarray(upsample(p, width, height, lo=lo, hi=hi), np.uint8) for p in maps]


def refined(shot: Shot, maps: Sequence[Map], lo: float, hi: float) -> list[Picture]:
    pairs = zip(maps, shot.planes, strict=True)
    return [np.asarray(refine(p, planes, lo=lo, hi=hi), np.uint8) for p, planes in pairs]


Steadying = Callable[[Shot], list[Map]]
Enlarging = Callable[[Shot, Sequence[Map], float, float], list[Picture]]
VARIANTS: dict[str, tuple[Steadying, Enlarging]] = {
    "bilinear per frame": (per_frame, bilinear),
    "bilinear + EMA": (ema, bilinear),
    "ours": (steady, refined),
    "ours, live (no look-ahead)": (lambda shot: steady(shot, 0), refined),
    "ours without temporal": (per_frame, refined),
    "ours without refinement": (steady, bilinear),
}


def mattes(shot: Shot, variant: str, lo: float, hi: float) -> list[Picture]:
    """Return the alphas of `shot` by one of VARIANTS under the curve `lo`..`hi`."""
    steadying, enlarging = VARIANTS[variant]
    return enlarging(shot, steadying(shot), lo, hi)


def errors(alphas: Sequence[Picture], truths: Sequence[Picture]) -> Errors:
    """Compare alphas with truths, frame by frame."""
    result = Errors()
    last: Map | None = None
    for alpha, truth in zip(alphas, truths, strict=True):
        a, t = alpha * np.float32(1 / 255), truth * np.float32(1 / 255)
        difference = a - t
        result.mad.append(float(np.abs(difference).mean()) * 1e3)
        result.mse.append(float(np.square(difference).mean()) * 1e3)
        result.gradient.append(float(np.square(_gradient(a) - _gradient(t)).sum()) / 1e3)
        if last is not None:
            result.dtssd.append(float(np.sqrt(np.square(difference - last).mean())) * 1e2)
        last = difference
    return result


def _gradient(alpha: Map) -> Map:
    """The gradient's magnitude by first-order Gaussian derivatives."""
    radius = int(np.ceil(3 * GRADIENT_SIGMA))
    x = np.arange(-radius, radius + 1, dtype=np.float32)
    smooth = np.exp(-np.square(x) / (2 * GRADIENT_SIGMA**2))
    slope = -x * smooth
    smooth, slope = smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)
    across = cv2.sepFilter2D(alpha, cv2.CV_32F, slope, smooth)
    down = cv2.sepFilter2D(alpha, cv2.CV_32F, smooth, slope)
    return np.asarray(cv2.magnitude(across, down), np.float32)


def exactness(alphas: Sequence[Picture], truths: Sequence[Picture]) -> tuple[float, float]:
    """Return the shares of inside at exactly 255 and of far outside at exactly 0."""
    around = np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)
    inside, outside = [], []
    for alpha, truth in zip(alphas, truths, strict=True):
        inside.append(alpha[cv2.erode(truth, around) == 255] == 255)
        outside.append(alpha[cv2.dilate(truth, around) == 0] == 0)
    return float(np.concatenate(inside).mean()), float(np.concatenate(outside).mean())


def main() -> None:
    options = _arguments()
    model = resolve_model(options.model, weights=options.weights)
    backend = open_backend(model, size=NETWORK_SIZE, precision="f32", threads=options.threads)
    cv2.setNumThreads(options.threads)
    card = _card(model, backend, options)
    for name, value in card.items():
        print(f"{name}: {value}")
    results = {
        scenario: _scenario(scenario, backend, model, options) for scenario in options.scenarios
    }
    means = _means(results)
    print(f"\nmean of {', '.join(results)}")
    _table(means)
    print(json.dumps({"card": card, "scenarios": results, "mean": means}))


def _scenario(
    scenario: Scenario, backend: Backend, model: Model, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    clip = SyntheticClip(
        width=options.size[0],
        height=options.size[1],
        frame_rate=Fraction(30),
        frame_count=options.frames,
        scenario=scenario,
        seed=options.seed,
        noise=options.noise,
    )
    shot = shoot(clip, backend, range(options.frames))
    curve = model.row.curve
    rows = {}
    for variant in VARIANTS:
        started = time.process_time()
        alphas = mattes(shot, variant, curve.lo, curve.hi)
        spent_ms = (time.process_time() - started) / options.frames * 1e3
        row = errors(alphas, shot.truths).means()
        row["inside"], row["outside"] = exactness(alphas, shot.truths)
        empty = [a.mean() / 255 for a, t in zip(alphas, shot.truths, strict=True) if not t.any()]
        rows[variant] = row | {"empty": float(np.mean(empty)) if empty else 0.0, "cpu_ms": spent_ms}
    print(f"\n{scenario}")
    _table(rows)
    return rows


def _means(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        variant: {
            name: float(np.mean([rows[variant][name] for rows in results.values()]))
            for name in next(iter(results.values()))[variant]
        }
        for variant in VARIANTS
    }


def _table(rows: dict[str, dict[str, float]]) -> None:
    print(
        f"{'':28}{'MAD':>8}{'MSE':>8}{'Grad':>8}{'dtSSD':>8}{'in=255':>8}{'out=0':>8}{'CPU ms':>8}"
    )
    for name, row in rows.items():
        numbers = "".join(f"{row[key]:8.2f}" for key in ("mad", "mse", "gradient", "dtssd"))
        shares = "".join(f"{100 * row[key]:7.1f}%" for key in ("inside", "outside"))
        print(f"{name:28}{numbers}{shares}{row['cpu_ms']:8.1f}")


def _card(model: Model, backend: Backend, options: argparse.Namespace) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    curve = model.row.curve
    return {
        "machine": f"{platform.machine()}, {platform.system()}, {options.threads} threads",
        "versions": f"Python {platform.python_version()}, OpenCV {cv2.__version__}, "
        f"PyAV {av.__version__}, numpy {np.__version__}",
        "commit": commit.stdout.strip() or "unknown",
        "model": f"{model.name}, {model.sha256[:12]}, curve {curve.lo}-{curve.hi}",
        "backend": backend.description,
        "network size": f"{NETWORK_SIZE[1]}x{NETWORK_SIZE[0]}",
        "clips": f"{options.size[0]}x{options.size[1]}, {options.frames} frames, "
        f"noise {options.noise}, seed {options.seed}, look-ahead {LOOKAHEAD}",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="name of an embedded or installed model")
    parser.add_argument("--weights", type=Path, help="a file of weights")
    parser.add_argument("--size", type=_size, default=(1280, 720), help="of the clips, WxH")
    parser.add_argument("--frames", type=int, default=48, help="per clip")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--noise", type=float, default=2.0, help="sensor noise, levels of 255")
    parser.add_argument("--seed", type=int, default=0, help="chooses background and direction")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    main()
