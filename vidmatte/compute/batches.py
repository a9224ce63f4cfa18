"""Take frames in groups, and up to an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from vidmatte.errors import CancelledError

T = TypeVar("T")


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group items by `size`; the last group may be smaller."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def until_error(items: Iterable[T], errors: list[Exception]) -> Iterator[T]:
    """Yield items up to an error, which is put into `errors` for the caller to raise behind them.

    A cancelled run passes through at once.
    """
    try:
        yield from items
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - the caller raises it when it has done its work
        errors.append(error)
