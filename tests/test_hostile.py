"""No name is taken for an address, a pattern or an option; no file makes us open another."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from cli_here import CliHere, Done
from conftest import Cli, decode, make_clip
from traps import Bait, Listener

import vidmatte
from vidmatte.errors import VidmatteError, printable
from vidmatte.models.table import WEIGHTS_FOLDER

pytestmark = pytest.mark.fault

FRAMES = 3
# {0} is a plain name like s.mp4. Files of all these names are made and used.
NAMES = (
    "http:{0}", "https:{0}", "tcp:{0}", "udp:{0}", "rtsp:{0}", "rtmp:{0}", "ftp:{0}", "unix:{0}",
    "file:{0}", "fd:{0}", "pipe:{0}", "pipe:1{0}", "data:,{0}", "crypto:{0}", "async:cache:{0}",
    "concat:{0}|{0}", "concatf:{0}", "subfile:,,start,0,end,9,,:{0}", "lavfi:{0}", "hls+file:{0}",
    "tee:{0}|{0}", "[f=mpegts]{0}", "md5:{0}", "prompeg:{0}",
    "*{0}", "?{0}", "[a-z]{0}", "%{0}", "%s{0}", "%03d%03d{0}", "{{a,b}}{0}", "~{0}", "~root{0}",
    "-i{0}", "--help{0}", "-{0}", "--overwrite={0}", "@{0}", "$HOME{0}", "$(touch ran){0}",
    "`touch ran`{0}", "a;touch ran;{0}", "a|touch ran|{0}", " {0}", "a\\b{0}", "'{0}", '"{0}',
)  # fmt: skip
# {port} is a listener, {bait} a file that nobody may open. None of these exists as a file.
ADDRESSES = (
    "http://127.0.0.1:{port}/x.mp4", "https://127.0.0.1:{port}/x.mp4", "tcp://127.0.0.1:{port}",
    "rtsp://127.0.0.1:{port}/x", "rtmp://127.0.0.1:{port}/x", "udp://127.0.0.1:{port}",
    "rtp://127.0.0.1:{port}", "ftp://127.0.0.1:{port}/x", "hls+http://127.0.0.1:{port}/x.m3u8",
    "tls://127.0.0.1:{port}", "gopher://127.0.0.1:{port}/1", "icecast://127.0.0.1:{port}/x",
    "concat:{bait}|{bait}", "concatf:{bait}", "subfile:,,start,0,end,0,,:{bait}", "file:{bait}",
    "file://{bait}", "crypto:{bait}", "async:cache:{bait}", "cache:{bait}", "async:file:{bait}",
    "hls+file:{bait}", "ffconcat:{bait}", "{bait}?x.mp4", "{bait}|x.mp4",
    "data:video/mp4;base64,AAAA", "pipe:0", "pipe:", "fd:0", "fd:", "lavfi:testsrc", "unix:/x.mp4",
    "http:/127.0.0.1:{port}/x.mp4", "http:127.0.0.1:{port}", "tcp:127.0.0.1:{port}",
)  # fmt: skip


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as running:
        yield running
        assert running.seen() == 0, "the network was contacted"


@pytest.fixture
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clip that whoever opens it is caught."""
    path = make_clip(tmp_path_factory.mktemp("bait") / "bait.mp4", FRAMES)
    trap = Bait(path)
    yield path
    bites = trap.bites()
    trap.close()
    assert bites == 0, "the bait was opened"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds a clip, a background and weights of plain names."""
    make_clip(tmp_path / "s.mp4", FRAMES)
    make_clip(tmp_path / "b.mkv", FRAMES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path


# Every way to name a file. New ways (a watched folder, a training set) are new rows here.
Role = Callable[[str], list[str]]
READ: dict[str, Role] = {
    "input": lambda name: ["run", "--backend", "null", "--", name, "o.mp4"],
    "background": lambda name: ["run", "--backend", "null", "--background", name, "s.mp4", "o.mp4"],
    "weights": lambda name: ["run", "--weights", name, "s.mp4", "o.mp4"],
    "model import": lambda name: ["models", "import", "--", name],
    "report input": lambda name: ["report", "--", name, "s.mp4"],
    "report output": lambda name: ["report", "--", "s.mp4", name],
    "report alpha": lambda name: ["report", "--alpha", name, "--", "s.mp4", "s.mp4"],
}
WRITTEN: dict[str, Role] = {
    "output": lambda name: ["run", "--backend", "null", "--", "s.mp4", name],
    "alpha": lambda name: ["run", "--backend", "null", "--alpha", name, "s.mp4", "o.mp4"],
    "foreground": lambda name: ["run", "--backend", "null", "--foreground", name, "s.mp4", "o.mp4"],
    "frame": lambda name: ["run", "--backend", "null", "--frame", "0", "--", "s.mp4", name],
    "report page": lambda name: ["report", "--html", name, "--", "s.mp4", "s.mp4"],
}


def test_the_traps_work(tmp_path: Path) -> None:
    """What an unguarded program does with such a file and such a name."""
    path = make_clip(tmp_path / "bait.ts", FRAMES)
    playlist = tmp_path / "p.mp4"
    playlist.write_text(SCRIPTS["concat"].format(bait=path))
    trap = Bait(path)
    with contextlib.suppress(av.FFmpegError):
        av.open(str(playlist), options={"safe": "0"}).close()
    assert trap.bites() > 0
    trap.close()
    with Listener() as listening:
        assert listening.seen() == 0
        with pytest.raises(av.FFmpegError):
            av.open(f"http://127.0.0.1:{listening.port}/x.mp4", timeout=5)
        assert listening.seen() > 0
        before = listening.seen()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", listening.port))
        assert listening.seen() == before + 1


def names(error: str, name: str) -> bool:
    """Whether an error line names a file, as it was written or as a path is."""
    return printable(name) in error or printable(Path(name)) in error


@pytest.mark.parametrize("role", READ)
def test_an_address_is_a_file_that_is_not_there(
    role: str, cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    for pattern in ADDRESSES:
        name = pattern.format(port=listener.port, bait=bait)
        refused = cli_here(*READ[role](name)).refusal
        assert names(refused, name), refused
    assert sorted(p.name for p in here.iterdir()) == ["b.mkv", "s.mp4"]


@pytest.mark.parametrize("role", WRITTEN)
def test_an_address_is_no_place_to_write_to(
    role: str, cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    for pattern in ADDRESSES:
        if "/" not in pattern:
            continue  # a plain file name, and a good one: see below
        name = pattern.format(port=listener.port, bait=bait)
        assert names(cli_here(*WRITTEN[role](name)).refusal, name)
    assert sorted(p.name for p in here.iterdir()) == ["b.mkv", "s.mp4"]


def check_names(cli_here: CliHere, here: Path, name: str, folder: str = "") -> None:
    """Use files called like `name` in every role of a run."""

    def called(plain: str) -> str:
        path = folder + name.format(plain)
        if (here / plain).exists():
            shutil.copy(here / plain, here / path)
        return path

    outputs = called("o.mp4"), called("a.mkv"), called("f.mov")
    done = cli_here(
        "run", "--backend", "null", f"--background={called('b.mkv')}", f"--alpha={outputs[1]}",
        f"--foreground={outputs[2]}", "--", called("s.mp4"), outputs[0],
    )  # fmt: skip
    assert done.code == 0, (name, done.err)
    for output in outputs:
        assert len(decode(f"file:{here / output}")) == FRAMES, output
    done = cli_here("run", "--backend=null", "--frame=0", "--", called("s.mp4"), called("p.png"))
    assert done.code == 0, (name, done.err)
    assert (here / called("p.png")).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_read_and_written(name: str, cli_here: CliHere, here: Path) -> None:
    check_names(cli_here, here, name)
    assert not (here / "ran").exists()
    assert not list(here.glob("*.part.*"))


def test_a_file_behind_a_path_like_an_address_is_read_and_written(
    cli_here: CliHere, listener: Listener, here: Path
) -> None:
    for scheme in ("http", "rtsp", "tcp", "file", "concat"):
        folder = f"{scheme}://127.0.0.1:{listener.port}/"
        (here / folder).mkdir(parents=True)
        check_names(cli_here, here, "{0}", folder)


def test_a_folder_holds_names_and_nothing_else(cli_here: CliHere, here: Path, bait: Path) -> None:
    names = [name.format("s.mp4") for name in NAMES if "%03d" not in name]
    (here / "in").mkdir()
    for name in names:
        shutil.copy(here / "s.mp4", here / "in" / name)
    (here / "in" / "link.mp4").symlink_to(here / "in")  # a loop
    done = cli_here("run", "--backend", "null", "in", "out")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (here / "out").iterdir()) == sorted(names)
    assert not (here / "ran").exists()


def test_weights_of_any_name_are_read(cli_here: CliHere, here: Path) -> None:
    for name in ("http:{0}", "data:,{0}", "-i{0}", "*{0}", "$(touch ran){0}"):
        file = name.format("w.safetensors")
        shutil.copy(WEIGHTS_FOLDER / "live.safetensors", here / file)
        done = cli_here(
            "run", "--backend", "null", f"--weights={file}", "--overwrite", "s.mp4", "o.mp4"
        )
        assert done.code == 0, done.err
        assert f"weights {file}: SHA-256" in done.err
        assert "holds no weights" not in done.err
        done = cli_here("models", "import", "--", file)
        assert file in done.refusal  # `live` is embedded
    assert not (here / "ran").exists()


@pytest.mark.parametrize("name", ["pipe:1", "tcp:127.0.0.1:{port}", "data:,%03d", "-x"])
def test_the_demo_writes_into_a_folder_of_any_name(
    name: str, cli_here: CliHere, listener: Listener, here: Path
) -> None:
    pytest.importorskip("skimage")
    folder = name.format(port=listener.port)
    done = cli_here(
        "demo", f"--output={folder}", "--height=90", "--frames=2", "--backend=null", "--quiet"
    )
    assert done.code == 0, done.err
    assert {"source.mp4", "result.mp4"} <= {p.name for p in (here / folder).iterdir()}
    assert sorted(p.name for p in here.iterdir()) == sorted(["b.mkv", "s.mp4", folder])


# What opens a second file, or an address, in one program or another.
SCRIPTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{bait}\n#EXT-X-ENDLIST\n",
    "hls-http": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
    "hls-key": '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{url}/k"\n'
    "#EXTINF:1,\n{bait}\n#EXT-X-ENDLIST\n",
    "hls-map": '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MAP:URI="{bait}"\n#EXTINF:1,\n{bait}\n',
    "hls-master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}/p.m3u8\n",
    "concat": "ffconcat version 1.0\nfile '{bait}'\n",
    "concat-http": "ffconcat version 1.0\nfile {url}/a.mp4\n",
    "concat-plain": "file '{bait}'\nfile '{bait}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{bait}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "pls": "[playlist]\nNumberOfEntries=1\nFile1={url}/a.mp4\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}/a.wmv"/></entry></asx>',
    "asf-reference": "[Reference]\nRef1={url}/a.asf?MSWMExt=.asf\n",
    "xspf": '<?xml version="1.0"?><playlist version="1"><trackList><track><location>file://{bait}'
    "</location></track></trackList></playlist>",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3'
    '/2016"><Id>urn:uuid:0</Id></CompositionPlaylist>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" '
    'width="64" height="48"><image x:href="file://{bait}" width="64" height="48"/></svg>',
    "xbm": "#define x_width 16\n#define x_height 2\nstatic char x_bits[] = {{ 0, 1, 2, 3 }};\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nsize: 64x48\nid: en, index: 0\n",
    "ffmetadata": ";FFMETADATA1\ntitle={url}\n",
    "avisynth": 'FFVideoSource("{bait}")\n',
    "edl": "# mpv EDL v0\n{bait},0,1\n",
    "cue": 'FILE "{bait}" BINARY\nTRACK 01 MODE1/2352\n',
    "tty": "\x1b[2J\x1b[1;31m" + "text\r\n" * 40,
}
SUFFIXES = (".mp4", ".ts", ".png")


def scripts(folder: Path, listener: Listener, bait: Path) -> Iterator[Path]:
    for kind, text in SCRIPTS.items():
        for suffix in SUFFIXES:
            path = folder / f"{kind}{suffix}"
            url = f"http://127.0.0.1:{listener.port}"
            path.write_text(text.format(bait=bait, url=url, port=listener.port))
            yield path


@pytest.mark.parametrize("role", ["input", "background"])
def test_what_names_other_files_is_refused(
    role: str, cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    for path in scripts(here, listener, bait):
        done = cli_here(*READ[role](path.name))
        assert done.refusal.startswith(f"error: {path.name}: is not a video or picture"), path
        path.unlink()
    assert sorted(p.name for p in here.iterdir()) == ["b.mkv", "s.mp4"]


def test_a_folder_of_scripts_fails_file_by_file(
    cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    (here / "in").mkdir()
    count = len(list(scripts(here / "in", listener, bait)))
    shutil.copy(here / "s.mp4", here / "in")
    done = cli_here("run", "--backend", "null", "in", "out")
    assert done.code == 1
    assert len(done.errors) == count
    assert [p.name for p in (here / "out").iterdir()] == ["s.mp4"]


def test_numbered_pictures_that_are_scripts_are_refused(
    cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    for number, path in enumerate(list(scripts(here, listener, bait))):
        path.rename(here / f"f_{number:03d}.png")
    done = cli_here("run", "--backend", "null", "f_%03d.png", "o.mp4")
    assert "is not a video or picture" in done.refusal


@pytest.mark.parametrize("kind", ["hls", "concat", "sdp"])
def test_a_script_on_standard_input_is_refused(
    kind: str, run_cli: Cli, listener: Listener, bait: Path, tmp_path: Path
) -> None:
    path = next(p for p in scripts(tmp_path, listener, bait) if p.stem == kind)
    with path.open("rb") as stream:
        done = run_cli("run", "-", tmp_path / "o.mp4", "--backend", "null", stdin=stream)
    ended = Done(done.returncode, done.stdout, done.stderr)
    assert "standard input: is not a video or picture" in ended.refusal
    assert not (tmp_path / "o.mp4").exists()


def boxes_with_reference(data: bytes, reference: bytes) -> bytes:
    """Replace the data reference of an MP4's tracks by `reference`, a whole `url ` or `alis` box.

    The index lies behind the samples, so that growing it moves none.
    """
    out, at = b"", 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        size = size or len(data) - at
        body = data[at + 8 : at + size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            body = boxes_with_reference(body, reference)
        elif kind == b"dref":
            body = struct.pack(">II", 0, 1) + reference
        out += struct.pack(">I4s", len(body) + 8, kind) + body
        at += size
    return out


def alias(path: Path) -> bytes:
    """An `alis` entry that leads to `path`, in the fields that FFmpeg's demuxer reads."""
    name, folder = os.fsencode(path.name), os.fsencode(path.parent)
    record = bytearray(150)
    struct.pack_into(">HH", record, 4, 150, 2)
    record[10:11] = b"\x01"
    record[11:12] = b"/"
    record[50:51] = bytes([len(name)])
    record[51 : 51 + len(name)] = name
    struct.pack_into(">HH", record, 130, 1, 1)
    for kind, text in ((0, folder), (2, os.fsencode(path)), (18, os.fsencode(path)), (19, b"/")):
        record += struct.pack(">HH", kind, len(text)) + text + b"\0" * (len(text) % 2)
    record += struct.pack(">HH", 0xFFFF, 0)
    return struct.pack(">I4sI", len(record) + 12, b"alis", 0) + bytes(record)


@pytest.mark.parametrize("kind", ["url path", "url http", "alias"])
@pytest.mark.parametrize("role", ["input", "background"])
def test_an_mp4_whose_samples_lie_elsewhere_opens_nothing(
    role: str, kind: str, cli_here: CliHere, listener: Listener, bait: Path, here: Path
) -> None:
    text = f"http://127.0.0.1:{listener.port}/" if kind == "url http" else f"file://{bait}"
    url = text.encode() + b"\0"
    reference = struct.pack(">I4sI", len(url) + 12, b"url ", 0) + url
    if kind == "alias":
        reference = alias(bait)
    changed = boxes_with_reference((here / "s.mp4").read_bytes(), reference)
    assert reference in changed
    (here / "x.mp4").write_bytes(changed)
    done = cli_here(*READ[role]("x.mp4"))
    if done.code == 0:  # its own samples
        assert len(decode(here / "o.mp4")) == FRAMES
    else:
        assert "x.mp4" in done.refusal


def element(identifier: bytes, body: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    return identifier + struct.pack(">Q", len(body) | 1 << 56) + body


def with_linked_segments(data: bytes, other: Path) -> bytes:
    """Add to a Matroska file's Info the names and identities of files before and after it."""
    at = data.index(b"\x15\x49\xa9\x66")
    first = data[at + 4]
    width = 9 - first.bit_length()
    size = int.from_bytes(data[at + 4 : at + 4 + width], "big") & ((1 << (7 * width)) - 1)
    end = at + 4 + width + size
    links = (
        element(b"\x3e\xb9\x23", b"\1" * 16)  # NextUID
        + element(b"\x3e\x83\xbb", os.fsencode(other))  # NextFilename
        + element(b"\x3c\xb9\x23", b"\2" * 16)  # PrevUID
        + element(b"\x3c\x83\xab", os.fsencode(other))  # PrevFilename
    )
    info = element(b"\x15\x49\xa9\x66", data[at + 4 + width : end] + links)
    segment = data.index(b"\x18\x53\x80\x67")
    unknown = b"\x01" + b"\xff" * 7
    return data[: segment + 4] + unknown + data[segment + 12 : at] + info + data[end:]


def test_a_matroska_file_that_links_to_another_opens_nothing(
    cli_here: CliHere, bait: Path, here: Path
) -> None:
    (here / "x.mkv").write_bytes(with_linked_segments((here / "b.mkv").read_bytes(), bait))
    done = cli_here(*READ["input"]("x.mkv"))
    assert done.code == 0, done.err
    assert len(decode(here / "o.mp4")) == FRAMES


def test_an_image_that_is_a_pattern_of_images_opens_nothing(cli_here: CliHere, here: Path) -> None:
    """A background is one file: `b%03d.png` beside `b001.png` is not there."""
    picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    with av.open(str(here / "b001.png"), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"  # type: ignore[union-attr]
        out.mux(stream.encode(picture))  # type: ignore[union-attr, arg-type]
        out.mux(stream.encode(None))  # type: ignore[union-attr]
    trap = Bait(here / "b001.png")
    for name in ("b%03d.png", "b*.png", "b00?.png", "b[0-9]*.png"):
        assert "no such file" in cli_here(*READ["background"](name)).refusal
        assert cli_here(*READ["input"](name)).code == (0 if name == "b%03d.png" else 1)
        (here / "o.mp4").unlink(missing_ok=True)
        if name == "b%03d.png":
            assert trap.bites() > 0  # as an input that pattern is documented
    assert trap.bites() == 0
    trap.close()


def test_a_name_with_a_null_is_refused(here: Path) -> None:
    """The command line cannot hold one, but a program can."""
    for arguments in (("a\0.mp4", "o.mp4"), ("s.mp4", "a\0.mp4")):
        with pytest.raises(VidmatteError, match=r"a\\x00.mp4: is not a usable file name"):
            vidmatte.run(*arguments, backend="null")


def test_no_shell_runs(run_cli: Cli, here: Path) -> None:
    """The command starts no other program: with an empty PATH it still works."""
    run_cli.env["PATH"] = "/nonexistent"
    done = run_cli("run", "s.mp4", "$(touch ran).mp4", "--backend", "null", cwd=here)
    assert done.returncode == 0, done.stderr
    assert not (here / "ran").exists()
    assert isinstance(done, subprocess.CompletedProcess)
