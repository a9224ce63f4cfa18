"""The preview's window: in a process of its own, so that nothing of it can hold up a session."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import pytest
from conftest import wait_until

from vidmatte.errors import OutputError
from vidmatte.sinks import preview as preview_module
from vidmatte.sinks.preview import Preview, shown_size

ON_X11 = pytest.mark.skipif(sys.platform != "linux", reason="of X11")
READ = "size = sys.stdin.buffer.read(8)\n"
SHOW = (
    "    width, height = int.from_bytes(size[:4], 'little'), int.from_bytes(size[4:], 'little')\n"
    "    data = sys.stdin.buffer.read(3 * width * height)\n"
)
WINDOWS = {
    "good": "while len(size := sys.stdin.buffer.read(8)) == 8:\n" + SHOW
    + "    if width: open(sys.argv[0] + '.bgr', 'wb').write(data); sys.stdout.buffer.write(b'b ')\n"
    "    sys.stdout.buffer.flush()\n",
    "closed by the user": READ + "sys.exit(0)\n",
    "crashing": READ + "os.abort()\n",
    "hanging": READ + "time.sleep(60)\n",
}  # fmt: skip


@pytest.fixture
def open_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Preview]]:
    """Stand a script in for the window; the previews in the list are closed at the end."""
    opened: list[Preview] = []
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setattr(preview_module, "WINDOW", tmp_path / "window.py")
    yield opened
    for preview in opened:
        preview.close()
        preview.close()
        assert preview.closed


def fake(tmp_path: Path, kind: str) -> Preview:
    start = "import os, sys, time\nsys.stdout.buffer.write(b'\\x06'); sys.stdout.buffer.flush()\n"
    (tmp_path / "window.py").write_text(start + WINDOWS[kind])
    return Preview.open()


def grey(width: int, height: int) -> av.VideoFrame:
    picture = av.VideoFrame(width, height, "yuv420p")
    for plane, value in zip(picture.planes, (126, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return picture


def test_pictures_go_out_and_keys_come_in(open_fake: list[Preview], tmp_path: Path) -> None:
    preview = fake(tmp_path, "good")
    open_fake.append(preview)
    assert preview.keys() == []
    assert not preview.closed
    preview.show(grey(1920, 1080))
    keys: list[str] = []
    wait_until(lambda: keys.extend(preview.keys()) or len(keys) == 2)
    assert keys == ["b", " "]
    assert preview.keys() == []
    data = (tmp_path / "window.py.bgr").read_bytes()
    assert len(data) == 1280 * 720 * 3
    assert abs(data[0] - 128) <= 1
    assert not preview.closed


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["closed by the user", "crashing"])
def test_a_window_that_goes_is_noticed(kind: str, open_fake: list[Preview], tmp_path: Path) -> None:
    preview = fake(tmp_path, kind)
    open_fake.append(preview)
    wait_until(lambda: preview.closed)
    preview.show(grey(64, 48))
    assert preview.keys() == []


@pytest.mark.fault
def test_a_window_that_hangs_holds_nothing_up(
    open_fake: list[Preview], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_module, "END_S", 0.2)
    preview = fake(tmp_path, "hanging")
    open_fake.append(preview)
    began_s = time.monotonic()
    for _ in range(50):
        preview.show(grey(1280, 720))
        preview.keys()
    preview.close()
    assert time.monotonic() - began_s < 10


def test_no_display_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("of X11 and Wayland")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(OutputError, match="there is no display") as caught:
        Preview.open()
    assert "--preview" in (caught.value.hint or "")


@ON_X11
@pytest.mark.fault
def test_a_display_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(OutputError, match=r"no window can be opened: .*display"):
        Preview.open()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("script", "words"),
    [("import sys; sys.exit('it broke')", "it broke"), ("", "ended itself"),
     ("import time; time.sleep(60)", "does not answer")],
)  # fmt: skip
def test_a_window_that_does_not_open_is_an_error(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "window.py").write_text(script)
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setattr(preview_module, "WINDOW", tmp_path / "window.py")
    monkeypatch.setattr(preview_module, "OPEN_S", 20.0 if "sleep" not in script else 0.2)
    with pytest.raises(OutputError, match=words):
        Preview.open()


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """The server of a display without a screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"],
        pass_fds=[write],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as answer:
        monkeypatch.setenv("DISPLAY", f":{answer.readline().strip()}")
    yield server
    server.terminate()
    server.wait()


@ON_X11
@pytest.mark.fault
def test_a_real_window_opens_beside_pyav_and_dies_with_its_display(
    display: subprocess.Popen[bytes],
) -> None:
    """In a process that has loaded PyAV, OpenCV's window hung for ever."""
    assert "av" in sys.modules
    preview = Preview.open()
    try:
        for _ in range(5):
            preview.show(grey(320, 180))
            time.sleep(0.05)
        assert not preview.closed
        display.terminate()
        wait_until(lambda: preview.closed)
    finally:
        preview.close()


# Uncovers the windows and gives them the focus, as the window manager would that Xvfb has not,
# looks at the middle of the screen until it has a colour, then presses
# keys. Xlib must not be used where PyAV is loaded.
USER = """
import ctypes, sys, time
X, XTest = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
X.XOpenDisplay.restype = X.XGetImage.restype = ctypes.c_void_p
X.XDefaultRootWindow.restype = X.XGetPixel.restype = ctypes.c_ulong
display = ctypes.c_void_p(X.XOpenDisplay(None))
root = ctypes.c_ulong(X.XDefaultRootWindow(display))
ignored = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: 0)
X.XSetErrorHandler(ignored)  # a helper window of Qt's cannot have the focus

def manage_windows():
    nobody, count = ctypes.c_ulong(), ctypes.c_uint()
    windows = ctypes.POINTER(ctypes.c_ulong)()
    X.XQueryTree(display, root, *map(ctypes.byref, (nobody, nobody, windows, count)))
    for window in map(ctypes.c_ulong, windows[: count.value]):
        X.XClearArea(display, window, 0, 0, 0, 0, 1)
        X.XSetInputFocus(display, window, 2, ctypes.c_ulong(0))
    X.XSync(display, 0)

wanted = tuple(map(int, sys.argv[1:4]))
end = time.monotonic() + float(sys.argv[4])
while time.monotonic() < end:
    image = X.XGetImage(display, root, 320, 240, 1, 1, ctypes.c_ulong(0xFFFFFF), 2)
    value = X.XGetPixel(ctypes.c_void_p(image), 0, 0)
    seen = value >> 16 & 255, value >> 8 & 255, value & 255
    if max(abs(a - b) for a, b in zip(seen, wanted)) <= 4:
        break
    manage_windows()
    time.sleep(0.1)
else:
    sys.exit(f"the screen shows {seen}")
for line in sys.stdin:  # one at a time: OpenCV keeps the latest key only
    manage_windows()
    code = X.XKeysymToKeycode(display, ctypes.c_ulong(ord(line[0])))
    for down in (1, 0):
        XTest.XTestFakeKeyEvent(display, code, down, 0)
    X.XSync(display, 0)
"""


def keys_through(preview: Preview, picture: av.VideoFrame, seen_within_s: float) -> str | None:
    """Show a picture until it is seen, then press keys; return them, None if it is not seen."""
    command = [sys.executable, "-c", USER, "255", "1", "2", str(seen_within_s)]
    arrived = ""
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as user:
        assert user.stdin is not None
        for key in "b q":
            with suppress(BrokenPipeError):
                user.stdin.write(f"{key}\n")
                user.stdin.flush()
            end_s = time.monotonic() + 30
            while not arrived.endswith(key):
                preview.show(picture)
                if user.poll() is not None:
                    return None
                assert time.monotonic() < end_s, f"key {key!r} did not arrive"
                time.sleep(0.01)
                arrived += "".join(preview.keys())
    return arrived


@ON_X11
@pytest.mark.usefixtures("display")
def test_the_screen_shows_the_picture_and_its_keys_arrive() -> None:
    """One window of OpenCV 5 in six stays black under Xvfb, in a loop of three lines, too."""
    for library in ("libX11.so.6", "libXtst.so.6"):
        try:
            ctypes.CDLL(library)
        except OSError:
            pytest.skip(f"needs {library} to look at the screen and to press keys")
    red = av.VideoFrame(640, 480, "yuv420p")
    for plane, value in zip(red.planes, (63, 102, 240), strict=True):  # of BT.709, limited
        plane.update(bytes([value]) * plane.buffer_size)
    red.colorspace, red.color_range = 1, 1
    arrived = None
    for seen_within_s in (2, 4, 8, 8, 8, 8):
        preview = Preview.open()
        try:
            arrived = keys_through(preview, red, seen_within_s)
        finally:
            preview.close()
        if arrived is not None:
            break
    assert arrived == "b q"


def test_large_pictures_are_shown_smaller() -> None:
    assert shown_size(1280, 720) == (1280, 720)
    assert shown_size(1920, 1080) == (1280, 720)
    assert shown_size(1080, 1920) == (405, 720)
    assert shown_size(64, 48) == (64, 48)
