"""Group frames for the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from vidmatte.errors import CancelledError

T = TypeVar("T")


def in_batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Group items; what was gathered before an error is yielded before the error."""
    batch: list[T] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except CancelledError:
        raise
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
