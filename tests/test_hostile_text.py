"""Nothing of a name or of a file's own words acts on the terminal or in a report."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cli_here import CliHere, Done
from conftest import Cli, decode, make_clip
from safetensors.numpy import load_file, save
from test_hostile import READ, WRITTEN

from vidmatte.models.table import WEIGHTS_FOLDER

pytestmark = pytest.mark.fault

# Title and clipboard of the terminal, clear screen, one byte CSI, line ends, direction, an emoji
# joiner, line separators: what a stranger would put into a name or a tag.
EVIL = "\x1b]0;pwned\x07\x1b]52;c;cm0=\x07\x1b[2J\r\n\x9b31m\x85\u202eevil\u2066\u200b\u2028\x7f\b"
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
SURROGATES = os.fsdecode(b"a\xff\xfe\x80")


def assert_clean(*texts: str) -> None:
    """No character in `texts` but line ends acts on a terminal."""
    for text in texts:
        found = {c for c in text if c != "\n" and unicodedata.category(c) in UNSAFE}
        assert not found, ascii(text)


def assert_told(done: Done, *, code: int | None = None) -> None:
    assert_clean(done.out, done.err)
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    if code is not None:
        assert done.code == code, done.err
    for line in done.err.splitlines():
        assert re.match(r"(error|hint|warning|note|stopped|failed): |.*frames? in |.*files? done"
                        r"|making ", line), ascii(line)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_clip(tmp_path / "s.mp4", 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path


@pytest.mark.parametrize("word", [EVIL, SURROGATES], ids=["evil", "no UTF-8"])
@pytest.mark.parametrize("role", [*READ, *WRITTEN])
def test_a_name_in_an_error_is_escaped(role: str, word: str, cli_here: CliHere, here: Path) -> None:
    command = (READ | WRITTEN)[role](f"no{word}/{word}.mp4")
    done = cli_here(*command)
    assert done.refusal
    assert_told(done)


@pytest.mark.parametrize(
    "option",
    ["--model", "--backend", "--device", "--precision", "--codec", "--preset", "--crf", "--start",
     "--end", "--rate", "--max-size", "--threshold", "--fit", "--background", f"--no{EVIL}"],
)  # fmt: skip
def test_a_value_in_an_error_is_escaped(option: str, cli_here: CliHere, here: Path) -> None:
    done = cli_here("run", "s.mp4", "o.mp4", option, EVIL)
    assert done.refusal
    assert_told(done)
    assert not (here / "o.mp4").exists()


def test_commands_that_are_not_there_are_escaped(cli_here: CliHere, here: Path) -> None:
    for arguments in ((EVIL,), ("models", EVIL), ("models", "download", EVIL),
                      ("models", "import", "x", "--name", EVIL), ("demo", EVIL),
                      ("demo", "--output", f"s.mp4/{EVIL}")):  # fmt: skip
        done = cli_here(*arguments)
        assert done.refusal
        assert_told(done)


def test_names_in_results_are_escaped(cli_here: CliHere, here: Path) -> None:
    """A damaged input, so that it warns; a stale part, so that a note names it."""
    data = bytearray(make_clip(here / "x.mkv", 40).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    source = Path(f"{EVIL.replace('/', '')}.mkv")
    source.write_bytes(data)
    output = f"o{source}"
    Path(f"o{source.stem}.part.mkv").touch()
    done = cli_here("run", source, output, "--backend", "null")
    assert_told(done, code=0)
    assert "warning: " in done.err
    assert "earlier unfinished part" in done.err
    done = cli_here("run", source, output, "--backend", "null", "--overwrite", "--json")
    assert_told(done, code=0)
    document = json.loads(done.out)
    assert_clean(*document["outputs"], document["input"])


def test_names_in_a_folder_are_escaped(cli_here: CliHere, here: Path) -> None:
    folder = here / f"in{EVIL}"
    folder.mkdir()
    shutil.copy(here / "s.mp4", folder / f"good{EVIL}.mp4")
    (folder / f"bad{EVIL}.mp4").write_text("no video")
    (folder / f"other{EVIL}.txt").write_text("text")
    for more in ((), ("--json", "--overwrite")):
        done = cli_here("run", folder, here / f"out{EVIL}", "--backend", "null", *more)
        assert_told(done, code=1)
    for line in done.out.splitlines():
        assert_clean(json.loads(line)["input"])


def test_the_demo_s_folder_is_escaped(cli_here: CliHere, here: Path) -> None:
    pytest.importorskip("skimage")
    done = cli_here("demo", "-o", f"d{EVIL}", "--height=90", "--frames=2", "--backend=null")
    assert_told(done, code=0)
    assert "contact picture" in done.out


def hostile_mkv(path: Path) -> Path:
    """A clip whose every text is hostile: tags, language, titles, chapters, an attachment."""
    evil = EVIL.replace("\x00", "")
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": evil, "comment": evil, "artist": evil, evil: evil})
        video = container.add_stream("libx264", rate=25)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata.update({"title": evil, "handler_name": evil})
        audio = container.add_stream("flac", rate=48000)
        assert isinstance(audio, av.AudioStream)
        audio.metadata.update({"language": evil, "title": evil})
        container.add_attachment(f"{evil}.ttf", "application/x-truetype-font", b"font")
        chapter = {"id": 1, "start": 0, "end": 40, "time_base": Fraction(1, 1000)}
        container.set_chapters([chapter | {"metadata": {"title": evil}}])  # type: ignore[list-item]
        for index in range(3):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), "rgb24")
            picture = picture.reformat(format="yuv420p")
            picture.pts = index
            container.mux(video.encode(picture))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
        sound.sample_rate, sound.pts = 48000, 0
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm", ".ts", ".gif", ".avi", ".mov"])
def test_words_in_a_file_are_escaped(suffix: str, cli_here: CliHere, here: Path) -> None:
    hostile_mkv(here / "h.mkv")
    output = f"o{suffix}"
    done = cli_here("run", "h.mkv", output, "--backend", "null", "--background", "green")
    assert_told(done, code=0)
    assert len(decode(here / output)) == 3
    done = cli_here(
        "run", "h.mkv", output, "--backend", "null", "-b", "green", "--json", "--overwrite"
    )
    assert_told(done, code=0)
    json.loads(done.out)


def live_weights(**changes: Any) -> dict[str, Any]:
    return load_file(WEIGHTS_FOLDER / "live.safetensors") | changes


def test_words_in_weights_are_escaped(cli_here: CliHere, here: Path) -> None:
    header = json.dumps({EVIL: {"dtype": EVIL, "shape": [1], "data_offsets": [0, 4]}}).encode()
    files = {
        "header.safetensors": struct.pack("<Q", len(header)) + header + bytes(4),
        "raw.safetensors": struct.pack("<Q", 60) + EVIL.encode().ljust(60, b"{"),
        "pickle.pth": b"\x80\x02c" + EVIL.encode("utf-8").replace(b"\n", b"") + b"\nx\n.",
        "page.pth": b"<html>" + EVIL.encode(),
        "words.pth": EVIL.encode(),
        "words.onnx": EVIL.encode(),
        "other.safetensors": bytes(save({EVIL: np.zeros(3, np.float32)})),
        f"{EVIL}.safetensors": bytes(save(live_weights(**{EVIL: np.zeros(3, np.float32)}))),
    }
    for name, data in files.items():
        Path(name).write_bytes(data)
        for command in (READ["weights"](name), READ["model import"](name)):
            done = cli_here(*command, *(["--backend", "null"] if command[0] == "run" else []))
            assert_told(done)
            assert done.code == (0 if name.startswith(EVIL) and command[0] == "run" else 1)


def test_a_model_folder_of_hostile_words_is_escaped(
    cli_here: CliHere, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / f"models{EVIL}"
    folder.mkdir()
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(folder))
    (folder / "u2netp.safetensors").write_bytes(b"x")
    for sha256 in ("0" * 64, EVIL, 3, None):
        record = {"sha256": sha256, "source": EVIL, "source_sha256": EVIL}
        (folder / "u2netp.json").write_text(json.dumps(record))
        for command in (["models", "list"], ["models", "list", "--json"],
                        ["run", "s.mp4", "o.mp4", "--model", "u2netp"]):  # fmt: skip
            done = cli_here(*command)
            assert_told(done)
            assert done.code == (0 if sha256 == "0" * 64 and command[0] == "models" else 1)


def test_on_a_terminal_only_the_progress_line_moves_the_cursor(run_cli: Cli, here: Path) -> None:
    source = here / f"in{EVIL}.mp4"
    make_clip(source, 60)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vidmatte", "run", str(source), str(here / f"o{EVIL}.mp4"),
               "--backend", "null"]  # fmt: skip
    with subprocess.Popen(
        command, env=run_cli.env, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while data := read_some(ours):
            seen += data
        assert process.wait(30) == 0, seen
    os.close(ours)
    text = seen.decode().replace("\r\n", "\n").replace("\r\x1b[K", "")
    assert "60 frames in" in text
    assert_clean(text)


def read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""
