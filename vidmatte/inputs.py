"""Resolve what the user named as an input: a file, standard input, or numbered pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vidmatte.errors import UsageError
from vidmatte.sequences import is_sequence
from vidmatte.sources import Source
from vidmatte.sources.file import FileSource
from vidmatte.sources.images import DEFAULT_RATE, ImageSequenceSource

if TYPE_CHECKING:
    import av

    Packet = av.Packet[av.stream.Stream]


def source_of(
    name: str,
    *,
    rate: Fraction | None = None,
    threads: int = 0,
    start_s: float | None = None,
    end_s: float | None = None,
    max_pixels: int | None = None,
    on_packet: Callable[[Packet], None] | None = None,
) -> Source:
    """Choose the kind of source by its name; a file that is called like a pattern is a file.

    `rate` is the frames per second of numbered pictures and of nothing else. Raises UsageError.
    """
    if is_sequence(Path(name)) and not os.path.lexists(name):
        return ImageSequenceSource(
            name,
            rate=rate or DEFAULT_RATE,
            start_s=start_s,
            end_s=end_s,
            max_pixels=max_pixels,
        )
    if rate is not None:
        raise UsageError(
            f"{name}: has its own frame rate", hint="--rate is for pictures like frame_%04d.png"
        )
    return FileSource(
        name,
        threads=threads,
        start_s=start_s,
        end_s=end_s,
        max_pixels=max_pixels,
        on_packet=on_packet,
    )
