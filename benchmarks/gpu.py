"""How fast vidmatte is on this NVIDIA card, and how near what the card can do: in one call.

    python benchmarks/gpu.py [--out DIR] [--u2netp FILE] [--clip FILE] [--seconds 500]

Measures the card's own rates (products, copies, the bus), the networks against the roofline made
from them (gpu_roofline.py has the formula), every stage of the per-frame work alone, all of them
together on the device, whole runs over an H.264 file beside decoding alone and the same run with
no network, and what torch.compile and TensorRT make of the networks. Needs no more than torch,
numpy, OpenCV and PyAV beside this checkout (Triton for torch.compile), nothing installed.

It keeps to `--seconds`: each part has a share, and what does not fit is named as left out. Results
are saved after every part, as `<card>.json` in DIR; the last line of stdout is the same document.
The networks have random weights but for `live`, which is embedded, and u2netp where `--u2netp`
names its .safetensors; mattes of FP16 and FP32 are compared on frames of `--clip`, else on drawn
pictures, which are none of a camera. Clocks and other settings of the card are left as they are.

`--rehearse` does everything once, tiny, to find mistakes before time on a card is spent;
`--device cpu` does it without a card. Such numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402 - the checkout comes first
from gpu_card import card_of, measure_ceilings, rates_of  # noqa: E402
from gpu_clips import DISTINCT, info_of, network_images, pictures_of, write_h264  # noqa: E402
from gpu_clock import Clock, Deadline, OutOfTimeError  # noqa: E402
from gpu_models import NAMES, Zoo  # noqa: E402
from gpu_networks import measure_compilers, measure_networks, measure_parity  # noqa: E402
from gpu_roofline import FRAMES, SIZES, Rates, network_floors  # noqa: E402
from gpu_run import Clip, Runs  # noqa: E402
from gpu_stages import (  # noqa: E402
    Chain,
    measure_chain,
    measure_latency,
    measure_stages,
    opened,
    report,
    with_floors,
)

from vidmatte.frames import layout_of  # noqa: E402
from vidmatte.matting import GPU_BATCH  # noqa: E402

# Name and share of the time; what one part leaves over, those behind it have.
SHARES = {
    "ceilings": 0.07,
    "parity": 0.06,
    "networks": 0.33,
    "stages": 0.20,
    "runs": 0.24,
    "compilers": 0.10,
}
GRACE_S = 15.0  # past its time, a part is cut off
RUN_FRAMES = {"1080p": 600, "4k": 240, "720p": 600}


@dataclass(slots=True)
class Bench:
    """What all parts share, and the document that they fill."""

    options: argparse.Namespace
    device: torch.device
    folder: Path
    clock: Clock
    document: dict[str, Any] = field(default_factory=dict)
    rates: Rates | None = None
    zoo: Zoo | None = None

    @property
    def small(self) -> bool:
        return bool(self.options.rehearse)

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that stages and runs are measured with."""
        return ("live",) if self.small else ("live", "u2netp", "u2net")

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Name and (width, height) of the pictures, the most wanted first."""
        return {"tiny": (160, 96)} if self.small else {name: FRAMES[name] for name in RUN_FRAMES}


def main() -> int:
    options = parse_options()
    device = torch.device("cuda:0" if options.device == "cuda" else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no NVIDIA GPU\nhint: --device cpu --rehearse")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seconds, most = (0.01, 2) if options.rehearse else (0.4, 200)
        bench = Bench(options, device, Path(folder), Clock(device, seconds=seconds, most=most))
        bench.document |= {"card": card_of(device), "left_out": [], "errors": {}}
        bench.document["rehearsal"] = options.rehearse
        print_facts("card", bench.document["card"])
        run_parts(bench, start)
    print(json.dumps(bench.document, allow_nan=False))
    return 1 if bench.document["errors"] else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure vidmatte on an NVIDIA card.")
    here = os.environ.get("OUT", str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--out", type=Path, default=Path(here), help="folder (else $OUT)")
    parser.add_argument("--u2netp", type=Path, help="trained weights, .safetensors")
    parser.add_argument("--clip", type=Path, help="video whose frames are used")
    parser.add_argument("--seconds", type=float, default=500.0, help="time for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true", help="tiny and once")
    parser.add_argument("--only", nargs="*", choices=list(SHARES), help="parts; ceilings always")
    return parser.parse_args()


def run_parts(bench: Bench, start: float) -> None:
    """Do part after part, each to its own end of time; save after each."""
    parts: dict[str, Callable[[Bench, Deadline], Any]] = {
        "ceilings": ceilings,
        "parity": parity,
        "networks": networks,
        "stages": stages,
        "runs": runs,
        "compilers": compilers,
    }
    until = 0.0
    for name, part in parts.items():
        until += SHARES[name] * bench.options.seconds
        if bench.options.only and name not in ("ceilings", *bench.options.only):
            continue
        print(f"\n{name}", flush=True)
        deadline = Deadline(until - (time.monotonic() - start))
        run_part(bench, name, part, deadline)
        bench.document["elapsed_s"] = round(time.monotonic() - start, 1)
        save(bench)


def run_part(
    bench: Bench, name: str, part: Callable[[Bench, Deadline], Any], deadline: Deadline
) -> None:
    """Do one part; what goes wrong in it is written down, and the next one is done."""
    try:
        with deadline.cut_off(grace_s=GRACE_S), deadline.guarded("all"):
            part(bench, deadline)
    except OutOfTimeError as exc:
        deadline.left_out.append(f"the rest: {exc}")
    bench.document["left_out"] += [f"{name}: {what}" for what in deadline.left_out]
    bench.document["errors"] |= {f"{name}: {what}": why for what, why in deadline.failed.items()}


def save(bench: Bench) -> None:
    card = str(bench.document["card"]["device"])
    name = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    if bench.small:
        name = f"rehearsal_{name}"  # never in the place of a result
    bench.options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bench.document, indent=1, allow_nan=False)
    (bench.options.out / f"{name}.json").write_text(text + "\n", "utf-8")


def ceilings(bench: Bench, deadline: Deadline) -> None:
    found = measure_ceilings(bench.clock, deadline, small=bench.small)
    bench.document["ceilings"] = found
    for row in found["matmul"]:
        print(f"matmul {row['precision']:4} {row['side']:5}: {row['tflops']:.1f} TFLOP/s")
    for row in found["convolution"]:
        print(f"convolution {row['layer']}: {row['tflops']:.1f} TFLOP/s")
    print_facts("GB/s", {name: round(rate, 1) for name, rate in found["copy"].items()})
    bench.rates = rates_of(found)
    bench.document["roofline"] = network_floors(bench.rates)
    names = ("u2netp", "live") if bench.small else NAMES
    bench.zoo = Zoo(bench.folder, bench.options.u2netp, names)


def parity(bench: Bench, deadline: Deadline) -> None:
    assert bench.zoo is not None
    size = (160, 96) if bench.small else FRAMES["720p"]
    pictures = pictures_of(bench.options.clip, size, 2 if bench.small else 16)
    sizes = [(64, 64)] if bench.small else SIZES
    images = dict(network_images(pictures, sizes))
    bench.document["parity"] = {
        "pictures": "drawn, not real" if bench.options.clip is None else bench.options.clip.name,
        "rows": measure_parity(bench.zoo, images, bench.clock),
    }


def networks(bench: Bench, deadline: Deadline) -> None:
    assert bench.zoo is not None
    assert bench.rates is not None
    rows = bench.document["networks"] = []
    measure_networks(bench.zoo, bench.rates, bench.clock, deadline, rows, small=bench.small)


def stages(bench: Bench, deadline: Deadline) -> None:
    """Measure the stages with `live`, and all on the device and the latency with every network."""
    document = bench.document["stages"] = {}
    for name, size in bench.sizes.items():
        if deadline.allows(name, needs_s=0 if bench.small else 10):
            document[name] = {"models": {}}
            pictures = pictures_of(bench.options.clip, size, 4 if bench.small else DISTINCT)
            for model in bench.names:
                what = f"{name}, {model}"
                if deadline.allows(what, needs_s=0 if bench.small else 5):
                    with deadline.guarded(what):
                        stages_of(bench, model, size, pictures, document[name])


def stages_of(
    bench: Bench,
    model: str,
    size: tuple[int, int],
    pictures: list[Any],
    document: dict[str, Any],
) -> None:
    assert bench.rates is not None
    batch = 2 if bench.small else GPU_BATCH
    with opened(lambda: chain_of(bench, model, size, pictures, batch)) as chain:
        together = document["models"][model] = measure_chain(chain, bench.clock, size)
        if model == "live":
            rows = with_floors(measure_stages(chain, bench.clock), size, bench.rates)
            document["stages"] = rows
            report(f"{size[0]}x{size[1]}", rows, together)
    with opened(lambda: chain_of(bench, model, size, pictures, 1)) as chain:
        repeat = 3 if bench.small else 200
        together["latency"] = measure_latency(chain, bench.clock, repeat=repeat)
    print(
        f"{model:7} {together['resident_fps']:.0f} fps on the device; one frame, host to host: "
        f"p50 {together['latency']['p50_ms']:.2f} ms, p95 {together['latency']['p95_ms']:.2f} ms",
        flush=True,
    )


def chain_of(
    bench: Bench, model: str, size: tuple[int, int], pictures: list[Any], batch: int
) -> Chain:
    layout = layout_of("yuv420p")
    assert bench.zoo is not None
    assert layout is not None
    return Chain(
        bench.zoo.models[model], info_of(size), layout, pictures, bench.device, batch=batch
    )


def runs(bench: Bench, deadline: Deadline) -> None:
    """Measure whole runs, and how busy the device was and how much of the work overlapped."""
    assert bench.zoo is not None
    document = bench.document["runs"] = {}
    for name, size in bench.sizes.items():
        if not deadline.allows(name, needs_s=30 if not bench.small else 0):
            continue
        count = 16 if bench.small else RUN_FRAMES[name]
        pictures = pictures_of(bench.options.clip, size, 4 if bench.small else DISTINCT)
        path = bench.folder / f"{name}.mp4"
        write_h264(path, pictures, count)
        clip = Clip(path, size, count, pictures)
        own = Runs(bench.zoo, clip, bench.device, deadline, bench.names)
        document[name] = own.document
        own.measure()
        add_shares(own.document, bench.document.get("stages", {}).get(name, {}))


def add_shares(document: dict[str, Any], stages: dict[str, Any]) -> None:
    """Add to every run from a file to nothing what its stages alone say of busy and overlap.

    `busy` is the device's time per frame, all together, over the run's time per frame. `overlap`
    is the sum of all stages alone, decoding included, over the run's: above 1 they ran beside
    each other.
    """
    if "stages" not in stages:
        return
    alone_ms = sum(row["ms"] for row in stages["stages"].values())
    for row in document["runs"]:
        if row["backend"] == "torch" and row["model"] in stages["models"]:
            frame_ms = 1000 / row["steady_fps"]
            resident_ms = stages["models"][row["model"]]["resident_ms"]
            row["busy"] = resident_ms / frame_ms
            if row["model"] == "live" and (row["source"], row["sink"]) == ("file", "null"):
                decode_ms = 1000 / document["decode_fps"][row["decoder"]]
                row["overlap"] = (alone_ms + decode_ms) / frame_ms


def compilers(bench: Bench, deadline: Deadline) -> None:
    assert bench.zoo is not None
    rows = bench.document["compilers"] = []
    measure_compilers(bench.zoo, bench.clock, deadline, rows)


def print_facts(title: str, facts: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in facts.items():
        print(f"  {name:24} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
