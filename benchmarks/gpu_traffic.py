"""What torch moves when it runs op by op: the price of each op as a kernel of its own.

    python benchmarks/gpu_traffic.py [--gb-per-s 4300] [--launch-us 2.5]

runs every stage on the CPU and prints its ops and bytes per frame, and the larger of two times that
follow for a card: its bytes at the card's copy rate, and one launch per op, which recorded graphs
make cheap but not free. A prediction, not a measurement.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidmatte.models.network import U2Net
from vidmatte.models.table import Network

_CONVOLUTIONS = {"aten::conv2d", "aten::convolution"}


class Counting(TorchDispatchMode):
    """Counts calls, and bytes of the tensors that go in and out, by op; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        given = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        made = [t for t in tree_leaves(result) if torch.is_tensor(t)]
        places = {t.untyped_storage()._cdata for t in given}
        is_view = made and all(t.untyped_storage()._cdata in places for t in made)
        if func._schema.is_mutable or not is_view:
            self.calls[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in given + made)
        return result


def traffic(network: Network, size: tuple[int, int], batch: int) -> dict[str, float]:
    """Return ops, and the bytes of all but the convolutions, for one batch in FP16.

    Nothing is computed. A bias is counted as part of its convolution; cuDNN's plain convolution
    leaves it to a kernel more, which reads and writes the map again, as ReLU does.
    """
    with torch.device("meta"):
        module = U2Net(network, folded=True).half().eval()
        x = torch.empty(batch, network.in_channels, *size, dtype=torch.half)
    with torch.inference_mode(), Counting() as counting:
        module(x)
    moved = sum(b for name, b in counting.bytes.items() if name not in _CONVOLUTIONS)
    return {
        "ops": sum(counting.calls.values()),
        "bytes": float(moved),
        "relu_bytes": float(counting.bytes["aten::relu"]),
    }


def stage_traffic(size: tuple[int, int], batch: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return ops and bytes per frame of every stage on pictures of (width, height), with `live`.

    The network's are of float32, as a CPU runs it.
    """
    from gpu_clips import info_of, pictures_of
    from gpu_models import Zoo
    from gpu_stages import Chain, opened

    from vidmatte.frames import layout_of

    model, layout = Zoo(folder, None, ("live",)).models["live"], layout_of("yuv420p")
    assert layout is not None
    pictures = pictures_of(None, size, 2)
    with opened(
        lambda: Chain(model, info_of(size), layout, pictures, torch.device("cpu"), batch=batch)
    ) as chain:
        steady = list(chain.probabilities[0][: chain.together])
        works: dict[str, tuple[Callable[[], object], int]] = {
            "prepare": (lambda: chain.prepare(0), 1),
            "network": (lambda: chain.network(chain.images[0]), batch),
            "temporal": (lambda: chain.temporal(chain.probabilities[0], chain.images[0]), batch),
            "refine": (lambda: chain.refine(0, steady), chain.together),
            "composite": (lambda: chain.composite(0, chain.alphas[0]), 1),
        }
        found = {}
        for name, (work, frames) in works.items():
            work()
            with Counting() as counting:
                work()
            ops, moved = sum(counting.calls.values()), sum(counting.bytes.values())
            found[name] = {"ops": ops / frames, "bytes": moved / frames}
    return found


def main() -> None:
    from gpu_roofline import FRAMES

    parser = argparse.ArgumentParser(description="Count ops and bytes of the per-frame work.")
    parser.add_argument("--gb-per-s", type=float, default=4300, help="copies, read plus written")
    parser.add_argument("--launch-us", type=float, default=2.5, help="of one small kernel")
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    for title, size in FRAMES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows = stage_traffic(size, given.batch, Path(folder))
        print(f"\n{title}, per frame: ops, MB, us by bytes, us by launches")
        total = 0.0
        for name, row in rows.items():
            by_bytes = row["bytes"] / given.gb_per_s / 1e3
            by_launches = row["ops"] * given.launch_us
            total += max(by_bytes, by_launches)
            print(
                f"  {name:10} {row['ops']:6.0f} {row['bytes'] / 1e6:8.1f}"
                f" {by_bytes:7.0f} {by_launches:7.0f}"
            )
        print(f"  one after the other {total:.0f} us, {1e6 / total:.0f} fps")


if __name__ == "__main__":
    main()
