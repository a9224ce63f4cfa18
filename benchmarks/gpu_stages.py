"""The per-frame work on the device, stage by stage and together, at one picture size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import av
import numpy as np
import torch
from gpu_clock import Clock
from gpu_roofline import Rates, part_floors
from torch import Tensor

from vidmatte.backdrop import Backdrop
from vidmatte.backends import open_backend
from vidmatte.compute.cuda.composite import composite
from vidmatte.compute.cuda.engine import _TOGETHER_PX as TOGETHER_PX
from vidmatte.compute.cuda.prepare import Preparer
from vidmatte.compute.cuda.refine import Refiner
from vidmatte.compute.cuda.temporal import TemporalFilter
from vidmatte.compute.cuda.transfer import Download, Lane, upload_picture
from vidmatte.frames import Layout, VideoInfo
from vidmatte.graphs import Graphed
from vidmatte.matting import LOOKAHEAD
from vidmatte.models.registry import Model
from vidmatte.models.table import network_size

STAGES = ("upload", "prepare", "network", "temporal", "refine", "composite", "download")
Planes = tuple[Tensor, ...]


class Chain:
    """Everything between decoder and encoder, for pictures of one source; each stage can be timed.

    `pictures` are what frames are made of, in host memory; their planes are on the device as well,
    so many that they do not fit the card's cache. `batch` pictures go through the network at once;
    with one, nothing looks ahead, as in live mode. Built and used in inference mode: see `opened`.
    """

    def __init__(
        self,
        model: Model,
        info: VideoInfo,
        layout: Layout,
        pictures: Sequence[av.VideoFrame],
        device: torch.device,
        *,
        batch: int,
        backend: str = "torch",
        precision: str = "auto",
    ) -> None:
        self.device, self.batch, self.pictures = device, batch, pictures
        width, height = network_size(*info.upright_size, model.row)
        self.backend: Any = open_backend(
            model,
            size=(height, width),
            backend=backend,
            device=str(device),
            batch=batch,
            precision=precision,  # type: ignore[arg-type]
        )
        self._preparer = Preparer(info, layout, (height, width), device)
        self._prepare = Graphed(lambda *planes: (self._preparer.prepare(planes),), device)
        self._temporal = TemporalFilter(lookahead=LOOKAHEAD if batch > 1 else 0, device=device)
        curve = model.row.curve
        self._refiner = Refiner(
            layout, info.width, info.height, lo=curve.lo, hi=curve.hi, device=device
        )
        self._refine = Graphed(self._refine_work, device)
        self.together = max(1, min(batch, TOGETHER_PX // (info.width * info.height)))
        green = Backdrop("green").build(info, layout).constant
        assert green is not None
        self._composite = Graphed(
            lambda alpha, *planes: composite(planes, alpha, green, layout, interlaced=False), device
        )
        self._copies = Lane(device)
        self.planes = [upload_picture(picture, device) for picture in pictures]
        self.images = [torch.stack([self.prepare(i + k) for k in range(batch)]) for i in range(4)]
        self.probabilities = [self.network(image).clone() for image in self.images]
        one = self.probabilities[0][0]
        self.alphas = [self.refine(i, [one])[0].clone() for i in range(len(pictures))]

    def close(self) -> None:
        self.backend.close()

    def planes_at(self, i: int) -> Planes:
        return self.planes[i % len(self.planes)]

    def upload(self, i: int) -> Planes:
        return upload_picture(self.pictures[i % len(self.pictures)], self.device)

    def prepare(self, i: int, planes: Planes | None = None) -> Tensor:
        return self._prepare(*(planes or self.planes_at(i)))[0].clone()

    def network(self, images: Tensor) -> Tensor:
        answer: Tensor = self.backend.infer_device(images)
        return answer

    def temporal(self, probabilities: Tensor, images: Tensor) -> list[Tensor]:
        return list(self._temporal.push_batch(probabilities, images))

    def refine(self, i: int, steady: list[Tensor], planes: Planes | None = None) -> Tensor:
        """Refine some pictures at once, the first of them `i`; return their alphas (N, H, W)."""
        own = [planes or self.planes_at(i + k) for k in range(len(steady))]
        stacked = [torch.stack(same) for same in zip(*own, strict=True)]
        return self._refine(torch.stack(steady), *stacked)[0]

    def _refine_work(self, probability: Tensor, *planes: Tensor) -> Planes:
        return (self._refiner.refine(self._preparer.to_stored(probability), planes),)

    def composite(self, i: int, alpha: Tensor, planes: Planes | None = None) -> Planes:
        return self._composite(alpha, *(planes or self.planes_at(i)))

    def download(self, planes: Planes) -> Download:
        return Download(planes, self._copies)

    def resident(self, i: int) -> Planes:
        """Do all but the way to the host and back for one batch; return the last composite."""
        first = i * self.batch
        images = torch.stack([self.prepare(first + k) for k in range(self.batch)])
        steady = self.temporal(self.network(images).clone(), images)
        out: Planes = ()
        for k in range(0, len(steady), self.together):
            alphas = self.refine(first + k, steady[k : k + self.together])
            for n, alpha in enumerate(alphas, first + k):
                out = self.composite(n, alpha)
        return out

    def one_frame(self, i: int) -> None:
        """Bring one picture from host to host, nothing in flight beside it."""
        planes = self.upload(i)
        images = self.prepare(i, planes)[None]
        steady = self.temporal(self.network(images), images)
        (alpha,) = self.refine(i, steady, planes)
        self.download(self.composite(i, alpha, planes)).planes()


@contextmanager
def opened(build: Callable[[], Chain]) -> Iterator[Chain]:
    """Build a chain, keep inference mode on while it is used, close it."""
    with torch.inference_mode(), closing(build()) as chain:
        yield chain


def measure_stages(chain: Chain, clock: Clock) -> dict[str, dict[str, float]]:
    """Return ms per frame of every stage alone, as it comes in a run: in graphs, in batches.

    `upload` includes the host's packing into pinned memory, `download` the wait for the planes;
    both are timed by the host's clock, the others by events.
    """
    images, maps = chain.images, chain.probabilities
    n, batch, many, together = len(chain.pictures), chain.batch, len(images), chain.together
    steady = [list(answer[:together]) for answer in maps]
    out = [tuple(p.clone() for p in chain.planes_at(i)) for i in range(n)]
    works: dict[str, tuple[Callable[[int], object], int]] = {
        "prepare": (lambda i: chain.prepare(i), 1),
        "network": (lambda i: chain.network(images[i % many]), batch),
        "temporal": (lambda i: chain.temporal(maps[i % many], images[i % many]), batch),
        "refine": (lambda i: chain.refine(i * together, steady[i % many]), together),
        "composite": (lambda i: chain.composite(i, chain.alphas[i % n]), 1),
    }
    rows = {}
    for name, (work, frames) in works.items():
        timing = clock.measure(work)
        rows[name] = {"ms": timing["ms"] / frames, "spread": timing["spread"]}
    for name, copy in (
        ("upload", lambda i: chain.upload(i)),
        ("download", lambda i: chain.download(out[i % n]).planes()),
    ):
        clock.host_ms(copy, 5)
        rows[name] = {"ms": float(np.median(clock.host_ms(copy, 50)))}
    return {name: rows[name] for name in STAGES}


def with_floors(
    rows: dict[str, dict[str, float]], size: tuple[int, int], rates: Rates
) -> dict[str, dict[str, float]]:
    """Add to every stage but the network its fewest bytes, their floor and how near that is."""
    for name, floor in part_floors(*size, rates).items():
        rows[name] |= floor | {"of_floor": floor["floor_ms"] / rows[name]["ms"]}
    return rows


def measure_chain(chain: Chain, clock: Clock, size: tuple[int, int]) -> dict[str, Any]:
    """Measure the stages together: device-resident, and one frame at a time from host to host."""
    timing = clock.measure(chain.resident)
    up = sum(plane.nbytes for plane in chain.planes[0])
    down = sum(plane.nbytes for plane in chain.composite(0, chain.alphas[0]))
    return {
        "resident_ms": timing["ms"] / chain.batch,
        "resident_fps": 1000 * chain.batch / timing["ms"],
        "host_bytes": up + down,
        "host_bytes_per_pixel": (up + down) / (size[0] * size[1]),
    }


def measure_latency(chain: Chain, clock: Clock, *, repeat: int) -> dict[str, float]:
    """Return percentiles of one frame from host memory to host memory; `chain` has batch 1."""
    assert chain.batch == 1, "one picture at a time"
    clock.host_ms(chain.one_frame, 5)
    values = np.percentile(clock.host_ms(chain.one_frame, repeat), [50, 95, 99])
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), map(float, values), strict=True))


def report(title: str, rows: dict[str, dict[str, float]], chain: dict[str, Any]) -> None:
    print(f"\n{title:12} {'ms':>8} {'MB':>8} {'floor':>9} {'of floor':>9}")
    for name, row in rows.items():
        line = f"{name:12} {row['ms']:8.3f}"
        if "floor_ms" in row:
            line += f" {row['megabytes']:8.2f} {row['floor_ms']:9.4f} {row['of_floor']:9.0%}"
        print(line)
    print(
        f"all on the device {chain['resident_fps']:.0f} fps; "
        f"{chain['host_bytes_per_pixel']:.2f} bytes per pixel to and from the host",
        flush=True,
    )
