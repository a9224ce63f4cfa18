"""What scenarios of messages are made of.

What `prepare` returns is called when the command has ended, if it can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

Patch = pytest.MonkeyPatch
Prepare = Callable[[Path, Patch], object]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command, and what is done to the folder or the process before it."""

    command: str
    prepare: Prepare | None = None


def nothing(*_: object, **__: object) -> None:
    """Stand for a function that does nothing."""


def write(name: str, data: bytes | str) -> Prepare:
    raw = data.encode() if isinstance(data, str) else data
    return lambda folder, patch: (folder / name).write_bytes(raw)


def failing(target: str, name: str, error: BaseException) -> Prepare:
    """Replace a function by one that raises."""

    def broken(*_: object, **__: object) -> None:
        raise error

    return lambda folder, patch: patch.setattr(f"{target}.{name}", broken)


def without(*modules: str) -> Prepare:
    """Make modules impossible to import."""

    def prepare(folder: Path, patch: Patch) -> None:
        for name in modules:
            patch.setitem(sys.modules, name, None)

    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(folder: Path, patch: Patch) -> None:
        for step in steps:
            step(folder, patch)

    return prepare
