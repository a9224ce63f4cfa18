"""The command `vidmatte`, and `python -m vidmatte`."""

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; a signal before a command watches for it ends without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from vidmatte.cli import main as run_command_line

    run_command_line()


LAST_S = 2.0  # what tidying up may take


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that what is half written is tidied up; end at once where that is swallowed.

    An exception in a C library's callback, where a handler may run, goes nowhere.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
        signal.setitimer(signal.ITIMER_REAL, LAST_S)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
