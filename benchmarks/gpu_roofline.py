"""The least time that each part of the work can take on a card: FLOPs and bytes over its rates.

    python benchmarks/gpu_roofline.py [--tflops 788] [--gb-per-s 4300] [--host-gb-per-s 50]

prints the floors for a card of those rates: what gpu.py's measurements are predicted to stay above.
Beside them stands the least time op by op, when each but the convolutions is a kernel of its own
that reads and writes its maps (gpu_traffic.py), and again with ReLU and bias in the convolutions.

A network's floor is the sum over its convolutions of max(FLOPs / matmul rate, bytes / copy rate).
FLOPs are twice the multiply-adds. Bytes are the fewest that a convolution moves by itself: its
kernel and bias once per batch, its input and its output once per picture, at two bytes a value
(FP16). Pooling, resizing, joining and adding are taken to be free: they can be part of the
convolution before or behind. The copy rate counts bytes read and written, as a copy does. Maps that
stay in the card's cache from one layer to the next cost less than that, so a small batch of small
pictures may come below its floor; and a kernel that spans layers could too.

The floor of a per-frame part is its fewest bytes over the copy rate: planes in, planes out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple

from vidmatte.models.table import Network, convolutions, models

SIZES = ((320, 320), (192, 320))  # (height, width) of the network's picture
FRAMES = {"720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}
BATCHES = (1, 4, 8, 16, 32)
PIXEL_BYTES = 1.5  # of 8-bit 4:2:0
_SMALL = 320 * 192


@dataclass(frozen=True, slots=True)
class Rates:
    """What a card was measured to do: FP16 multiply-adds, copies, and copies from and to the host.

    `copy` counts bytes read plus bytes written.
    """

    flops: float
    copy: float
    to_device: float
    to_host: float


class Cost(NamedTuple):
    """What a layer or a part has to do at least."""

    name: str
    flops: float
    bytes: float

    def floor_ms(self, rates: Rates) -> float:
        return 1000 * max(self.flops / rates.flops, self.bytes / rates.copy)


def layer_costs(network: Network, size: tuple[int, int], batch: int) -> list[Cost]:
    """Return the cost of every convolution for a batch of pictures of `size` (height, width)."""
    height, width = size
    costs = []
    for conv in convolutions(network):
        out_px = (height // conv.scale) * (width // conv.scale)
        kernel = conv.out_channels * conv.in_channels * conv.kernel**2
        read = conv.in_channels * out_px * conv.stride**2
        moved = kernel + conv.out_channels + batch * (read + conv.out_channels * out_px)
        costs.append(Cost(conv.name, 2.0 * batch * kernel * out_px, 2.0 * moved))
    return costs


def network_floor(network: Network, size: tuple[int, int], batch: int, rates: Rates) -> Any:
    """Return the floor of a whole batch, and of what it is made."""
    costs = layer_costs(network, size, batch)
    flops, moved = sum(c.flops for c in costs), sum(c.bytes for c in costs)
    by_bytes = sum(c.floor_ms(rates) for c in costs if c.bytes / rates.copy > c.flops / rates.flops)
    floor = sum(cost.floor_ms(rates) for cost in costs)
    return {
        "gflop": flops / 1e9,
        "megabytes": moved / 1e6,
        "floor_ms": floor,
        "bound_by_bytes": by_bytes / floor,
        "roofline_fps": 1000 * batch / floor,
        "flops_alone_ms": 1000 * flops / rates.flops,
    }


def part_bytes(width: int, height: int) -> dict[str, float]:
    """Return the fewest bytes per frame of 8-bit 4:2:0 that each part moves, by its name.

    `upload` and `download` cross the bus to the host, the others the card's memory. Their small
    maps are counted at the network's 320×192 and half of that (`live`).
    """
    pixels = width * height
    planes, image, probability = PIXEL_BYTES * pixels, 3 * _SMALL, _SMALL  # f32 at a quarter
    return {
        "upload": planes,
        "prepare": planes + image,
        "temporal": image + 4 * probability,  # now, past, future; the steady one
        "refine": planes + probability + pixels,
        "composite": planes + pixels + planes,
        "download": planes,
    }


def part_floors(width: int, height: int, rates: Rates) -> dict[str, dict[str, float]]:
    """Return megabytes and floor in ms per frame of every part but the network."""
    speed = {"upload": rates.to_device, "download": rates.to_host}
    return {
        name: {"megabytes": moved / 1e6, "floor_ms": 1000 * moved / speed.get(name, rates.copy)}
        for name, moved in part_bytes(width, height).items()
    }


def network_floors(rates: Rates) -> list[dict[str, Any]]:
    """Return the floors of every network, size and batch."""
    return [
        {"model": name, "size": list(size), "batch": batch}
        | network_floor(models()[name].network, size, batch, rates)
        for name in ("u2net", "u2netp", "live")
        for size in SIZES
        for batch in BATCHES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the floors for a card of given rates.")
    parser.add_argument("--tflops", type=float, default=788, help="FP16 matmul, 1e12 FLOP/s")
    parser.add_argument("--gb-per-s", type=float, default=4300, help="copies, read plus written")
    parser.add_argument("--host-gb-per-s", type=float, default=50, help="pinned, one direction")
    given = parser.parse_args()
    host = given.host_gb_per_s * 1e9
    rates = Rates(given.tflops * 1e12, given.gb_per_s * 1e9, host, host)
    print(
        "model   size    batch   GFLOP      MB  floor ms by bytes      fps  FLOPs ms"
        "   ops  op by op ms   of floor  ReLU, bias fused"
    )
    for row in network_floors(rates):
        print_floor(row, rates)
    for name, (width, height) in FRAMES.items():
        print(f"\n{name}, per frame")
        for part, row in part_floors(width, height, rates).items():
            print(f"  {part:10} {row['megabytes']:7.2f} MB {1000 * row['floor_ms']:8.1f} us")


def print_floor(row: dict[str, Any], rates: Rates) -> None:
    from gpu_traffic import traffic

    (height, width), floor = row["size"], row["floor_ms"]
    moved = traffic(models()[row["model"]].network, (height, width), row["batch"])
    # ReLU's bytes once more for the bias, which is added by a kernel of its own.
    apart = floor + 1000 * (moved["bytes"] + moved["relu_bytes"]) / rates.copy
    fused = floor + 1000 * (moved["bytes"] - moved["relu_bytes"]) / rates.copy
    print(
        f"{row['model']:7} {width}x{height} {row['batch']:4} {row['gflop']:7.1f}"
        f" {row['megabytes']:7.1f} {floor:9.4f} {row['bound_by_bytes']:8.0%}"
        f" {row['roofline_fps']:8.0f} {row['flops_alone_ms']:9.4f} {moved['ops']:5}"
        f" {apart:12.4f} {floor / apart:10.0%} {floor / fused:17.0%}"
    )


if __name__ == "__main__":
    main()
