"""What the governor hears and what becomes of its decisions; on the computing thread."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vidmatte.live.governor import Governor, Load
from vidmatte.live.ledger import percentile

if TYPE_CHECKING:
    from vidmatte.live.contracts import Mattes
    from vidmatte.live.shared import Shared

WINDOW_S = 1.0  # that a load is measured over
EVERY_S = 0.25  # between two looks at it
START_S = 2.0  # until the first look: the other levels are being opened, and that load passes


class Governing:
    """Measures the load of one set of mattes and keeps them at the level that fits.

    A level changes between two pictures; what was given up or taken back is said in a line.
    """

    def __init__(self, shared: Shared, mattes: Mattes) -> None:
        self._shared = shared
        self._mattes = mattes
        self._governor = Governor(mattes.levels)
        self._work: deque[tuple[float, float]] = deque()  # when a picture was done, seconds spent
        self._wanted: deque[tuple[float, int]] = deque()  # when looked, pictures to be used so far
        self._next_s = shared.now() + START_S
        shared.level = ""
        self._use_rate_share()

    def heard(self, busy_s: float, now_s: float) -> None:
        """Learn of a picture that took `busy_s` seconds of work; change the level if it is time."""
        self._work.append((now_s, busy_s))
        self._wanted.append((now_s, self._shared.used))
        for times in (self._work, self._wanted):
            while times[0][0] < now_s - WINDOW_S:
                times.popleft()
        if now_s >= self._next_s and self._shared.choice.govern:
            self._next_s = now_s + EVERY_S
            self._update(now_s)

    def _update(self, now_s: float) -> None:
        governor, mattes = self._governor, self._mattes
        before = governor.level
        governor.update(self._load(), now_s, mattes.available)
        if governor.level == before:
            return
        mattes.level = governor.level
        self._use_rate_share()
        self._shared.level = governor.given_up
        self._shared.say(governor.said)

    def _load(self) -> Load:
        shared = self._shared
        wanted = self._wanted[-1][1] - self._wanted[0][1]
        return Load(
            period_s=shared.pacer.period_s * shared.rate_share,
            busy_s=percentile(sorted(busy_s for _, busy_s in self._work), 0.95),
            missed=max(0.0, 1 - (len(self._work) - 1) / wanted) if wanted > 1 else 0.0,
            network_s=self._mattes.network_s,
        )

    def _use_rate_share(self) -> None:
        shared = self._shared
        share = float(self._mattes.levels[self._governor.level].rate_share)
        if share != shared.rate_share:
            shared.pacer.expect(shared.pacer.period_s * shared.rate_share / share)
            shared.rate_share = share
