"""Put texts into HTML so that none of them can become a part of it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from vidmatte.errors import printable


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def fill(template: str, /, **values: object) -> Html:
    """Fill a template as `str.format` does; every value that is not Html is escaped.

    What acts on a terminal (directions, controls) is shown as an escape, as everywhere.
    """
    return Html(template.format(**{name: _safe(value) for name, value in values.items()}))


def joined(parts: Iterable[Html]) -> Html:
    """Put pieces of HTML one after another."""
    return Html("".join(parts))


def _safe(value: object) -> str:
    return value if isinstance(value, Html) else escape(printable(value), quote=True)
