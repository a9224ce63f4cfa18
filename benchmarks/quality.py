"""Measure mattes against generated clips whose true alpha is known.

    python benchmarks/quality.py                              # the embedded weights
    python benchmarks/quality.py --u2netp FILE                # and these, in the same run
    python benchmarks/quality.py --weights FILE --pictures DIR --json FILE

Compares what peers make of a network's answers (bilinear, without a curve; stretched to each
frame's minimum and maximum; smoothed by an average over time) with ours and with ours without one
part each, on clips with hair, motion blur, shake, noise, H.264, changes of light, cuts and an
empty stretch (quality_clips.py). The reach is measured against plain bilinear; the same curve is
shown beside it, so that nobody takes the curve for the refinement. Errors and their scales are
those of vidmatte/evaluation/video_metrics.py. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import machine_card
from quality_checks import (
    COLOURINGS,
    as_it_is,
    cost_ms,
    cuts,
    empty_alpha,
    errors,
    exactness,
    foreground_error,
    lag_frames,
    recovery_frames,
    start_of_motion,
)
from quality_clips import CLIPS, Clip, Footage, film
from quality_pictures import draw
from quality_shots import (
    CURVED,
    LIVE,
    NO_TEMPORAL,
    OURS,
    PLAIN,
    STRETCHED,
    VARIANTS,
    Picture,
    Shot,
    mattes,
    shoot,
)

from vidmatte.backends import open_backend
from vidmatte.evaluation.video_metrics import means
from vidmatte.matting import LOOKAHEAD, Network
from vidmatte.models.registry import Model, resolve_model

NETWORK_SIZE = 192, 320
COST_SIZE = 1920, 1080
NOBODY = "nobody"  # a clip without a subject tells of emptiness only, and is in no mean
COLOUR_EVERY = 6  # frames; the foreground's colour is slow to find in some of the ways

Row = dict[str, float]
Rows = dict[str, Row]


def main() -> None:
    options = _arguments()
    cv2.setNumThreads(options.threads)
    card = machine_card("numpy") | {
        "opencv": cv2.__version__,
        "clips": f"{options.size[0]}x{options.size[1]}, {options.frames} frames",
        "network size": f"{NETWORK_SIZE[1]}x{NETWORK_SIZE[0]}",
        "look-ahead": LOOKAHEAD,
    }
    for name, value in card.items():
        print(f"{name}: {value}")
    models = [resolve_model(options.model, weights=options.weights)]
    if options.u2netp is not None:
        models.append(resolve_model(None, weights=options.u2netp))
    networks = [_network(model, options.threads) for model in models]
    found: dict[str, dict[str, Any]] = {model.name: {} for model in models}
    for clip in CLIPS:
        if not options.clips or clip.name in options.clips:
            footage = film(clip, *options.size, options.frames)
            for network in networks:
                found[network.model.name][clip.name] = _clip(clip, footage, network, options)
    results = {network.model.name: _summary(network, found) for network in networks}
    document = json.dumps({"card": card, "models": results}, allow_nan=False)
    if options.json:
        options.json.write_text(document + "\n")
    print(document)


def _network(model: Model, threads: int) -> Network:
    backend = open_backend(model, size=NETWORK_SIZE, precision="f32", threads=threads)
    curve = model.row.curve
    print(f"{model.name}: {model.sha256[:12]}, curve {curve.lo}-{curve.hi}, {backend.description}")
    return Network(model, backend)


def _summary(network: Network, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Print and return the means over all clips of one network, and its reach."""
    model = network.model
    rows = {name: one["rows"] for name, one in found[model.name].items()}
    checks = {name: one["checks"] for name, one in found[model.name].items()}
    seen = {
        clip.name: rows[clip.name] for clip in CLIPS if clip.name in rows and clip.who != NOBODY
    }
    mean, cost = _mean(seen or rows), _cost(network)
    network.backend.close()
    print(f"\n{model.name}, mean of {', '.join(seen)}")
    _table(mean)
    print(f"CPU ms at {COST_SIZE[0]}x{COST_SIZE[1]}: {cost}")
    reach = _reach(rows, mean, checks, cost)
    _print_reach(reach)
    return {
        "sha256": model.sha256,
        "clips": rows,
        "checks": checks,
        "mean": mean,
        "cost_ms": cost,
        "reach": reach,
    }


def _clip(
    clip: Clip, footage: Footage, network: Network, options: argparse.Namespace
) -> dict[str, Any]:
    shot = shoot(footage, network.backend)
    curve, name = network.model.row.curve, network.model.name
    alphas = {name: mattes(shot, name, curve.lo, curve.hi) for name in VARIANTS}
    rows = {name: _row(made, shot, shot.times_ms[name]) for name, made in alphas.items()}
    print(f"\n{name}, {clip.name}")
    _table(rows)
    checks = _checks(clip, shot, alphas)
    print("  ".join(f"{check}: {value}" for check, value in checks.items()), flush=True)
    if options.pictures:
        draw(options.pictures, f"{name} {clip.name}", shot, alphas)
    return {"rows": rows, "checks": checks}


def _row(alphas: list[Picture], shot: Shot, cpu_ms: float) -> Row:
    inside, outside = exactness(alphas, shot.truths)
    found: Row = {str(k): v for k, v in means(errors(alphas, shot.truths)).items()}
    return found | {"inside": inside, "outside": outside, "cpu_ms": cpu_ms}


def _checks(clip: Clip, shot: Shot, alphas: Mapping[str, list[Picture]]) -> dict[str, Any]:
    """What applies to this clip of lag, cuts, emptiness and colour, by variant."""
    truths, found = shot.truths, {}
    if (start := start_of_motion(truths)) is not None:
        found["lag"] = {name: lag_frames(made, truths, start) for name, made in alphas.items()}
    if clip.scenario == "cut":
        mads = {name: [e.mad for e in errors(made, truths)] for name, made in alphas.items()}
        found["recovery"] = {
            name: recovery_frames(mads[name], mads[NO_TEMPORAL], cuts(truths))
            for name in (OURS, LIVE)
        }
    if empty_alpha(alphas[PLAIN], truths) is not None:
        found["empty"] = {name: empty_alpha(made, truths) for name, made in alphas.items()}
    ours = alphas[OURS]
    for check, made, as_seen in (("colour, true alpha", truths, False), ("colour", ours, True)):
        errors_of = {
            name: foreground_error(shot, made, way, COLOUR_EVERY, as_seen=as_seen)
            for name, way in COLOURINGS.items()
        }
        if None not in errors_of.values():
            found[check] = errors_of
    return {
        check: {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        for check, values in found.items()
    }


def _cost(network: Network) -> Row:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    shot = shoot(film(CLIPS[0], *COST_SIZE, 8), network.backend)
    spent = cost_ms(shot, network.model.row.curve.lo, network.model.row.curve.hi)
    cv2.setNumThreads(threads)
    return {name: round(value, 2) for name, value in spent.items()}


def _mean(clips: Mapping[str, Rows]) -> Rows:
    some = next(iter(clips.values()))
    return {
        variant: {
            name: float(np.mean([rows[variant][name] for rows in clips.values()])) for name in row
        }
        for variant, row in some.items()
    }


def _reach(
    clips: Mapping[str, Rows],
    mean: Rows,
    checks: Mapping[str, Mapping[str, Any]],
    cost: Row,
) -> list[dict[str, Any]]:
    """What was asked for, what was measured, and whether that is enough."""

    def every(check: str, name: str) -> list[float]:
        return [c[check][name] for c in checks.values() if check in c]

    def line(what: str, limit: float, measured: float, other: float | None = None) -> None:
        found.append(
            {
                "what": what,
                "limit": limit,
                "measured": round(measured, 4),
                "same_curve": None if other is None else round(other, 4),
                "reached": bool(measured <= limit),
            }
        )

    found: list[dict[str, Any]] = []
    ours, live, plain, curved = (mean[name] for name in (OURS, LIVE, PLAIN, CURVED))
    for name, limit in (("dtssd", -0.6), ("grad", -0.4), ("mad", -0.1)):
        line(
            f"{name} against plain bilinear",
            limit,
            ours[name] / plain[name] - 1,
            ours[name] / curved[name] - 1,
        )
    worse = [
        max(rows[OURS]["mad"] - rows[other]["mad"] for rows in clips.values())
        for other in (PLAIN, CURVED)
    ]
    line("worst clip's MAD against plain", 0.5, *worse)
    line("live's dtSSD against file's", 0.15, live["dtssd"] / ours["dtssd"] - 1)
    for what, limit in (("lag", 1), ("recovery", 0), ("empty", 0.01)):
        values = [max(every(what, name)) for name in (OURS, LIVE) if every(what, name)]
        if values:
            line(what, limit, max(values))
    if stretch := every("empty", STRETCHED):
        line("empty stretch, min-max (minus, above .2)", -0.2, -max(stretch))
    for check in ("colour, true alpha", "colour"):
        before = np.mean(every(check, _name_of(as_it_is)))
        after = np.mean(every(check, "ours"))
        line(
            f"foreground {check}{', our mattes' * (check == 'colour')}",
            -0.7,
            float(after / before) - 1,
        )
    line("CPU ms at 1080p, all but the network", 8.0, sum(cost.values()))
    return found


def _name_of(colouring: object) -> str:
    return next(name for name, way in COLOURINGS.items() if way is colouring)


def _print_reach(reach: list[dict[str, Any]]) -> None:
    print(f"\n{'reach':44}{'limit':>8}{'found':>10}{'same curve':>12}")
    for row in reach:
        other = "" if row["same_curve"] is None else f"{row['same_curve']:.3f}"
        said = "yes" if row["reached"] else "NO"
        print(f"{row['what']:44}{row['limit']:8.2f}{row['measured']:10.3f}{other:>12}  {said}")


def _table(rows: Rows) -> None:
    heads = ("MAD", "MSE", "Grad", "dtSSD", "in=255", "out=0", "CPU ms")
    print(f"{'':28}" + "".join(f"{head:>8}" for head in heads))
    for name, row in rows.items():
        numbers = "".join(f"{row[key]:8.2f}" for key in ("mad", "mse", "grad", "dtssd"))
        shares = "".join(f"{100 * row[key]:7.1f}%" for key in ("inside", "outside"))
        print(f"{name:28}{numbers}{shares}{row['cpu_ms']:8.1f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="name of an embedded or installed model")
    parser.add_argument("--weights", type=Path, help="a file of weights")
    parser.add_argument("--u2netp", type=Path, help="a file of weights to measure as well")
    parser.add_argument("--size", type=_size, default=(1280, 720), help="of the clips, WxH, even")
    parser.add_argument("--frames", type=_thirds, default=48, help="per clip, a multiple of 3")
    parser.add_argument("--clips", nargs="+", choices=[clip.name for clip in CLIPS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=Path, help="folder for pictures to look at")
    parser.add_argument("--json", type=Path, help="also write the document here")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def _thirds(text: str) -> int:
    if int(text) % 3 or int(text) <= 0:
        raise argparse.ArgumentTypeError("not a multiple of 3, at which clips are cut")
    return int(text)


if __name__ == "__main__":
    main()
