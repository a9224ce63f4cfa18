"""Errors are one printable line, with an exit code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidmatte import errors
from vidmatte.errors import UsageError, VidmatteError, printable


@pytest.mark.fault
@given(st.text())
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb", r"a\nb"),
        ("a\u202eb", r"a\u202eb"),
        ("a\udc80b", r"a\udc80b"),
        ("a\u2028b", r"a\u2028b"),
        ("grün 木", "grün 木"),
    ],
)
def test_what_is_escaped(raw: str, shown: str) -> None:
    assert printable(raw) == shown


@pytest.mark.fault
def test_message_and_hint_are_printable() -> None:
    error = VidmatteError("no\n such", hint="do\x07")
    assert str(error) == r"no\n such"
    assert error.hint == r"do\x07"
    assert VidmatteError("x").hint is None


def test_exit_codes() -> None:
    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, VidmatteError)
    }
    assert codes == {
        "VidmatteError": 1, "UsageError": 2, "InputError": 1, "OutputError": 1,
        "ModelError": 1, "BackendError": 1, "CancelledError": 130,
        "CameraLostError": 1, "VirtualCameraLostError": 1,
    }  # fmt: skip
    assert issubclass(UsageError, VidmatteError)
