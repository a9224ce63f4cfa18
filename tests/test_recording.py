"""Recording a live session: each picture at its time, never in the way, whole or named."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event

import av
import numpy as np
import pytest
from conftest import decode, leftovers, make_clip, plane_arrays, times_of, wait_until

from vidmatte.errors import OutputError, UsageError, VidmatteError
from vidmatte.frames import Colour, VideoInfo, plane_views
from vidmatte.live import recording as recording_module
from vidmatte.live.recording import WAITING_PICTURES, Recording
from vidmatte.pipeline import Crew
from vidmatte.sinks.file import FileSink

SIZE = 64, 48
INFO = VideoInfo(
    "camera",
    *SIZE,
    "yuv420p",
    Fraction(1, 1_000_000),
    Fraction(30),
    colour=Colour(1, 1, 1, 1),
    is_live=True,
)


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    assert crew.join() == []
    crew.check()


def picture_of(luma: int) -> av.VideoFrame:
    picture = av.VideoFrame(*SIZE, "yuv420p")
    for plane, value in zip(plane_views(picture, writable=True), (luma, 128, 128), strict=True):
        plane[...] = value
    return picture


def lumas(path: Path) -> list[int]:
    return [int(np.median(plane_arrays(p)[0])) for p in decode(path)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_pictures_keep_the_times_they_were_sent_at(suffix: str, tmp_path: Path, crew: Crew) -> None:
    target = tmp_path / f"call{suffix}"
    recording = Recording(str(target))
    recording.start(INFO, crew)
    sent_s = [1000.0, 1000.033, 1000.1, 1000.11, 1000.5]
    for step, time_s in enumerate(sent_s):
        recording.offer(picture_of(40 + 40 * step), time_s)
    assert not target.exists()  # a part until the end
    recording.close()
    recording.close()
    times = [float(t) for t in times_of(target)]
    assert times == pytest.approx([t - sent_s[0] for t in sent_s], abs=1e-3)
    assert lumas(target) == pytest.approx([40, 80, 120, 160, 200], abs=2)
    assert leftovers(tmp_path, target.name) == []
    assert (recording.written, recording.dropped, recording.events()) == (5, 0, [])


def test_colour_tags_are_the_sessions(tmp_path: Path, crew: Crew) -> None:
    recording = Recording(str(tmp_path / "a.mp4"))
    recording.start(INFO, crew)
    recording.offer(picture_of(100), 0.0)
    recording.close()
    picture = decode(tmp_path / "a.mp4")[0]
    assert (int(picture.colorspace), int(picture.color_range)) == (1, 1)


def test_a_picture_that_stays_is_written_now_and_then(tmp_path: Path, crew: Crew) -> None:
    recording = Recording(str(tmp_path / "a.mkv"))
    recording.start(INFO, crew)
    picture = picture_of(100)
    for step in range(61):
        recording.offer(picture, step / 30)
    recording.close()
    assert [float(t) for t in times_of(tmp_path / "a.mkv")] == pytest.approx(
        [0, 0.5, 1.0, 1.5, 2.0], abs=0.04
    )
    assert picture.pts is None  # shared: never stamped


class Slow:
    """Holds up every write to a file until let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.began = Event(), Event()
        write = FileSink.write

        def wait_and_write(sink: FileSink, picture: av.VideoFrame) -> None:
            self.began.set()
            assert self.go.wait(20)
            write(sink, picture)

        monkeypatch.setattr(FileSink, "write", wait_and_write)


@pytest.mark.fault
def test_a_slow_encoder_drops_and_counts(
    tmp_path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    recording = Recording(str(tmp_path / "a.mkv"))
    recording.start(INFO, crew)
    recording.offer(picture_of(16), 0.0)
    assert slow.began.wait(10)
    for step in range(1, 101):
        recording.offer(picture_of(16 + step), step / 30)
    assert recording.dropped == 100 - WAITING_PICTURES
    still = picture_of(200)
    for step in range(1000):  # a picture that stays is no loss and takes no room
        recording.offer(still, 100 + step)
    assert len(recording._waiting) == WAITING_PICTURES
    slow.go.set()
    recording.close()
    assert recording.written == 1 + WAITING_PICTURES
    assert len(decode(tmp_path / "a.mkv")) == 1 + WAITING_PICTURES


@pytest.mark.fault
def test_large_pictures_are_bounded_in_bytes(
    tmp_path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    monkeypatch.setattr(recording_module, "WAITING_BYTES", 3 * 64 * 48 * 3 // 2)
    recording = Recording(str(tmp_path / "a.mkv"))
    recording.start(INFO, crew)
    recording.offer(picture_of(16), 0.0)
    assert slow.began.wait(10)
    for step in range(1, 11):
        recording.offer(picture_of(16 + step), step / 30)
    slow.go.set()
    recording.close()
    assert recording.dropped == 7


@pytest.mark.fault
def test_a_disk_that_hangs_is_named_with_the_part(
    tmp_path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    monkeypatch.setattr(recording_module, "FINISH_S", 0.05)
    recording = Recording(str(tmp_path / "a.mkv"))
    recording.start(INFO, crew)
    recording.offer(picture_of(16), 0.0)
    with pytest.raises(OutputError, match="does not answer") as caught:
        recording.close()
    assert caught.value.__notes__ == [f"what was written is in {tmp_path / 'a.part.mkv'}"]
    slow.go.set()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.fault
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_ends_the_recording_not_the_session(tmp_path: Path, crew: Crew) -> None:
    recording = Recording(str(tmp_path / "a.mkv"))
    recording.start(INFO, crew)
    noise = np.random.default_rng(1)
    heard: list[str] = []

    def failed() -> bool:
        picture = picture_of(0)
        plane_views(picture, writable=True)[0][...] = noise.integers(16, 235, SIZE[::-1], np.uint8)
        failed.step += 1  # type: ignore[attr-defined]
        recording.offer(picture, failed.step / 30)  # type: ignore[attr-defined]
        heard.extend(recording.events())
        return bool(heard)

    failed.step = 0  # type: ignore[attr-defined]
    wait_until(failed)
    recording.offer(picture_of(0), 1e6)  # goes nowhere, in silence
    part = tmp_path / "a.part.mkv"
    assert heard == [
        f"the recording ends: {tmp_path / 'a.mkv'}: the file would be larger than allowed"
        f"; what was finished is in {part}"
    ]
    with pytest.raises(OutputError, match="larger than allowed") as caught:
        recording.close()
    assert caught.value.__notes__ == [f"what was finished is in {part}"]
    assert len(decode(part)) > 0
    assert not (tmp_path / "a.mkv").exists()
    crew.check()


def test_nothing_sent_leaves_nothing(tmp_path: Path, crew: Crew) -> None:
    recording = Recording(str(tmp_path / "a.mp4"))
    recording.start(INFO, crew)
    recording.close()
    assert recording.events() == [f"{tmp_path / 'a.mp4'}: nothing was recorded"]
    assert leftovers(tmp_path) == []


def test_a_session_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    recording = Recording(str(tmp_path / "a.mp4"))
    recording.offer(picture_of(0), 0.0)
    recording.close()
    assert recording.events() == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["-", "call_%04d.png", "call.png", "call.gif", "call.apng", "call.txt", "call"]
)
def test_only_video_files_are_recorded_to(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Recording(name if name == "-" else str(tmp_path / name))


def test_what_exists_is_kept_unless_overwritten(tmp_path: Path, crew: Crew) -> None:
    target = make_clip(tmp_path / "a.mp4", 3)
    with pytest.raises(OutputError, match="exists already"):
        Recording(str(target))
    with pytest.raises(VidmatteError, match="folder does not exist"):
        Recording(str(tmp_path / "absent" / "a.mp4"))
    recording = Recording(str(target), overwrite=True)
    recording.start(INFO, crew)
    recording.offer(picture_of(0), 0.0)
    assert len(decode(target)) == 3
    recording.close()
    assert len(decode(target)) == 1
