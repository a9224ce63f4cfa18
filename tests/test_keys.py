"""What the keys of a live session do, and that a key held down never shows the room."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from vidmatte.cli import keys
from vidmatte.cli.keys import CONFIRM_S, Bindings
from vidmatte.cli.status import LiveConsole, last_line, status_line
from vidmatte.errors import printable
from vidmatte.live.contracts import Counts, LiveResult, LiveStatus, Mode


class Session:
    def __init__(self) -> None:
        self.modes: list[Mode] = ["matte"]
        self.mirrored = self.ended = False
        self.nexts = 0
        self.said: list[str] = []

    @property
    def mode(self) -> Mode:
        return self.modes[-1]

    def show(self, mode: Mode) -> None:
        self.modes.append(mode)

    def mirror(self, on: bool) -> None:
        self.mirrored = on

    def end(self) -> None:
        self.ended = True

    def status(self) -> LiveStatus:
        return LiveStatus(mirror=self.mirrored)

    def next(self) -> None:
        self.nexts += 1


class Keyboard:
    """Presses keys at times, ticking every 50 ms in between as the session does."""

    def __init__(self) -> None:
        self.session = Session()
        self._bindings = Bindings(self.session, self.session.next, self.session.said.append)
        self._now_s = 100.0

    def press(self, key: str, after_s: float = 1.0) -> None:
        self.wait(after_s)
        self._bindings.press(key, self._now_s)

    def wait(self, seconds: float) -> None:
        end_s = self._now_s + seconds
        while self._now_s + 0.05 < end_s:
            self._now_s += 0.05
            self._bindings.tick(self._now_s)
        self._now_s = end_s


@pytest.fixture
def keyboard() -> Keyboard:
    return Keyboard()


def test_plain_keys(keyboard: Keyboard) -> None:
    session = keyboard.session
    for key in "bBm?":
        keyboard.press(key)
    assert (session.nexts, session.mirrored, len(session.said)) == (2, True, 2)
    keyboard.press("m")
    assert not session.mirrored
    for key in "fxyf":
        keyboard.press(key)
    assert session.modes == ["matte", "frozen", "matte"]
    assert not session.ended
    keyboard.press("q")
    assert session.ended


def test_a_freeze_by_the_socket_is_undone_by_a_key(keyboard: Keyboard) -> None:
    keyboard.session.show("frozen")
    keyboard.press("f")
    assert keyboard.session.mode == "matte"


def test_space_twice_shows_the_room_and_once_hides_it(keyboard: Keyboard) -> None:
    session = keyboard.session
    keyboard.press(" ")
    assert session.mode == "matte"
    keyboard.press(" ", 0.5)
    keyboard.wait(1)
    assert session.mode == "pass-through"
    keyboard.press(" ")
    assert session.mode == "matte"
    keyboard.wait(10)
    assert session.modes == ["matte", "pass-through", "matte"]


def test_a_second_press_too_late_asks_again(keyboard: Keyboard) -> None:
    keyboard.press(" ")
    keyboard.press(" ", CONFIRM_S + 0.1)
    keyboard.wait(10)
    assert keyboard.session.modes == ["matte"]
    assert len(keyboard.session.said) == 2


@pytest.mark.parametrize("other", ["b", "n", "f", "\n"])
def test_another_key_takes_the_question_back(keyboard: Keyboard, other: str) -> None:
    keyboard.press(" ")
    keyboard.press(other, 0.5)
    keyboard.press(" ", 0.5)
    keyboard.wait(10)
    assert "pass-through" not in keyboard.session.modes


@pytest.mark.fault
@pytest.mark.parametrize("pause_s", [0.25, 0.4, 0.66])
@pytest.mark.parametrize("every_s", [0.03, 0.05, 0.09])
@pytest.mark.parametrize("repeats", [2, 3, 4, 5, 40])
def test_a_key_held_down_never_shows_the_room(
    keyboard: Keyboard, pause_s: float, every_s: float, repeats: int
) -> None:
    keyboard.press(" ")
    keyboard.press(" ", pause_s)
    for _ in range(repeats - 1):
        keyboard.press(" ", every_s)
    keyboard.wait(10)
    assert keyboard.session.modes == ["matte"]


@pytest.mark.fault
def test_presses_that_come_at_once_do_not_count(keyboard: Keyboard) -> None:
    keyboard.press(" ")
    keyboard.press(" ", 0.0)  # pasted, or read late
    keyboard.wait(10)
    assert keyboard.session.modes == ["matte"]


def test_hiding_by_a_key_held_down_stays_hidden(keyboard: Keyboard) -> None:
    keyboard.session.show("pass-through")
    for pause_s in (1.0, 0.4, 0.03, 0.03, 0.03):
        keyboard.press(" ", pause_s)
    keyboard.wait(10)
    assert keyboard.session.mode == "matte"


def test_the_status_line_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    status = LiveStatus(
        state="matte",
        counts=Counts(100, 95, 4, 1, 7, 2),
        in_fps=29.97,
        out_fps=30.0,
        latency_p50_ms=23.6,
        latency_p95_ms=41.2,
        level="the network's picture is 256 px",
        device="live, OpenVINO on CPU",
        background="bea\x1bch.jpg",
    )
    line = status_line(status, 0.43)
    assert line == printable(line)
    for part in ("in 30.0 out 30.0 fps", "latency 24/41 ms", "dropped 4", "repeated 7", "CPU 43%",
                 "matte", "256 px"):  # fmt: skip
        assert part in line
    assert "GPU" not in line
    assert "GPU" in status_line(LiveStatus(device="TensorRT f16 on cuda:0"), 0.1)
    assert "ROOM SHOWN" in status_line(LiveStatus(state="pass-through"), 0.1)
    assert "nobody there" in status_line(LiveStatus(present=False), None)
    ended = LiveResult(status, 4.0)
    assert "95 pictures in 4.0 s" in last_line(ended, "a.mp4")
    assert "recorded in a.mp4" in last_line(ended, "a.mp4")
    console = LiveConsole(quiet=False, as_json=False)
    assert console.finish(ended, None) == 0
    assert console.finish(LiveResult(status, 4.0, stopped_by=15), None) == 143
    assert "\x1b" not in capsys.readouterr().err


def keys_until(key: str, terminal: keys.TerminalKeys, timeout_s: float = 5.0) -> str:
    """Read keys until `key` has come: what is written to a terminal takes a moment."""
    came, end = "", time.monotonic() + timeout_s
    while key not in came and time.monotonic() < end:
        came += "".join(terminal.read())
    return came


@pytest.mark.skipif(sys.platform == "win32", reason="no keys from the terminal")
def test_in_the_background_the_terminal_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-Z and `bg` a read or a setting would stop the whole process (SIGTTIN, SIGTTOU)."""
    import termios

    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    foreground = [slave]
    monkeypatch.setattr(keys, "_terminal", lambda: foreground[0])
    continued = signal.getsignal(signal.SIGCONT)
    try:
        with keys.TerminalKeys() as terminal:
            os.write(master, b"b")
            assert keys_until("b", terminal) == "b"
            foreground[0] = -1
            os.write(master, b"q")
            assert terminal.read() == [], "the key is the shell's"
            own = termios.tcgetattr(slave)
            terminal.restore()
            assert termios.tcgetattr(slave) == own, "the settings are the shell's"
            termios.tcsetattr(slave, termios.TCSANOW, before)
            foreground[0] = slave
            os.write(master, b"m")
            assert "m" in keys_until("m", terminal), "back in the foreground"
            assert termios.tcgetattr(slave) == own
        assert termios.tcgetattr(slave) == before
    finally:
        signal.signal(signal.SIGCONT, continued)
        os.close(master)
        os.close(slave)
