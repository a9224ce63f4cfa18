"""The command `vidmatte`, and `python -m vidmatte`."""

import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; a signal before a command watches for it ends without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from vidmatte.cli import main as run_command_line

    run_command_line()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that what is half written is tidied up."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
