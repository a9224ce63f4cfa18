"""An engine's identity: everything that it depends on, and the file name made of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidmatte.backends import Request

GRAPH_VERSION = 1
"""Counts the changes to what `models.graph` exports."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an engine was built, which is the only place that may run it.

    `torch`, `torch_tensorrt`, `tensorrt` and `cuda` (the runtime of torch's build) are versions;
    `capability` is the GPU's compute capability.
    """

    torch: str
    torch_tensorrt: str
    tensorrt: str
    cuda: str
    gpu: str
    capability: str
    system: str
    machine: str


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on; any difference makes another engine.

    `height` and `width` are of the network's picture; `options` are the compiler's.
    """

    model: str
    network: str
    weights_sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    height: int
    width: int
    batch: int
    precision: str
    options: tuple[tuple[str, str], ...]
    environment: Environment
    graph_version: int = GRAPH_VERSION

    @property
    def document(self) -> dict[str, Any]:
        """The key as JSON reads it back."""
        document: dict[str, Any] = json.loads(self._canonical())
        return document

    @property
    def name(self) -> str:
        """File name without its ending: a readable part and the SHA-256 of the whole key."""
        readable = f"{self.model}-{self.width}x{self.height}-b{self.batch}-{self.precision}"
        gpu = re.sub(r"[^a-z0-9]+", "-", self.environment.gpu.lower()).strip("-")[:40]
        digest = hashlib.sha256(self._canonical().encode()).hexdigest()
        return f"{re.sub(r'[^a-z0-9_-]', '_', readable)}-{gpu}-{digest}"

    def _canonical(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def key_of(request: Request, environment: Environment, options: Mapping[str, object]) -> EngineKey:
    """Return the key of the engine that answers `request`; its network runs in f16."""
    row, (height, width) = request.model.row, request.size
    return EngineKey(
        model=row.name,
        network=row.network.name,
        weights_sha256=request.model.sha256,
        mean=row.mean,
        std=row.std,
        height=height,
        width=width,
        batch=request.batch,
        precision="f16",
        options=tuple(sorted((name, repr(value)) for name, value in options.items())),
        environment=environment,
    )


def stale_reasons(key: Mapping[str, Any], present: Mapping[str, str | None]) -> list[str]:
    """Say why no run here will ask for the engine of `key` again.

    `present` holds what this machine has by name of the key's ingredients; None is not known.
    """
    found = dict(key.get("environment", {})) | {"graph_version": str(key.get("graph_version"))}
    found["weights_sha256"] = str(key.get("weights_sha256"))
    return [
        f"{name.replace('_', '-')} {str(found.get(name))[:12]} is now {now[:12]}"
        for name, now in present.items()
        if now is not None and found.get(name) != now
    ]
