"""Cameras that are files, FIFOs and drawn: stamps, pace, faults, and what a name means."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import digest, fill_picture, make_clip, plane_arrays

from vidmatte.errors import CameraLostError, InputError, UsageError
from vidmatte.frames import Frame, plane_views
from vidmatte.sources import _fifo_camera, _file_camera, _synthetic_camera
from vidmatte.sources._synthetic_camera import BUFFERS, code_of
from vidmatte.sources.camera import Camera, CameraChoice, open_camera

SIZE = (64, 48)
MICROSECOND = Fraction(1, 1_000_000)
SOON_S = 20.0  # what anything may take on a busy machine

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")


def y4m_picture(number: int) -> bytes:
    import av

    picture = av.VideoFrame(*SIZE, "yuv420p")
    fill_picture(picture, number)
    return b"FRAME\n" + b"".join(plane.tobytes() for plane in plane_arrays(picture))


Y4M_HEAD = b"YUV4MPEG2 W64 H48 F30:1 Ip A1:1 C420jpeg\n"
Y4M = [y4m_picture(n) for n in range(8)]


class Writer:
    """Another program at the writing end of a FIFO: writes, holds still, dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dies = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.pictures = 1_000_000
        self.head = Y4M_HEAD
        self.error: OSError | None = None

    def _write(self) -> None:
        try:
            with self._path.open("wb", buffering=0) as pipe:
                pipe.write(self.head)
                for number in range(self.pictures):
                    if self.dies.wait(0.01):
                        return
                    pipe.write(Y4M[number % len(Y4M)])
                self.dies.wait(SOON_S)
        except OSError as exc:
            self.error = exc

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        self._thread.start()
        try:
            yield self
        finally:
            self.dies.set()
            with suppress(OSError):  # let a writer go that waits for a reader
                os.close(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK))
            self._thread.join(SOON_S)
            assert not self._thread.is_alive()


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_fifo_camera, "WRITER_S", 0.2)
    path = tmp_path / "cam.fifo"
    os.mkfifo(path)
    return path


def opened(name: Path | str, **choice: object) -> Camera:
    """Open a camera as a session does: try again while it is away."""
    end_s = time.monotonic() + SOON_S
    while True:
        try:
            return open_camera(CameraChoice(str(name), **choice))  # type: ignore[arg-type]
        except CameraLostError:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def read_on(camera: Camera) -> None:
    """Read until the camera is lost."""
    for _ in range(10_000):
        camera.read()


def check_contract(camera: Camera, count: int = 5) -> list[Frame]:
    """Every camera: live, our clock, times that grow, no use after closing."""
    info = camera.info
    assert info.is_live
    assert (info.time_base, info.frame_count, info.duration_s) == (MICROSECOND, None, None)
    frames = [camera.read() for _ in range(count)]
    now_s = time.monotonic()
    assert [frame.index for frame in frames] == list(range(count))
    assert {frame.time_base for frame in frames} == {MICROSECOND}
    times = [frame.pts for frame in frames]
    assert all(a < b for a, b in pairwise(times))
    assert now_s - SOON_S < frames[0].time_s <= frames[-1].time_s <= now_s + 1e-3
    first = frames[0].picture
    assert (first.width, first.height, first.format.name) == (
        info.width, info.height, info.pix_fmt,
    )  # fmt: skip
    camera.close()
    camera.close()
    with pytest.raises(CameraLostError):
        camera.read()
    return frames


def test_contract_of_synthetic() -> None:
    camera = open_camera(CameraChoice("synthetic", SIZE, Fraction(200)))
    assert (camera.info.width, camera.info.height, camera.info.frame_rate) == (*SIZE, 200)
    check_contract(camera)


def test_contract_of_a_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.mp4", 8, rate=100)
    check_contract(open_camera(CameraChoice(str(clip))), 20)


@needs_fifo
def test_contract_of_a_fifo(fifo: Path) -> None:
    with Writer(fifo).writing():
        check_contract(opened(fifo))


@pytest.mark.parametrize("size", [(32, 32), (640, 360), (1280, 720), (322, 242)])
def test_every_synthetic_picture_can_be_told(size: tuple[int, int]) -> None:
    camera = open_camera(CameraChoice("synthetic", size, Fraction(500)))
    for _ in range(12):
        frame = camera.read()
        assert code_of(luma_of(frame)) == frame.index
    camera.close()


def luma_of(frame: Frame) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return plane_views(frame.picture)[0]  # type: ignore[return-value]


def test_a_code_survives_noise_and_is_not_invented() -> None:
    camera = open_camera(CameraChoice("synthetic", (640, 360), Fraction(500)))
    luma = luma_of(camera.read()).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 12, luma.shape)
    assert code_of(np.clip(luma * 0.9 + 10 + noise, 0, 255).astype(np.uint8)) == 0
    for level in (0, 16, 128, 255):
        assert code_of(np.full((360, 640), level, np.uint8)) is None
    camera.close()


def test_a_synthetic_picture_belongs_to_the_reader() -> None:
    camera = open_camera(CameraChoice("synthetic", SIZE, Fraction(500)))
    first = camera.read()
    before = digest(first.picture)
    for _ in range(3):
        camera.read()
    assert digest(first.picture) == before
    for plane in plane_views(first.picture, writable=True):
        plane[...] = 0
    assert code_of(luma_of(camera.read())) == 4
    camera.close()


def test_synthetic_keeps_the_clock() -> None:
    """Stamps lie on ticks of 1/rate, and no picture comes before its time."""
    camera = open_camera(CameraChoice("synthetic", SIZE, Fraction(100)))
    first_s = camera.read().time_s
    for _ in range(20):
        frame = camera.read()
        assert time.monotonic() >= frame.time_s - 1e-5  # stamps are rounded to microseconds
        ticks = (frame.time_s - first_s) * 100
        assert ticks == pytest.approx(round(ticks), abs=1e-3)
    camera.close()


def test_synthetic_drops_the_oldest_for_a_late_reader() -> None:
    camera = open_camera(CameraChoice("synthetic", SIZE, Fraction(100)))
    first = camera.read()
    time.sleep(0.3)
    asked_s = time.monotonic()
    late = camera.read()
    assert asked_s - late.time_s <= BUFFERS / 100 + (time.monotonic() - asked_s) + 1e-5
    assert late.time_s - first.time_s > 0.2
    assert late.index == 1
    camera.close()


def test_synthetic_can_do_without_a_size() -> None:
    camera = open_camera(CameraChoice("synthetic"))
    assert (camera.info.width, camera.info.height) == _synthetic_camera.SIZE
    assert camera.info.frame_rate == _synthetic_camera.RATE
    camera.close()


def test_synthetic_makes_sizes_even_and_refuses_tiny_ones() -> None:
    camera = open_camera(CameraChoice("synthetic", (101, 77)))
    assert (camera.info.width, camera.info.height) == (100, 76)
    camera.close()
    with pytest.raises(UsageError, match="too small"):
        open_camera(CameraChoice("synthetic", (64, 30)))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no stall of this machine pass for a pause."""
    monkeypatch.setattr(_file_camera, "LATE_S", 600.0)


def ends_a_read(camera: Camera, close: Callable[[], None]) -> None:
    """`close` from here ends a `read` that waits in another thread."""
    errors: list[BaseException] = []
    started = threading.Event()

    def read() -> None:
        try:
            while True:
                started.set()
                camera.read()
        except CameraLostError as exc:
            errors.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(SOON_S)
    close()
    reader.join(SOON_S)
    assert not reader.is_alive()
    assert "closed" in str(errors[0])


def test_closing_ends_a_wait_for_a_tick() -> None:
    camera = open_camera(CameraChoice("synthetic", SIZE, Fraction(1, 600)))
    ends_a_read(camera, camera.close)


def test_closing_ends_a_wait_for_a_due_picture(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.mp4", 2, rate=Fraction(1, 60))
    camera = open_camera(CameraChoice(str(clip)))
    ends_a_read(camera, camera.close)
    camera.close()


@needs_fifo
def test_closing_ends_a_wait_for_a_writer(fifo: Path) -> None:
    writer = Writer(fifo)
    writer.pictures = 4
    with writer.writing():
        camera = opened(fifo)
        ends_a_read(camera, camera.close)


@pytest.mark.usefixtures("patient")
def test_a_file_plays_again_without_a_gap(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.mp4", 6, rate=100)
    camera = open_camera(CameraChoice(str(clip)))
    frames = [camera.read() for _ in range(15)]
    camera.close()
    assert [b.pts - a.pts for a, b in pairwise(frames)] == [10_000] * 14
    prints = [digest(frame.picture) for frame in frames]
    assert prints[6:12] == prints[:6]
    assert prints[12:] == prints[:3]
    assert len(set(prints)) == 6


@pytest.mark.usefixtures("patient")
def test_a_file_keeps_its_own_pace(tmp_path: Path) -> None:
    pts = [0, 40, 50, 130]
    clip = make_clip(tmp_path / "c.mkv", 4, pts=pts, time_base=Fraction(1, 1000))
    camera = open_camera(CameraChoice(str(clip)))
    frames = []
    for _ in pts:
        frames.append(camera.read())
        assert time.monotonic() >= frames[-1].time_s - 1e-5
    camera.close()
    assert [round((f.pts - frames[0].pts) / 1000) for f in frames] == pts


def test_a_file_goes_on_from_now_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file_camera, "LATE_S", 0.1)
    clip = make_clip(tmp_path / "c.mp4", 30, rate=100)
    camera = open_camera(CameraChoice(str(clip)))
    camera.read()
    time.sleep(0.3)
    asked_s = time.monotonic()
    frame = camera.read()
    assert asked_s <= frame.time_s + 1e-5
    assert frame.index == 1
    camera.close()


@pytest.mark.usefixtures("patient")
def test_a_single_picture_is_shown_again(tmp_path: Path) -> None:
    still = make_clip(tmp_path / "c.png", 1, codec="png", pix_fmt="rgb24", rate=100)
    camera = open_camera(CameraChoice(str(still)))
    assert not camera.info.is_still
    frames = [camera.read() for _ in range(4)]
    assert len({digest(frame.picture) for frame in frames}) == 1
    steps = {b.pts - a.pts for a, b in pairwise(frames[1:])}
    assert len(steps) == 1
    camera.close()


@pytest.mark.usefixtures("patient")
def test_numbered_pictures_have_the_wanted_rate(tmp_path: Path) -> None:
    for number in range(3):
        make_clip(tmp_path / f"p{number}.png", 1, codec="png", pix_fmt="rgb24")
    camera = open_camera(CameraChoice(str(tmp_path / "p%d.png"), rate=Fraction(200)))
    frames = [camera.read() for _ in range(7)]
    assert {b.pts - a.pts for a, b in pairwise(frames)} == {5000}
    camera.close()


QUARTER = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]  # 90 degrees clockwise
HALF = [-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30]
MIRROR = [-(1 << 16), 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        (QUARTER, lambda plane: np.rot90(plane, -1)),
        (HALF, lambda plane: np.rot90(plane, 2)),
        (MIRROR, np.fliplr),
    ],
    ids=["quarter", "half", "mirror"],
)
def test_a_turned_file_is_an_upright_camera(
    tmp_path: Path, matrix: list[int], upright: Callable[[object], object]
) -> None:
    plain = make_clip(tmp_path / "plain.mp4", 3, rate=100)
    turned = make_clip(tmp_path / "turned.mp4", 3, rate=100, display_matrix=matrix)
    stored, shown = (open_camera(CameraChoice(str(path))) for path in (plain, turned))
    for _ in range(5):
        expected = [upright(plane) for plane in plane_arrays(stored.read().picture)]
        frame = shown.read()
        for plane, wanted in zip(plane_arrays(frame.picture), expected, strict=True):
            np.testing.assert_array_equal(plane, wanted)
    info = shown.info
    assert (info.width, info.height) == (frame.picture.width, frame.picture.height)
    assert not info.orientation.rotate_cw
    assert not info.orientation.mirror
    stored.close()
    shown.close()


@pytest.mark.fault
def test_a_file_that_is_gone_is_a_lost_camera(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.mp4", 3, rate=200)
    camera = open_camera(CameraChoice(str(clip)))
    clip.unlink()
    with pytest.raises(CameraLostError, match="no such file"):
        read_on(camera)
    camera.close()


def write_playlist(path: Path, clip: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")


@pytest.mark.fault
@pytest.mark.parametrize("name", ["list.ffconcat", "list.mp4"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str) -> None:
    write_playlist(tmp_path / name, make_clip(tmp_path / "c.mp4", 3))
    with pytest.raises(InputError, match="not a video"):
        open_camera(CameraChoice(str(tmp_path / name)))


@pytest.mark.fault
@pytest.mark.parametrize(
    "name",
    ["no/such.mp4", "missing.mov", "concat:/etc/hostname|/etc/hostname", "a\0b", "file:/etc/fstab"],
)
def test_a_missing_file_is_no_lost_camera(name: str) -> None:
    with pytest.raises(InputError) as raised:
        open_camera(CameraChoice(name))
    assert not isinstance(raised.value, CameraLostError)


@pytest.mark.fault
def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        open_camera(CameraChoice(str(tmp_path)))
    with pytest.raises(UsageError, match="empty name"):
        open_camera(CameraChoice("  "))


@pytest.mark.fault
@needs_fifo
def test_a_fifo_without_a_writer_does_not_block(fifo: Path) -> None:
    start_s = time.monotonic()
    with pytest.raises(CameraLostError, match="nobody writes"):
        open_camera(CameraChoice(str(fifo)))
    assert time.monotonic() - start_s < SOON_S / 2


@pytest.mark.fault
@needs_fifo
def test_a_fifo_whose_writer_dies_and_returns(fifo: Path) -> None:
    with Writer(fifo).writing() as writer:
        camera = opened(fifo)
        camera.read()
        writer.dies.set()
        with pytest.raises(CameraLostError, match="ended"):
            read_on(camera)
        camera.close()
        assert writer.error is None
    with pytest.raises(CameraLostError, match="nobody writes"):
        open_camera(CameraChoice(str(fifo)))
    with Writer(fifo).writing():
        camera = opened(fifo)
        assert digest(camera.read().picture)
        camera.close()


@pytest.mark.fault
@needs_fifo
@pytest.mark.parametrize("head", [b"", b"YUV4MPEG2 W64"])
def test_a_silent_writer_is_given_up(
    fifo: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(_fifo_camera, "FIRST_DATA_S", 0.3)
    writer = Writer(fifo)
    writer.head, writer.pictures = head, 0
    with writer.writing():
        assert "its writer sends nothing" in why_lost(fifo)


@pytest.mark.fault
@needs_fifo
def test_garbage_in_a_fifo_is_a_lost_camera(fifo: Path) -> None:
    writer = Writer(fifo)
    writer.head = b"ffconcat version 1.0\nfile '/etc/passwd'\n" + bytes(range(256)) * 4096
    writer.pictures = 0
    with writer.writing():
        writer.dies.set()
        assert "read as video" in why_lost(fifo)


def why_lost(fifo: Path) -> str:
    """Open until somebody writes; say why that camera is lost."""
    end_s = time.monotonic() + SOON_S
    while time.monotonic() < end_s:
        with pytest.raises(CameraLostError) as raised:
            open_camera(CameraChoice(str(fifo)))
        if "nobody writes" not in str(raised.value):
            return str(raised.value)
    return "nobody writes"


@pytest.mark.fault
@needs_fifo
def test_descriptors_of_lost_cameras_are_given_back(fifo: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(CameraLostError):
        open_camera(CameraChoice(str(fifo)))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CameraLostError):
            open_camera(CameraChoice(str(fifo)))
        with Writer(fifo).writing():
            opened(fifo).close()
    assert len(os.listdir("/proc/self/fd")) == before
