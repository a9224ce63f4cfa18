"""Holes in Matroska files: what they take away is counted, what they leave whole is not."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_clip

from vidmatte.errors import InputError
from vidmatte.sources._matroska import Chain, follow_chain
from vidmatte.sources.file import FileSource

HOLES = 30  # per clip; 700 each were tried when this was written
CLUSTER, CUES = bytes.fromhex("1f43b675"), bytes.fromhex("1c53bb6b")
FILLERS: dict[str, Callable[[int], bytes]] = {
    "zeros": bytes,
    "ones": lambda size: b"\xff" * size,
    "noise": lambda size: random.Random(size).randbytes(size),
    "void without an end": lambda size: b"\xec\x01" + b"\x7f" * (size - 2),
}
GRAY: dict[str, Any] = {"codec": "ffv1", "pix_fmt": "gray"}
SHORT = {"cluster_time_limit": "400"}
CLIPS: dict[str, dict[str, Any]] = {
    "gray.mkv": GRAY,
    "live.mkv": GRAY | {"muxer": SHORT | {"live": "1"}},
    "sound.mkv": {"audio": "aac", "muxer": SHORT},
    "uneven.mkv": GRAY | {"pts": [2 * n + n % 3 for n in range(40)]},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}, "muxer": SHORT},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {
        "deadline": "realtime", "auto-alt-ref": "0"}},
}  # fmt: skip
COUNT = re.compile(r"(\d+) pictures? (?:missing|could not|decoded with)")


def read(path: Path) -> tuple[int, list[str]]:
    """Return how many pictures came out, and what was said of the others."""
    with FileSource(path) as source:
        return len(list(source)), source.damage


def counted(lines: list[str]) -> int:
    return sum(int(count) for line in lines for count in COUNT.findall(line))


def overwritten(path: Path, start: int, filler: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:start] + filler + data[start + len(filler) :])


@pytest.mark.fault
@pytest.mark.parametrize("kind", FILLERS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.94])  # of the file: where the hole begins
def test_a_hole_is_counted_wherever_it_is(tmp_path: Path, kind: str, share: float) -> None:
    clip = make_clip(tmp_path / "a.mkv", 30, codec="ffv1", pix_fmt="gray")
    start = int(share * clip.stat().st_size)
    overwritten(clip, start, FILLERS[kind](3000))
    frames, damage = read(clip)
    assert frames < 30
    assert counted(damage) == 30 - frames


@pytest.mark.fault
@pytest.mark.parametrize("name", CLIPS)
def test_no_hole_takes_pictures_without_a_word(tmp_path: Path, name: str) -> None:
    clip = make_clip(tmp_path / name, 40, **CLIPS[name])
    data = clip.read_bytes()
    assert read(clip) == (40, [])
    silent = []
    losses = 0
    for seed in range(HOLES):
        dice = random.Random(seed)
        size = dice.choice((1, 2, 4, 16, 64, 300, 1000, 3000))
        start = dice.randrange(len(data) - size)
        filler = dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size)))
        clip.write_bytes(data[:start] + filler + data[start + size :])
        try:
            frames, damage = read(clip)
        except InputError:
            continue
        losses += frames < 40
        if frames < 40 and not counted(damage):
            silent.append((seed, start, size, frames, damage))
    assert silent == []
    assert losses > HOLES / 6


@pytest.mark.fault
def test_a_block_that_cannot_be_parsed_is_counted(tmp_path: Path) -> None:
    """Its head claims laces: the chain holds, but the demuxer drops the rest of the cluster."""
    clip = make_clip(tmp_path / "a.mkv", 40, **GRAY, muxer=SHORT)
    data = clip.read_bytes()
    cluster = [m.start() for m in re.finditer(CLUSTER, data)][1]
    block = data.index(b"\xa3", data.index(b"\xe7", cluster))
    size_width = 9 - data[block + 1].bit_length()
    flags = block + 1 + size_width + 3  # behind the track's number and the time
    overwritten(clip, flags, b"\x06\xff")
    frames, damage = read(clip)
    assert frames < 40
    assert counted(damage) == 40 - frames


@pytest.mark.fault
@pytest.mark.parametrize("number", [b"\x00", b"\x85"])  # none, and one of no track
def test_a_block_of_no_track_is_counted(tmp_path: Path, number: bytes) -> None:
    clip = make_clip(tmp_path / "a.mkv", 40, **GRAY, muxer=SHORT)
    data = clip.read_bytes()
    cluster = [m.start() for m in re.finditer(CLUSTER, data)][-1]
    block = data.index(b"\xa3", data.index(b"\xe7", cluster))
    overwritten(clip, block + 1 + 9 - data[block + 1].bit_length(), number)
    frames, damage = read(clip)
    assert frames < 40
    assert counted(damage) == 40 - frames


@pytest.mark.fault
def test_the_last_picture_is_counted_though_the_decoder_is_silent(tmp_path: Path) -> None:
    """A decoder with threads does not tell the error of what it is emptied of."""
    clip = make_clip(tmp_path / "a.mkv", 30, codec="ffv1", pix_fmt="gray")
    overwritten(clip, clip.read_bytes().rindex(CUES) - 900, random.Random(1).randbytes(900))
    with FileSource(clip, threads=4) as source:
        frames = len(list(source))
    assert counted(source.damage) == max(1, 30 - frames)


def padded(clip: Path) -> None:
    """Overwrite the index at the end by an element that is there to be skipped."""
    data = clip.read_bytes()
    cues = data.rindex(CUES)
    size = len(data) - cues - 9
    clip.write_bytes(data[:cues] + b"\xec\x01" + size.to_bytes(7, "big") + bytes(size))


def behind_the_end(clip: Path) -> None:
    """Leave zeros behind what the file says is its end."""
    os.truncate(clip, clip.stat().st_size + 5000)


def endless(clip: Path) -> None:
    """Say of the segment and its clusters that their sizes are unknown, as a live one does."""
    data = bytearray(clip.read_bytes()[: clip.read_bytes().rindex(CUES)])
    for identity in (bytes.fromhex("18538067"), CLUSTER):
        for found in re.finditer(re.escape(identity), bytes(data)):
            width = 9 - data[found.end()].bit_length()
            data[found.end() : found.end() + width] = ((1 << 7 * width + 1) - 1).to_bytes(width)
    clip.write_bytes(data)


@pytest.mark.parametrize("change", [padded, behind_the_end, endless])
def test_what_a_whole_file_may_hold_is_no_damage(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """With a pause, so that its blocks are looked at too."""
    clip = make_clip(tmp_path / "a.mkv", 30, **GRAY, pts=[*range(20), *range(50, 60)], muxer=SHORT)
    change(clip)
    assert read(clip) == (30, [])


@pytest.mark.fault
def test_a_hole_in_a_recording_without_sizes_is_counted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", 40, **GRAY, muxer=SHORT)
    endless(clip)
    overwritten(clip, clip.stat().st_size // 2, bytes(3000))
    frames, damage = read(clip)
    assert frames < 40
    assert counted(damage) == 40 - frames


def test_a_pause_stays_a_pause_where_the_end_is_stated(tmp_path: Path) -> None:
    """Sound that goes on behind the pictures is no sign of missing ones."""
    clip = make_clip(tmp_path / "a.mkv", 20, audio="aac", audio_s=3.0)
    assert read(clip) == (20, [])


def test_the_blocks_of_each_track_are_counted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", 20, audio="aac")
    descriptor = os.open(clip, os.O_RDONLY)
    assert follow_chain(descriptor, 0, thorough=True) == Chain(None, 20)
    assert follow_chain(descriptor, 1, thorough=True) == Chain(None, 0)
    assert follow_chain(descriptor, 0, thorough=False) == Chain(None, 0)
    os.close(descriptor)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])  # of the video: what is left out before
def test_what_the_user_leaves_out_is_not_missing(tmp_path: Path, share: float) -> None:
    clip = make_clip(tmp_path / "a.mkv", 40, **CLIPS["uneven.mkv"])
    with FileSource(clip, start_s=3.2 * share or None, end_s=3.1) as source:
        assert 0 < len(list(source)) < 40
        assert source.damage == []
    with FileSource(clip, start_s=3.2 * share or None) as source:
        assert 0 < len(list(source)) <= 40
        assert source.damage == []


@pytest.mark.fault
@pytest.mark.timeout(20)
def test_a_file_of_cluster_heads_ends_in_time(tmp_path: Path) -> None:
    """Each of them leads nowhere, and the next is found by searching."""
    path = tmp_path / "a.mkv"
    head = bytes.fromhex("1a45dfa380 1853806701ffffffffffffff")
    path.write_bytes(head + (CLUSTER + b"\x81\x00") * 500_000)
    descriptor = os.open(path, os.O_RDONLY)
    chain = follow_chain(descriptor, 0, thorough=True)
    assert chain.broken is not None
    os.close(descriptor)
