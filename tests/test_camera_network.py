"""Network cameras against a server on loopback: streams, stalls, lies, and no contact unasked."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import av
import pytest
from conftest import make_clip
from test_camera import SOON_S, check_contract, read_on

from vidmatte.errors import CameraLostError, InputError
from vidmatte.sources import _network_camera
from vidmatte.sources._network_camera import PROTOCOLS, options_for, without_secrets
from vidmatte.sources.camera import Camera, CameraChoice, open_camera

SECRET = "user:hunter2"


class Server:
    """Serves one clip in every way a camera may; `hits` are the paths that were asked for."""

    def __init__(self, stream: bytes, folder: Path) -> None:
        self.stream = stream
        self.folder = folder
        self.hits: list[str] = []
        self.ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.hits.append(self.path)
                with suppress(ConnectionError):
                    server.answer(self, urlsplit(self.path).path)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = False
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self.ended.set()
        self._http.shutdown()
        self._thread.join(SOON_S)
        self._http.server_close()

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        getattr(self, path.strip("/").replace("-", "_"), self.missing)(request)

    def head(self, request: BaseHTTPRequestHandler, kind: str = "video/mp2t") -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.end_headers()

    def missing(self, request: BaseHTTPRequestHandler) -> None:
        request.send_error(404)

    def live(self, request: BaseHTTPRequestHandler) -> None:
        self.head(request)
        request.wfile.write(self.stream)

    def recording(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        body = (self.folder / "r.mp4").read_bytes()
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def private(self, request: BaseHTTPRequestHandler) -> None:
        wanted = "Basic " + base64.b64encode(SECRET.encode()).decode()
        if request.headers.get("Authorization") == wanted:
            self.live(request)
            return
        request.send_response(401)
        request.send_header("WWW-Authenticate", 'Basic realm="camera"')
        request.end_headers()

    def stalls(self, request: BaseHTTPRequestHandler) -> None:
        self.head(request)
        request.wfile.write(self.stream[: len(self.stream) * 3 // 4 // 188 * 188])
        request.wfile.flush()
        self.ended.wait(SOON_S)

    def silent(self, request: BaseHTTPRequestHandler) -> None:
        self.ended.wait(SOON_S)

    def garbage(self, request: BaseHTTPRequestHandler) -> None:
        self.head(request)
        request.wfile.write(bytes(range(256)) * 2048)

    def motion_jpeg(self, request: BaseHTTPRequestHandler) -> None:
        self.head(request, "multipart/x-mixed-replace; boundary=b")
        for packet in jpegs(self.folder / "j.mkv"):
            request.wfile.write(b"--b\r\nContent-Type: image/jpeg\r\n")
            request.wfile.write(b"Content-Length: %d\r\n\r\n" % len(packet) + packet + b"\r\n")
            time.sleep(0.002)

    def text(self, request: BaseHTTPRequestHandler, kind: str, body: str) -> None:
        self.head(request, kind)
        request.wfile.write(body.encode())

    def playlist(self, request: BaseHTTPRequestHandler) -> None:
        lines = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/live\n#EXT-X-ENDLIST\n"
        self.text(request, "application/vnd.apple.mpegurl", lines)

    def concat(self, request: BaseHTTPRequestHandler) -> None:
        clip = self.folder / "live.ts"
        self.text(request, "text/plain", f"ffconcat version 1.0\nfile 'file:{clip}'\n")

    def session(self, request: BaseHTTPRequestHandler) -> None:
        body = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 9 RTP/AVP 33\n"
        self.text(request, "application/sdp", body)

    def to_file(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", f"file://{self.folder / 'live.ts'}")
        request.end_headers()

    def to_live(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", f"http://{self.address}/live")
        request.end_headers()


def jpegs(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    low_delay = {"tune": "zerolatency", "preset": "ultrafast"}
    make_clip(folder / "live.ts", 40, rate=30, options=low_delay)
    make_clip(folder / "j.mkv", 30, codec="mjpeg", pix_fmt="yuvj420p")
    make_clip(folder / "r.mp4", 12, rate=40, muxer={"movflags": "faststart"})
    return folder


@pytest.fixture
def server(clips: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server((clips / "live.ts").read_bytes(), clips)
    yield server
    server.close()


def open_url(url: str) -> Camera:
    return open_camera(CameraChoice(url, allow_network=True))


def why_not(url: str) -> str:
    """Open an address that cannot be a camera; return what is said."""
    with pytest.raises(InputError) as raised:
        open_url(url)
    return str(raised.value)


@pytest.mark.parametrize("path", ["live", "motion-jpeg", "to-live"])
def test_a_stream_is_a_camera(server: Server, path: str) -> None:
    check_contract(open_url(f"http://{server.address}/{path}"), 10)


def test_a_recording_is_played_at_its_own_pace(server: Server) -> None:
    camera = open_url(f"http://{server.address}/recording")
    frames = []
    for _ in range(8):
        frames.append(camera.read())
        assert time.monotonic() >= frames[-1].time_s - 1e-5
    assert frames[-1].time_s - frames[0].time_s >= 7 / 40 - 1e-3
    camera.close()


@pytest.mark.fault
@pytest.mark.parametrize("scheme", ["http", "https", "rtsp", "rtsps", "HTTP"])
def test_nothing_is_contacted_unasked(server: Server, scheme: str) -> None:
    with pytest.raises(InputError, match="network") as raised:
        open_camera(CameraChoice(f"{scheme}://{server.address}/live"))
    assert not isinstance(raised.value, CameraLostError)
    assert "--allow-network" in str(raised.value.hint)
    assert server.hits == []


@pytest.mark.fault
@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://h/x", "concat://a", "gopher://h", "udp://h:1", "x://"]
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="is not opened") as raised:
        open_url(url)
    assert not isinstance(raised.value, CameraLostError)
    assert "http://" in str(raised.value.hint)


@pytest.mark.fault
def test_the_end_of_a_stream_loses_the_camera(server: Server) -> None:
    camera = open_url(f"http://{server.address}/live")
    with pytest.raises(CameraLostError, match=r"ended|broke off"):
        read_on(camera)
    camera.close()


@pytest.mark.fault
def test_a_stall_loses_the_camera(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network_camera, "READ_S", 0.5)
    camera = open_url(f"http://{server.address}/stalls")
    with pytest.raises(CameraLostError, match="nothing for too long"):
        read_on(camera)
    camera.close()


@pytest.mark.fault
def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network_camera, "OPEN_S", 0.5)
    start_s = time.monotonic()
    assert "nothing for too long" in why_not(f"http://{server.address}/silent")
    assert time.monotonic() - start_s < SOON_S


@pytest.mark.fault
def test_nobody_listens(server: Server) -> None:
    address = server.address
    server.close()
    with pytest.raises(CameraLostError, match="refused"):
        open_url(f"http://{address}/live")
    with pytest.raises(CameraLostError, match="refused"):
        open_url(f"rtsp://{address}/live")


@pytest.mark.fault
@pytest.mark.parametrize("path", ["garbage", "concat", "session", "playlist"])
def test_lists_and_garbage_open_nothing_else(server: Server, path: str) -> None:
    said = why_not(f"http://{server.address}/{path}")
    assert said.endswith(("sends nothing that can be read as video", "broke off"))
    assert set(server.hits) == {f"/{path}"}


@pytest.mark.fault
def test_a_redirect_reads_no_file(server: Server) -> None:
    with pytest.raises(CameraLostError):
        open_url(f"http://{server.address}/to-file")
    assert set(server.hits) == {"/to-file"}


@pytest.mark.fault
def test_what_is_not_there_may_come(server: Server) -> None:
    with pytest.raises(CameraLostError):
        open_url(f"http://{server.address}/nothing")


@pytest.mark.fault
def test_a_password_opens_and_is_not_told(server: Server) -> None:
    camera = open_url(f"http://{SECRET}@{server.address}/private?token=abc")
    check_contract(camera)
    assert camera.info.name == f"http://{server.address}/private"
    with pytest.raises(InputError, match="refuses access") as raised:
        open_url(f"http://user:wrong@{server.address}/private?token=abc")
    assert not isinstance(raised.value, CameraLostError)
    said = f"{raised.value} {raised.value.hint}"
    assert "wrong" not in said
    assert "abc" not in said


def test_control_characters_are_escaped(server: Server) -> None:
    said = why_not(f"http://{server.address}/a\x1b[31m")
    assert "\x1b" not in said
    assert "\\x1b" in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://u:p@host:554/cam?key=1", "rtsp://host:554/cam"),
        ("http://host/x", "http://host/x"),
        ("http://u:p@host:bad/x", "http://…"),
        ("http://u:p@[bad/x", "http://…"),
    ],
)
def test_addresses_in_messages_have_no_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_no_address_may_open_a_file() -> None:
    for scheme, protocols in PROTOCOLS.items():
        options = options_for(scheme)
        assert options["protocol_whitelist"] == protocols
        assert not {"file", "fd", "pipe", "concat", "data", "crypto"} & set(protocols.split(","))
        formats = set(options["format_whitelist"].split(","))
        assert not formats & {"hls", "dash", "sdp", "concat", "imf", "lavfi", "image2"}
