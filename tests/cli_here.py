"""Run the command line inside this process: as `main` does it, but for the end of the process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NoReturn

import pytest

from vidmatte import cli
from vidmatte.cli import console


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Its `error:` lines."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def refusal(self) -> str:
        """The one `error:` line of a refusal; fails on anything but that and one hint."""
        assert self.code in (1, 2), (self.code, self.err)
        assert len(self.errors) == 1, self.err
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        assert sum(line.startswith("hint: ") for line in self.err.splitlines()) <= 1, self.err
        return self.errors[0]


class _Left(BaseException):
    """Stands for the end of the process."""


class CliHere:
    """`cli_here(*arguments)` runs one command and returns what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self._code = 0
        monkeypatch.setattr(cli, "_leave", self._leave)
        monkeypatch.setattr(console, "watch_signals", lambda stop, **_: None)
        monkeypatch.delenv("VIDMATTE_DEBUG", raising=False)

    def _leave(self, code: int) -> NoReturn:
        self._code = code
        raise _Left

    def __call__(self, *arguments: object) -> Done:
        """Run `vidmatte ARGUMENTS`; also what C libraries print is caught."""
        self._monkeypatch.setattr(sys, "argv", ["vidmatte", *map(str, arguments)])
        self._capfd.readouterr()
        with pytest.raises(_Left):
            cli.main()
        out, err = self._capfd.readouterr()
        return Done(self._code, out, err)
