"""Remove the background from video and change nothing else about it.

import vidmatte

vidmatte.run("input.mp4", "output.mp4", background="beach.jpg")

for matte in vidmatte.mattes("input.mp4"):
    print(matte.frame.time_s, matte.alpha.mean())

matter = vidmatte.Matter()
alpha = matter(picture)  # (H, W, 3) uint8 RGB -> (H, W) uint8
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidmatte.api import Matter, mattes, run
    from vidmatte.errors import VidmatteError
    from vidmatte.frames import Frame, Matte, VideoInfo
    from vidmatte.jobs import Progress, RunResult

__all__ = [
    "Frame",
    "Matte",
    "Matter",
    "Progress",
    "RunResult",
    "VideoInfo",
    "VidmatteError",
    "mattes",
    "run",
]

_HOMES = {
    "Frame": "frames",
    "Matte": "frames",
    "Matter": "api",
    "Progress": "jobs",
    "RunResult": "jobs",
    "VideoInfo": "frames",
    "VidmatteError": "errors",
    "mattes": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import vidmatte` loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vidmatte' has no attribute {name!r}")
    return getattr(import_module(f"vidmatte.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
