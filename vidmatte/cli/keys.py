"""Keys of a live session: read from the terminal, and what each of them does."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from vidmatte.live.contracts import LiveStatus, Mode

try:
    import termios
except ImportError:  # Windows: the preview has keys, the terminal has none
    termios = None  # type: ignore[assignment]

CONFIRM_S = 3.0  # after the first press of space, within which the second one counts
# Presses of space closer than this are a key that is held down, which must not show the room: it
# repeats every 30 to 90 ms, after a first pause of 250 to 660 ms that looks like a second press.
HELD_S = 0.2
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]?|O.|.)?")  # ECMA-48's: arrows and the like
HELP = "keys: b next background, space show the camera as it is, f freeze, m mirror, q quit"


class TerminalKeys:
    """Reads single keys from the terminal without waiting, and always leaves it as it was.

    Without a terminal, or in the background of one, there are no keys. Used by the main thread;
    `restore` may be called in a signal handler.
    """

    def __init__(self) -> None:
        self._descriptor = _terminal()
        self._before = None if self._descriptor < 0 else termios.tcgetattr(self._descriptor)
        self._is_ours = self._before is not None

    def __enter__(self) -> Self:
        if self._before is not None:
            self._set_single_keys()
            signal.signal(signal.SIGCONT, self._continued)
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the terminal its own settings back; harmless when nothing was changed."""
        if self._before is not None and _terminal() >= 0:  # else a shell has it: SIGTTOU stops us
            with suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)

    def read(self) -> list[str]:
        """Return the keys pressed since the last call; arrows and the like are left out."""
        if self._before is None or not self._has_terminal():
            return []
        if not select.select([self._descriptor], [], [], 0)[0]:
            return []
        try:
            data = os.read(self._descriptor, 256)
        except OSError:  # the terminal has gone, or another program has it now
            data = b""
        if not data:
            self._before = None
            return []
        return list(_ESCAPES.sub("", data.decode("utf-8", "replace")))

    def _has_terminal(self) -> bool:
        """Whether its keys are for us; after Ctrl-Z and `bg` reading them would stop us."""
        was_ours, self._is_ours = self._is_ours, _terminal() >= 0
        if self._is_ours and not was_ours:
            with suppress(termios.error):
                self._set_single_keys()
        return self._is_ours

    def _set_single_keys(self) -> None:
        """Hand over each key at once and unseen; Ctrl-C stays a signal."""
        settings = termios.tcgetattr(self._descriptor)
        settings[3] &= ~(termios.ICANON | termios.ECHO)
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, settings)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """Set the terminal up again after Ctrl-Z and `fg`."""
        if _terminal() >= 0:
            with suppress(termios.error):
                self._set_single_keys()


def _terminal() -> int:
    """Return standard input's descriptor if it is a terminal that we may read, else -1."""
    if termios is None or sys.stdin is None or sys.stdin.closed:
        return -1
    try:
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp():
            return descriptor
    except (OSError, ValueError):
        pass
    return -1


class Session(Protocol):
    """The part of a live session that keys act on."""

    @property
    def mode(self) -> Mode:
        """What is wanted now."""

    def show(self, mode: Mode) -> None:
        """Matte, freeze, or show the camera as it is."""

    def mirror(self, on: bool) -> None:
        """Flip the camera's picture."""

    def end(self) -> None:
        """End the session."""

    def status(self) -> LiveStatus:
        """Say how it is doing."""


class Bindings:
    """What the keys do. Times are seconds of one clock and come as arguments.

    Space shows the camera as it is only when it is pressed twice, and hides it at once. Call
    `tick` often: the second press takes effect there, when it is clear that the key is not held.
    """

    def __init__(
        self, session: Session, next_background: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._session, self._next, self._say = session, next_background, say
        self._space_s = float("-inf")
        self._asked_s: float | None = None
        self._confirmed_s: float | None = None

    def press(self, key: str, now_s: float) -> None:
        """Do what a key stands for; any key but space takes the question back."""
        gap_s, self._space_s = now_s - self._space_s, now_s if key == " " else self._space_s
        if key == " " and gap_s >= HELD_S:
            self._space(now_s)
            return
        self._asked_s = self._confirmed_s = None
        action = self._actions().get(key.lower())
        if action is not None:
            action()

    def tick(self, now_s: float) -> None:
        """Show the camera as it is if a second press has stayed the last one."""
        if self._confirmed_s is not None and now_s - self._confirmed_s >= HELD_S:
            self._asked_s = self._confirmed_s = None
            self._show("pass-through", "the camera is shown as it is; press space to hide it")

    def _space(self, now_s: float) -> None:
        if self._session.mode == "pass-through":
            self._show("matte", "the background is removed again")
        elif self._asked_s is None or now_s - self._asked_s > CONFIRM_S:
            self._asked_s = now_s
            seconds = f"{CONFIRM_S:g} s"
            self._say(f"show the room? press space once more within {seconds}, or any other key")
        else:
            self._confirmed_s = now_s

    def _actions(self) -> dict[str, Callable[[], None]]:
        return {
            "b": self._next,
            "f": self._freeze,
            "m": self._mirror,
            "q": self._session.end,
            "?": lambda: self._say(HELP),
            "h": lambda: self._say(HELP),
        }

    def _freeze(self) -> None:
        if self._session.mode == "frozen":
            self._show("matte", "resumed")
        else:
            self._show("frozen", "frozen; press f to resume")

    def _mirror(self) -> None:
        on = not self._session.status().mirror
        self._session.mirror(on)
        self._say(f"mirror {'on' if on else 'off'}")

    def _show(self, mode: Mode, said: str) -> None:
        self._session.show(mode)
        self._say(said)
