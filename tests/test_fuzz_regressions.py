"""What the fuzzer found, one test per cause, with the bytes made here."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import Cli, decode, make_clip, run_file, times_of
from safetensors.numpy import load_file

from vidmatte.errors import InputError, ModelError
from vidmatte.jobs import Cut
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


def _with_dense_table(path: Path) -> None:
    """A table of sizes that is all there, half a byte for each of more samples than bytes."""
    data = bytearray(make_clip(path, 8, options={"preset": "ultrafast"}).read_bytes())
    count = 6_710_000
    table = struct.pack(">I4sIII", 20 + count // 2, b"stz2", 0, 4, count) + b"\x11" * (count // 2)
    at = data.index(b"stsz") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        end = data.index(kind)
        longer = int.from_bytes(data[end - 4 : end], "big") + len(table) - size
        data[end - 4 : end] = longer.to_bytes(4, "big")
    path.write_bytes(data[:at] + table + data[at + size :])


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
    [
        _with_false_table,
        _with_dense_table,
        _with_false_fragment,
        partial(_with_false_fragment, long_header=True),
    ],
    ids=["table", "dense table", "fragment", "fragment with a long header"],
)
def test_an_index_larger_than_its_file_is_refused_before_it_is_built(
    damage: Callable[[Path], None], tmp_path: Path, run_cli: Cli
) -> None:
    """FFmpeg takes .5 to 2.4 GB and up to 15 s for each of these files of a few kilobytes or MB."""
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


@pytest.mark.parametrize("codec", ["libx264", "flv"])
def test_every_whole_picture_of_a_cut_flv_comes_out(codec: str, tmp_path: Path) -> None:
    """The error of the packet that is cut came at the end, with the loss of those before it."""
    source = make_clip(tmp_path / "s.flv", 60, codec=codec)
    with av.open(str(source)) as container:
        ends = [p.pos + p.size for p in container.demux(video=0) if p.size and p.pos is not None]
    data = source.read_bytes()
    for number in (20, 37, 58):
        source.write_bytes(data[: ends[number] - 1])
        result = run_file(source, tmp_path / "o.mkv", overwrite=True)
        assert result.frames == number
        assert re.match("1 picture could not be decoded, first at ", result.warnings[0])


@pytest.mark.parametrize("time", [0, 1 << 40])
def test_fragments_that_go_back_in_time_are_counted(time: int, tmp_path: Path) -> None:
    """The demuxer hides their pictures as if an edit list left them out."""
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    source = make_clip(tmp_path / "s.mp4", 20, gop=5, muxer=fragmented)
    version, *fragments = source.read_bytes().split(b"tfdt\x01")
    moved = [part[:3] + time.to_bytes(8, "big") + part[11:] for part in fragments]
    source.write_bytes(b"tfdt\x01".join([version, *moved]))
    result = run_file(source, tmp_path / "o.mp4")
    (lost,) = [w for w in result.warnings if "dated back before others" in w]
    assert int(lost.split()[0]) + result.frames == 20
    with pytest.raises(InputError, match="dated back"):
        run_file(source, tmp_path / "strict.mp4", strict=True)


def test_pictures_outside_an_edit_list_are_not_missed(tmp_path: Path) -> None:
    """They are marked in the same way, but go forward in time."""
    source = make_clip(tmp_path / "s.mp4", 20)
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 16  # where in the media its first part begins
    half_s = int.from_bytes(data[at : at + 4], "big") + 6400
    data[at : at + 4] = half_s.to_bytes(4, "big")
    source.write_bytes(data)
    result = run_file(source, tmp_path / "o.mp4")
    assert result.warnings == []
    assert result.frames < 20


def test_damage_in_a_part_of_a_video_has_the_times_of_the_whole(tmp_path: Path) -> None:
    """They were counted from --start, and negative before it."""
    source = make_clip(tmp_path / "s.mov", 50, codec="png", pix_fmt="rgb24")
    with av.open(str(source)) as container:
        packet = [p for p in container.demux(video=0) if p.size][40]
    assert packet.pos is not None
    data = bytearray(source.read_bytes())
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    source.write_bytes(data)
    result = run_file(source, tmp_path / "o.mkv", cut=Cut(start_s=1.0))
    found = re.fullmatch(r"1 picture could not be decoded, first at (.*) s", result.warnings[0])
    assert found is not None
    assert 1.6 <= float(found[1]) <= 2.0  # threads of the decoder tell of it some pictures later
