"""The command line: the only place that prints, configures logging and sets exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from vidmatte.cli.failures import hint_of, notes_of, shortage_of, tell
from vidmatte.errors import VidmatteError

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
COMMANDS = {
    "cameras": "vidmatte.cli.cameras:cameras",
    "control": "vidmatte.cli.control:control",
    "demo": "vidmatte.cli.demo:demo",
    "engines": "vidmatte.cli.engines:engines",
    "evaluate": "vidmatte.cli.evaluate:evaluate",
    "models": "vidmatte.cli.models:models",
    "report": "vidmatte.cli.report:report",
    "run": "vidmatte.cli.run:run",
    "train": "vidmatte.cli.train:train",
    "webcam": "vidmatte.cli.webcam:webcam",
}


class LazyGroup(click.Group):
    """Imports a command's module only when it is used or its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands' names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vidmatte")
def program() -> None:
    """Remove the background from video and change nothing else about it.

    Example: vidmatte run input.mp4 output.mp4 --background beach.jpg
    """


def main() -> NoReturn:
    """Run the program; turn every failure into one line and an exit code."""
    _hold_standard_descriptors()
    _escape_what_cannot_be_shown()
    _keep_blas_to_one_thread()
    try:
        code = program(prog_name="vidmatte", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        sys.stderr.write(exc.format_message() + "\n")
        code = EXIT_USAGE
    except click.ClickException as exc:
        tell(_joined(exc.format_message()), _help_of(exc))
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_INTERRUPTED
    except VidmatteError as exc:
        tell(str(exc), hint_of(exc), notes_of(exc))
        code = exc.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_ERROR
    except Exception as exc:  # a shortage, or our bug: one line for the user, the rest on request
        if os.environ.get("VIDMATTE_DEBUG"):
            raise
        what, hint = shortage_of(exc) or (
            _joined(f"internal error: {type(exc).__name__}: {exc}"),
            "set VIDMATTE_DEBUG=1 for the traceback and report it",
        )
        tell(what, hint, notes_of(exc))
        code = EXIT_ERROR
    _leave(code if isinstance(code, int) else 0)


def _joined(text: str) -> str:
    """Put the lines of somebody else's message into one."""
    return " ".join(text.split())


def _help_of(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return None if context is None else f"see: {context.command_path} --help"


def _hold_standard_descriptors() -> None:
    """Fill closed descriptors 0 to 2, or the next file to be opened gets what C libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good


def _escape_what_cannot_be_shown() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _keep_blas_to_one_thread() -> None:
    """Spare the threads of OpenBLAS: products here are small.

    The copy in OpenCV's wheel (0.3.15) crashes where memory for its threads is short, and numpy's
    interrupts the process where they cannot be started.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _leave(code: int) -> NoReturn:
    """End the process now: daemon threads that hang in C code must not hold it."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except AttributeError:
        pass  # started without standard output or error
    except (OSError, ValueError):
        code = code or EXIT_ERROR  # the reader of our results has gone
    os._exit(code)
