"""Open a network address as a camera: only when asked to, and nothing but that address.

Playlists (HLS, DASH, SDP) are refused: they are lists of further addresses. A redirect stays
within the protocols of its scheme; `file` is never one of them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from vidmatte.errors import CameraLostError, InputError
from vidmatte.sources._stream_camera import LIVE_DEMUXERS, LIVE_OPTIONS, StreamCamera, why

OPEN_S, READ_S = 10.0, 5.0

_HTTP = "http,tcp,tls,https,httpproxy"
PROTOCOLS = {
    "http": _HTTP,
    "https": _HTTP,
    "rtsp": "rtsp,rtp,rtcp,udp,tcp,tls",
    "rtsps": "rtsp,rtp,rtcp,udp,tcp,tls",
}
_DEMUXERS = {
    "http": LIVE_DEMUXERS,
    "https": LIVE_DEMUXERS,
    "rtsp": "rtsp,mpegts",
    "rtsps": "rtsp,mpegts",
}


def open_address(url: str, *, allow_network: bool) -> StreamCamera:
    """Open `url`; without `allow_network` nothing is contacted.

    Raises InputError for what can never work and CameraLostError for what may come back.
    """
    import av

    shown = without_secrets(url)
    scheme = urlsplit(url).scheme.lower()
    if scheme not in PROTOCOLS:
        raise InputError(
            f"camera {shown}: {scheme} is not opened",
            hint=f"one of {', '.join(f'{s}://' for s in PROTOCOLS)}, or a file's name",
        )
    if not allow_network:
        raise InputError(
            f"camera {shown}: is on the network", hint="add --allow-network if that is meant"
        )
    try:
        container = av.open(
            url,
            options=options_for(scheme),
            metadata_errors="replace",
            timeout=(OPEN_S, READ_S),
        )
    except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as exc:
        raise InputError(
            f"camera {shown}: refuses access", hint=f"{scheme}://USER:PASSWORD@HOST/…"
        ) from exc
    except (av.FFmpegError, OSError, ValueError, MemoryError) as exc:
        raise CameraLostError(
            f"camera {shown}: {why(exc)}", hint="check the address, and that the camera is on"
        ) from exc
    return StreamCamera(container, shown)


def options_for(scheme: str) -> dict[str, str]:
    """The options FFmpeg is given: what it may open, and how little it may look ahead."""
    options = {
        **LIVE_OPTIONS,
        "protocol_whitelist": PROTOCOLS[scheme],
        "format_whitelist": _DEMUXERS[scheme],
    }
    if scheme in ("rtsp", "rtsps"):
        options["rtsp_flags"] = "prefer_tcp"
    return options


def without_secrets(url: str) -> str:
    """Leave user, password and query out of an address, for messages."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return f"{url.partition('://')[0]}://…"
