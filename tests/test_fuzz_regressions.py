"""What the fuzzer found, one test per cause, with the bytes made here."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from conftest import decode, make_clip, run_file, times_of

pytestmark = pytest.mark.fault


def test_sound_that_begins_late_in_an_flv_is_named(tmp_path: Path) -> None:
    """PyAV ends reading with IndexError where a stream turns up that it did not know at first."""
    source = make_clip(
        tmp_path / "s.flv", 400, codec="flv", audio="libmp3lame", audio_start_s=15.5, audio_s=0.5
    )
    data = bytearray(source.read_bytes())
    data[4] = 1  # the header promises video only
    source.write_bytes(data)
    result = run_file(source, tmp_path / "o.mp4")
    assert result.warnings == ["a stream that begins late in the file is left out"]
    assert result.frames == len(decode(tmp_path / "o.mp4")) == 400


def test_sound_of_a_recording_joined_with_itself_is_counted(tmp_path: Path) -> None:
    """What a bitstream filter gives back has lost its stream, which the message names."""
    once = make_clip(
        tmp_path / "once.ts", 8, audio="aac", options={"preset": "ultrafast"}
    ).read_bytes()
    source = tmp_path / "s.ts"
    source.write_bytes(once[:4700] + once[940:])
    result = run_file(source, tmp_path / "o.mp4")
    assert [w for w in result.warnings if w.startswith("sound stream 1 (aac): ")]


ASF_PREROLL = slice(110, 118)  # of the File Properties Object, in ms, behind a header of 30 bytes


@pytest.mark.parametrize("name", ["o.mp4", "o.mov"])
def test_pictures_before_time_0_are_not_hidden(name: str, tmp_path: Path) -> None:
    """Time stamps count from the end of a lying preroll: an edit list hid what lay before it."""
    source = make_clip(tmp_path / "s.asf", 8, codec="wmv2")
    data = bytearray(source.read_bytes())
    preroll_ms = int.from_bytes(data[ASF_PREROLL], "little")
    data[ASF_PREROLL] = (preroll_ms + 100).to_bytes(8, "little")
    source.write_bytes(data)
    before = times_of(source)
    assert before[0] == Fraction(-1, 10)
    assert run_file(source, tmp_path / name, contents=("opaque",)).frames == 8
    after = times_of(tmp_path / name)
    assert [t - after[0] for t in after] == [t - before[0] for t in before]
