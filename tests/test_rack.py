"""The rack of live backgrounds: first one ready, switches whole, folder watched, never the room."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import make_clip, plane_arrays, wait_until
from traps import Bait, Listener

from vidmatte.backdrop import Backdrop
from vidmatte.compute.cpu.background import Background
from vidmatte.errors import InputError, UsageError, VidmatteError
from vidmatte.frames import Frame, VideoInfo, layout_of
from vidmatte.live import rack as rack_module
from vidmatte.live.ahead import AHEAD_PICTURES, AHEAD_S, AheadBackground
from vidmatte.live.folder import PATIENCE, WatchedFolder
from vidmatte.live.rack import BackgroundRack
from vidmatte.pipeline import Crew

SIZE = 64, 48
MICROSECOND = Fraction(1, 1_000_000)
INFO = VideoInfo("camera", *SIZE, "yuv420p", MICROSECOND, Fraction(30), is_live=True)
LAYOUT = layout_of("yuv420p")
assert LAYOUT is not None
ALPHA = np.zeros(SIZE[::-1], np.uint8)
LUMA = {"green": 121, "red": 81, "blue": 41, "white": 235, "black": 16}  # BT.601 limited
Start = Callable[..., BackgroundRack]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start racks; close them and wait for their threads at the end."""
    monkeypatch.setattr(rack_module, "SCAN_S", 0.02)
    racks: list[BackgroundRack] = []
    crew = Crew()

    def begin(*names: object) -> BackgroundRack:
        rack = BackgroundRack([str(name) for name in names])
        racks.append(rack)
        rack.start(INFO, LAYOUT, crew)
        return rack

    yield begin
    for rack in racks:
        rack.close()
    assert crew.join() == []
    crew.check()


def picture_file(path: Path, rgb: tuple[int, int, int]) -> Path:
    frame = av.VideoFrame.from_ndarray(np.full((30, 40, 3), rgb, np.uint8), format="rgb24")
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "rgb24"
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def frame_at(time_s: float) -> Frame:
    return Frame(av.VideoFrame(*SIZE, "yuv420p"), 0, round(time_s * 1e6), MICROSECOND)


def luma_of(background: Background | None, time_s: float = 0.0) -> int:
    assert background is not None
    if background.constant is not None:
        return background.constant[0]
    return int(np.median(background.planes(frame_at(time_s), ALPHA)[0]))


def alone(rack: BackgroundRack) -> int:
    """Median luma of the background shown without anybody before it."""
    return int(np.median(plane_arrays(rack.closed_picture())[0]))


def shows(rack: BackgroundRack, colour: str) -> bool:
    return abs(luma_of(rack.current()) - LUMA[colour]) <= 1


def said(rack: BackgroundRack, word: str) -> Callable[[], bool]:
    heard: list[str] = []

    def condition() -> bool:
        heard.extend(rack.events())
        return any(word in line for line in heard)

    return condition


def test_the_first_background_is_there_at_the_start(start: Start) -> None:
    rack = start("red", "blue")
    assert shows(rack, "red")
    assert abs(alone(rack) - LUMA["red"]) <= 1
    assert rack.label == "red"


def test_next_goes_round(start: Start) -> None:
    rack = start("red", "blue", "white")
    for colour in ("blue", "white", "red", "blue"):
        rack.next()
        wait_until(lambda colour=colour: shows(rack, colour))
        assert abs(alone(rack) - LUMA[colour]) <= 1


def test_presses_in_a_row_count_each(start: Start) -> None:
    rack = start("red", "blue", "white", "black")
    for _ in range(3):
        rack.next()
    wait_until(lambda: shows(rack, "black"))


def test_none_is_the_camera_as_it_is_but_never_when_closed(start: Start) -> None:
    rack = start("none", "red")
    assert rack.current() is None
    assert alone(rack) == pytest.approx(57, abs=2)  # dark grey
    rack.next()
    wait_until(lambda: rack.current() is not None)
    rack.choose("none")
    wait_until(lambda: rack.current() is None)


def test_none_is_not_reached_unless_asked_for_at_the_start(start: Start) -> None:
    rack = start("red", "blue")
    with pytest.raises(UsageError, match="shows the room"):
        rack.choose("none")
    assert shows(rack, "red")


def test_next_without_none_passes_over_it(start: Start) -> None:
    rack = start("red", "none", "blue")
    rack.next(with_none=False)
    wait_until(lambda: shows(rack, "blue"))
    rack.next(with_none=False)
    wait_until(lambda: shows(rack, "red"))


def test_blur_alone_is_grey(start: Start) -> None:
    rack = start("blur:3")
    background = rack.current()
    assert background is not None
    assert background.constant is None
    assert len(np.unique(plane_arrays(rack.closed_picture())[0])) == 1


def test_a_video_goes_by_the_frames_times_and_loops(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 10, SIZE, rate=10, codec="ffv1")
    pictures = [plane_arrays(p)[0] for p in av.open(str(clip)).decode(video=0)]
    rack = start(clip)
    background = rack.current()
    assert background is not None
    start_s = 12345.0  # of a monotonic clock
    background.planes(frame_at(start_s), ALPHA)
    for tenth in (0, 1, 2, 5, 9, 10, 13):
        frame = frame_at(start_s + tenth / 10 + 0.01)
        expected = pictures[tenth % 10]  # decoded ahead, unless this machine is slow
        wait_until(lambda f=frame, e=expected: np.array_equal(background.planes(f, ALPHA)[0], e))


def test_a_long_pause_does_not_make_a_video_catch_up(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 20, SIZE, rate=10, codec="ffv1")
    pictures = [plane_arrays(p)[0] for p in av.open(str(clip)).decode(video=0)]
    background = start(clip).current()
    assert background is not None
    background.planes(frame_at(5.0), ALPHA)

    def shown() -> np.ndarray:
        return background.planes(frame_at(5.0 + 3600.6), ALPHA)[0]

    wait_until(lambda: np.array_equal(shown(), pictures[5]))  # half a second on, not an hour


def test_a_video_that_vanishes_leaves_its_picture(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 5, SIZE, rate=10, codec="ffv1")
    rack = start(clip)
    background = rack.current()
    assert background is not None
    clip.unlink()
    times = iter(range(1000))
    heard = said(rack, "stands still")
    wait_until(lambda: (background.planes(frame_at(next(times) / 10), ALPHA), heard())[1])
    last = background.planes(frame_at(200.0), ALPHA)
    assert np.array_equal(background.planes(frame_at(300.0), ALPHA)[0], last[0])
    assert last[0].std() > 0


def test_a_video_is_decoded_ahead_and_not_without_end(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 30, SIZE, rate=30, codec="ffv1")
    background = start(clip).current()
    assert isinstance(background, AheadBackground)
    wait_until(lambda: background._decoded_s >= AHEAD_S)
    assert 2 <= len(background._ready) <= AHEAD_PICTURES
    for step in range(90):  # as a session goes: what is shown is there already
        before = background._decoded_s
        background.planes(frame_at(step / 30), ALPHA)
        wait_until(lambda t=step / 30: background._decoded_s > t + AHEAD_S / 2)
        assert before >= step / 30 - 1e-6


def test_a_wrong_choice_leaves_the_old_one(start: Start, tmp_path: Path) -> None:
    rack = start("red")
    (tmp_path / "text.png").write_text("no picture")
    for text in (str(tmp_path / "absent.png"), str(tmp_path / "text.png"), "concat:a|b",
                 "http://example.com/a.png", "beach.png", "notacolour", str(tmp_path)):  # fmt: skip
        with pytest.raises(VidmatteError):
            rack.choose(text)
    assert shows(rack, "red")


def test_a_file_that_breaks_after_the_check_gives_a_line(start: Start, tmp_path: Path) -> None:
    rack = start("red", picture_file(tmp_path / "a.png", (0, 0, 255)))
    (tmp_path / "a.png").write_bytes(b"broken")
    rack.next()
    wait_until(said(rack, "stays as it is"))
    assert shows(rack, "red")


def test_a_chosen_file_is_shown(start: Start, tmp_path: Path) -> None:
    rack = start("red")
    rack.choose(str(picture_file(tmp_path / "a.png", (0, 0, 255))))
    wait_until(lambda: shows(rack, "blue"))
    assert rack.label == "a.png"
    rack.next()  # it is not in the round: from the start again
    wait_until(lambda: shows(rack, "red"))


@pytest.mark.parametrize("name", ["absent.png", "http://x/y.png", "greenish", "blur:x"])
def test_wrong_names_are_known_at_once(name: str) -> None:
    with pytest.raises(VidmatteError):
        BackgroundRack([name])


def test_the_notice_changes_a_corner_only(start: Start) -> None:
    rack = start("white")
    plain = plane_arrays(rack.closed_picture())[0]
    noted = plane_arrays(rack.closed_picture("the camera is gone"))[0]
    changed = np.argwhere(plain != noted)
    assert len(changed)
    assert changed[:, 0].min() >= 3 * SIZE[1] // 4
    assert plane_arrays(rack.closed_picture())[0].min() >= 234
    assert rack.closed_picture("the camera is gone") is rack.closed_picture("the camera is gone")


def test_the_closed_picture_carries_the_colour_tags() -> None:
    crew, rack = Crew(), BackgroundRack(["red"])
    info = replace(INFO, colour=replace(INFO.colour, matrix=1, range=1, primaries=1, transfer=1))
    rack.start(info, LAYOUT, crew)
    for picture in (rack.closed_picture(), rack.closed_picture("x")):
        assert (int(picture.colorspace), int(picture.color_range)) == (1, 1)
        assert (int(picture.color_primaries), int(picture.color_trc)) == (1, 1)
    rack.close()
    assert crew.join() == []


def test_what_is_no_longer_shown_is_closed(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 5, SIZE, rate=10, codec="ffv1")
    rack = start("red", clip)

    def open_files() -> int:
        names = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        return names.count(str(clip))

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to count descriptors in")
    for _ in range(3):
        rack.next()
        wait_until(lambda: not shows(rack, "red"))
        assert open_files() > 0
        rack.next()
        wait_until(lambda: shows(rack, "red"))
        wait_until(lambda: open_files() == 0)


def test_what_is_no_longer_shown_is_freed(start: Start, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "b.mkv", 5, SIZE, rate=10, codec="ffv1")
    rack = start(clip, "red")
    background = rack.current()
    assert isinstance(background, AheadBackground)
    video = weakref.ref(background._video)
    del background
    gc.collect()
    gc.disable()
    try:
        rack.next()
        wait_until(lambda: shows(rack, "red"))
        wait_until(lambda: video() is None)
    finally:
        gc.enable()


def test_a_folder_joins_the_round(start: Start, tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png", (255, 0, 0))
    picture_file(tmp_path / "b.png", (0, 0, 255))
    (tmp_path / "notes.txt").write_text("not a background")
    rack = start(tmp_path, "white")
    assert shows(rack, "red")
    for colour in ("blue", "white", "red"):
        rack.next()
        wait_until(lambda colour=colour: shows(rack, colour))
    assert rack.events() == []


def test_a_new_file_is_found_and_a_removed_one_leaves(start: Start, tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png", (255, 0, 0))
    rack = start(tmp_path)
    picture_file(tmp_path / "b.png", (0, 0, 255))
    wait_until(said(rack, "b.png joins"))
    rack.next()
    wait_until(lambda: shows(rack, "blue"))
    (tmp_path / "b.png").unlink()
    wait_until(lambda: len(rack._cycle()) == 1)
    assert shows(rack, "blue")  # what is shown stays
    rack.next()
    wait_until(lambda: shows(rack, "red"))


def test_a_changed_file_is_shown_anew(start: Start, tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png", (255, 0, 0))
    rack = start(tmp_path)
    picture_file(tmp_path / "new", (0, 0, 255)).replace(tmp_path / "a.png")
    wait_until(lambda: shows(rack, "blue"))


def test_an_empty_folder_is_an_error(start: Start, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture or video"):
        start(tmp_path)


def test_a_half_copied_file_is_tried_again(tmp_path: Path) -> None:
    whole = picture_file(tmp_path / "whole", (255, 0, 0)).read_bytes()
    folder_path = tmp_path / "folder"
    folder_path.mkdir()
    folder = WatchedFolder(str(folder_path), "cover")
    assert folder.scan(first=True) == ([], [])
    (folder_path / "a.png").write_bytes(whole[:40])
    assert folder.scan() == ([], [])  # it may still grow
    assert folder.scan() == ([], [])  # fails, in silence
    (folder_path / "a.png").write_bytes(whole)
    assert folder.scan() == ([], [])
    assert folder.scan() == (["a.png joins the backgrounds"], [])
    assert folder.files == (str(folder_path / "a.png"),)


def test_a_bad_file_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    folder = WatchedFolder(str(tmp_path), "cover")
    lines = [line for _ in range(3 * PATIENCE) for line in folder.scan()[0]]
    assert len(lines) == 1
    assert "a.png: is not a video or picture" in lines[0]
    assert folder.files == ()


@pytest.mark.fault
def test_a_file_that_trips_us_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_file(tmp_path / "a.png", (255, 0, 0))

    def trip(backdrop: Backdrop) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Backdrop, "check", trip)
    folder = WatchedFolder(str(tmp_path), "cover")
    lines = [line for _ in range(3 * PATIENCE) for line in folder.scan()[0]]
    assert lines == ["a.png: cannot be shown: a bug; it is not used"]


@pytest.mark.fault
def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    secret = picture_file(tmp_path / "secret.png", (255, 0, 0))
    folder_path = tmp_path / "folder"
    folder_path.mkdir()
    (folder_path / "link.png").symlink_to(secret)
    (folder_path / "gone.png").symlink_to(tmp_path / "absent")
    os.mkfifo(folder_path / "fifo.png")
    (folder_path / "sub.png").mkdir()
    folder = WatchedFolder(str(folder_path), "cover")
    events, _ = folder.scan(first=True)
    assert events == ["link.png: is a link; those of a watched folder are not followed"]
    assert folder.files == ()


@pytest.mark.fault
def test_a_file_replaced_by_a_link_is_not_built(start: Start, tmp_path: Path) -> None:
    secret = picture_file(tmp_path / "secret.png", (0, 0, 255))
    folder_path = tmp_path / "folder"
    folder_path.mkdir()
    picture_file(folder_path / "a.png", (255, 255, 255))
    rack = start("red", folder_path)
    for folder in rack._folders.values():
        folder.scan = lambda: ([], [])  # type: ignore[method-assign,assignment]
    (folder_path / "a.png").unlink()
    (folder_path / "a.png").symlink_to(secret)
    rack.next()
    wait_until(said(rack, "is a link"))
    assert shows(rack, "red")


@pytest.mark.fault
def test_a_folder_that_goes_away_is_named_once_and_found_again(
    start: Start, tmp_path: Path
) -> None:
    folder_path = tmp_path / "folder"
    folder_path.mkdir()
    picture_file(folder_path / "a.png", (255, 0, 0))
    folder = WatchedFolder(str(folder_path), "cover")
    folder.scan(first=True)
    shutil.move(folder_path, tmp_path / "away")
    lines = [line for _ in range(4) for line in folder.scan()[0]]
    assert len(lines) == 1
    shutil.move(tmp_path / "away", folder_path)
    assert folder.scan() == ([], [])
    assert folder.files == (str(folder_path / "a.png"),)


@pytest.mark.fault
def test_a_hostile_name_is_printed_harmless(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m.png").write_text("no picture")
    folder = WatchedFolder(str(tmp_path), "cover")
    lines = [line for _ in range(3 * PATIENCE) for line in folder.scan()[0]]
    assert len(lines) == 1
    assert "\x1b" not in lines[0]


def test_many_switches_keep_the_descriptors_flat(start: Start, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to count descriptors in")
    clip = make_clip(tmp_path / "b.mkv", 3, SIZE, rate=10, codec="ffv1")
    rack = start("red", clip)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(40):
        rack.next()
        rack.current()
    rack.choose("blue")
    wait_until(lambda: shows(rack, "blue"))
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.fault
def test_a_script_in_a_watched_folder_opens_nothing(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "bait.ts", 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.mp4").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    with Listener() as listening:
        (folder / "b.ts").write_text(
            f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{listening.port}/x.ts\n"
        )
        trap = Bait(clip)
        watched = WatchedFolder(str(folder), "cover")
        lines = [line for _ in range(6) for line in watched.scan()[0]]
        assert trap.bites() == 0
        trap.close()
        assert listening.seen() == 0
    assert watched.files == ()
    assert len(lines) == 2
