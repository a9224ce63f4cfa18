"""Progress of long work that is no run: shown a few times a second, ended where a signal asks."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vidmatte.cli.console import Console
    from vidmatte.jobs import Progress
    from vidmatte.pipeline import Stop

SHOWN_EVERY_S = 0.2


class Ticker:
    """Shows progress a few times a second, and leaves where a signal asked to.

    Without `stop` it only shows.
    """

    def __init__(self, console: Console, stop: Stop | None = None) -> None:
        self._console, self._stop = console, stop
        self._shown_s = -math.inf

    def __call__(self, progress: Progress) -> None:
        """Show `progress` if the last was a while ago. Raises click's Exit after a signal."""
        self.leave_if_asked()
        if time.monotonic() - self._shown_s >= SHOWN_EVERY_S:
            self._shown_s = time.monotonic()
            self._console.progress(progress)

    def leave_if_asked(self) -> None:
        """Raise click's Exit after a signal."""
        if self._stop is not None and self._stop.reason is not None:
            self._console.clear()
            raise click.exceptions.Exit(128 + self._stop.reason)
