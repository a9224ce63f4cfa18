"""What may be shown at this moment: the rules that keep the room out of sight; pure.

All times are seconds of one clock and come as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import av

    from vidmatte.live.contracts import Mode

STALE_S = 0.195  # the age from which a picture is not sent any more: 200 ms when it arrives
CALM_S = 5.0  # after which a picture that stays away is forgiven
HOLD_S = 0.5  # without a gap, before it is forgiven earlier: the background stays that long
THAW_S = 1.0  # what the first new picture may take after a freeze
INTERVALS = 2  # what a new picture may wait beyond the work on it


@dataclass(frozen=True, slots=True)
class Ready:
    """A picture that could be sent. `bare`: it shows the room, which must be wanted.

    `capture_s`, `taken_s` and `ready_s` are when it was captured, when the work on it began, and
    when that ended.
    """

    picture: av.VideoFrame
    capture_s: float
    taken_s: float
    ready_s: float
    bare: bool


Verdict = Literal["new", "again", "closed"]


class Shutter:
    """Decides what each tick sends: a new picture, the last one again, or the background alone.

    Nothing older than STALE_S is sent, but for a picture frozen on purpose. A bare picture is
    sent only while bare pictures are wanted. When pictures stay away again and again, the
    background stays until they come without a gap, instead of flickering.
    """

    def __init__(self) -> None:
        self.last: Ready | None = None
        self._mode: Mode = "matte"
        self._held: Ready | None = None  # frozen
        self._thaw_until_s = 0.0
        self._is_open = False
        self._opened_s = float("-inf")
        self._reopen_s = self._usable_s = float("-inf")
        self._not_before_s = float("-inf")

    def forget(self, now_s: float) -> None:
        """Show nothing any more that was captured before `now_s`, but for what is frozen."""
        self._not_before_s = now_s
        self.last = None
        self._is_open = False  # without holding it against the pictures to come

    def decide(
        self, candidate: Ready | None, now_s: float, *, mode: Mode, bare: bool, period_s: float
    ) -> tuple[Verdict, Ready | None]:
        """Return what to send, and which picture; a candidate that is not "new" is to be dropped.

        `mode` is what the user wants now, `bare` whether `none` is the background now, `period_s`
        the time between ticks.
        """
        self._switch(mode, now_s, bare=bare)
        if mode == "frozen":
            if self._held is not None and not self._wants(self._held, bare):
                self._held = None  # `none` has been left meanwhile
            return self._again(self._held)
        usable = candidate is not None and self._is_usable(candidate, now_s, period_s, bare=bare)
        if self._is_holding(now_s, usable=usable):
            return "closed", None
        if usable:
            assert candidate is not None
            return self._show(candidate, now_s)
        if self._held is not None and now_s < self._thaw_until_s and self._wants(self._held, bare):
            return self._again(self._held)
        return self._repeat(now_s, bare=bare)

    def _switch(self, mode: Mode, now_s: float, *, bare: bool) -> None:
        """Hold the last picture when a freeze begins, let it go some time after it ends."""
        if mode == self._mode:
            return
        if mode == "frozen":
            last = self.last
            is_fit = last is not None and (bare or not last.bare)
            self._held = last if last and is_fit and self._is_fresh(last, now_s) else None
        elif self._mode == "frozen":
            self._thaw_until_s = now_s + THAW_S
        self._mode = mode

    def _wants(self, ready: Ready, bare: bool) -> bool:
        return not ready.bare or bare or self._mode == "pass-through"

    def _is_fresh(self, ready: Ready, now_s: float) -> bool:
        return now_s - ready.capture_s <= STALE_S and ready.capture_s >= self._not_before_s

    def _is_usable(self, ready: Ready, now_s: float, period_s: float, *, bare: bool) -> bool:
        waited_s = (now_s - ready.capture_s) - (ready.ready_s - ready.taken_s)
        in_time = waited_s <= INTERVALS * period_s and self._is_fresh(ready, now_s)
        return in_time and self._wants(ready, bare)

    def _is_holding(self, now_s: float, *, usable: bool) -> bool:
        """Whether the background stays; for longer where pictures would still not come in time."""
        if now_s >= self._reopen_s:
            return False
        if usable:
            self._usable_s = now_s
        elif now_s - self._usable_s > STALE_S:
            self._reopen_s = now_s + HOLD_S
        return True

    def _show(self, ready: Ready, now_s: float) -> tuple[Verdict, Ready]:
        if not self._is_open:
            self._is_open, self._opened_s = True, now_s
        self._held = None
        self.last = ready
        return "new", ready

    def _repeat(self, now_s: float, *, bare: bool) -> tuple[Verdict, Ready | None]:
        """Send the last picture again, or close: at once, where what it shows is unwanted now."""
        last, self._held = self.last, None
        if last is not None and not self._wants(last, bare):
            self.last = None
            return "closed", None
        if last is not None and self._is_fresh(last, now_s):
            return "again", last
        self.last = None
        if self._is_open:
            self._close(now_s)
        return "closed", None

    @staticmethod
    def _again(held: Ready | None) -> tuple[Verdict, Ready | None]:
        return ("closed", None) if held is None else ("again", held)

    def _close(self, now_s: float) -> None:
        """Begin to show the background; for a while when the last time was not long ago."""
        self._is_open = False
        self._usable_s = now_s
        if now_s - self._opened_s <= CALM_S:
            self._reopen_s = now_s + HOLD_S
