"""What the fuzzer found, one test per cause, with the bytes made here."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli, decode, make_clip, run_file, times_of
from safetensors.numpy import load_file

from vidmatte.errors import ModelError
from vidmatte.models.table import WEIGHTS_FOLDER, Convolution, convolutions, models
from vidmatte.models.weights import folded

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


MANY = (1 << 26).to_bytes(4, "big")


def _with_false_table(path: Path) -> None:
    """A track of pictures that are all one byte, in one chunk, 67 million of them."""
    data = bytearray(make_clip(path, 8, options={"preset": "ultrafast"}).read_bytes())
    sizes, chunks = data.index(b"stsz") + 8, data.index(b"stsc") + 16
    data[sizes : sizes + 8] = (1).to_bytes(4, "big") + MANY
    data[chunks : chunks + 4] = MANY
    path.write_bytes(data)


def _with_false_fragment(path: Path, *, long_header: bool = False) -> None:
    """A fragment of 67 million pictures that say nothing of themselves."""
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    clip = make_clip(path, 8, options={"preset": "ultrafast"}, muxer=fragmented)
    data = bytearray(clip.read_bytes())
    run = data.index(b"trun") + 4
    if long_header:  # the length is 1, and the real one follows in 64 bits
        data[run - 8 : run - 4] = (1).to_bytes(4, "big")
        data[run : run + 8] = (32).to_bytes(8, "big")
        run += 8
    data[run : run + 8] = bytes(4) + MANY
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [_with_false_table, _with_false_fragment, partial(_with_false_fragment, long_header=True)],
    ids=["table", "fragment", "fragment with a long header"],
)
def test_an_index_larger_than_its_file_is_refused_before_it_is_built(
    damage: Callable[[Path], None], tmp_path: Path, run_cli: Cli
) -> None:
    """FFmpeg takes 2.4 GB and up to 15 s for each of these files of a few kilobytes."""
    source = tmp_path / "s.mp4"
    damage(source)
    done = run_cli("run", source, tmp_path / "o.mp4", "--backend", "null",
                   shell_prefix="ulimit -v 3000000;")  # fmt: skip
    assert done.returncode == 1
    assert re.match(r"error: \S+: its index claims 671\d+ samples ", done.stderr)


@pytest.mark.parametrize("how", [{}, {"movflags": "frag_keyframe+empty_moov"}], ids=["whole", "f"])
def test_an_index_of_many_real_samples_is_believed(how: dict[str, str], tmp_path: Path) -> None:
    """Uncompressed sound has one sample in every two bytes, more than a million here."""
    source = make_clip(tmp_path / "s.mov", 8, codec="mpeg4", audio="pcm_s16le", audio_s=30,
                       muxer=how)  # fmt: skip
    assert run_file(source, tmp_path / "o.mp4").frames == 8


def test_a_cut_file_is_not_taken_for_a_false_index(tmp_path: Path) -> None:
    """Its index in front tells of a million and a half samples of sound, most of them cut off."""
    source = make_clip(tmp_path / "s.mov", 8, codec="mpeg4", audio="pcm_s16le", audio_s=30,
                       audio_first=False, muxer={"movflags": "faststart"})  # fmt: skip
    source.write_bytes(source.read_bytes()[:100_000])
    assert run_file(source, tmp_path / "o.mp4").frames == 8


@pytest.mark.parametrize(
    ("weight", "variance"),
    [(np.inf, np.inf), (1.0, -1.0), (1e300, 1.0)],
    ids=["infinity by nothing", "negative variance", "too large for float32"],
)
def test_weights_that_do_not_compute_are_refused_without_a_warning(
    weight: float, variance: float
) -> None:
    """numpy warned on the terminal of what the check behind it refuses in one line."""
    conv, tensors = _first_normalised()
    for key, value in ((conv.weight_key, weight), (conv.bn_key("running_var"), variance)):
        tensors[key] = tensors[key].astype(np.float64)
        tensors[key].flat[0] = value
    with pytest.raises(ModelError, match="finite"):
        folded(models()["live"].network, tensors)


def _first_normalised() -> tuple[Convolution, dict[str, Any]]:
    """The first convolution of `live` with a normalisation on disk, and all its tensors."""
    tensors = dict(load_file(WEIGHTS_FOLDER / "live.safetensors"))
    network = models()["live"].network
    return next(c for c in convolutions(network) if c.bn_key("running_var") in tensors), tensors


def test_a_normalisation_of_a_wrong_shape_is_refused() -> None:
    conv, tensors = _first_normalised()
    tensors[conv.bn_key("bias")] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match="wrong shape"):
        folded(models()["live"].network, tensors)
