"""Open what a user names as an input, and nothing else: the guard in front of FFmpeg."""

from __future__ import annotations

import errno
import os
import stat
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vidmatte.errors import InputError
from vidmatte.sources._boxes import refuse_false_index

if TYPE_CHECKING:
    import av
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer

    Packet = av.Packet[av.stream.Stream]

# Demuxers that read one file and open no other: no playlists, scripts, devices or protocols.
DEMUXERS = ",".join(
    (
        "mov,matroska,webm,avi,flv,asf,ogg,mpeg,mpegts,mpegvideo,h263,h264,hevc,obu,ivf,mxf,dv,gif",
        "apng,yuv4mpegpipe,nut,m4v,mjpeg,rm,wtv,gxf,vc1,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe",
        "tiff_pipe,jpegxl_pipe,jpegls_pipe,j2k_pipe,exr_pipe,dpx_pipe,qoi_pipe,psd_pipe,sgi_pipe",
        "ppm_pipe,pgm_pipe,pgmyuv_pipe,pbm_pipe,pam_pipe,pfm_pipe,hdr_pipe,sunrast_pipe,pcx_pipe",
    )
)
# Their time stamps start anywhere and may jump (libavformat's AVFMT_TS_DISCONT, and FLV).
RELATIVE_FORMATS = frozenset({"mpegts", "mpeg", "flv", "mpegvideo"})
STDIN = "-"

MAX_PIXELS = 8192 * 4320
JUMP_S = 10  # ffmpeg's -dts_delta_threshold: a larger step is a cut in time, not a pause
BACKWARD_S = Fraction(1, 10)  # what a decode time stamp may fall back before it is a restart


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; return its descriptor, which the caller closes.

    The path is a file name and never a URL. Raises InputError for what is missing, not readable
    or not a regular file: opening a FIFO or a device could block for ever.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as exc:
        raise InputError(f"{name}: {_why(exc)}", hint=_hint_for(name, exc)) from exc
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder, not a video", hint="name a file in it")
    raise InputError(
        f"{name}: is not a regular file", hint="pipe it in and name the input '-' instead"
    )


def open_stdin() -> int:
    """Duplicate standard input's descriptor; raise InputError for none and for a terminal."""
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input: is closed", hint="pipe a video in")
    if sys.stdin.isatty():
        raise InputError("standard input: is a terminal", hint="pipe a video in")
    return os.dup(sys.stdin.fileno())


def _why(exc: OSError | ValueError) -> str:
    if isinstance(exc, FileNotFoundError):
        return "no such file"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return "is not a usable file name"


def _hint_for(name: str, exc: OSError | ValueError) -> str | None:
    if "://" in name:
        return "an input is a file name; addresses are not opened"
    if isinstance(exc, PermissionError):
        return "check the file's permissions"
    return "check the path" if isinstance(exc, FileNotFoundError) else None


def open_container(
    descriptor: int, name: str, accelerator: HWAccel | None = None
) -> InputContainer:
    """Open a container on `descriptor` with one-file demuxers and no protocol but that descriptor.

    `accelerator` is the hardware that decodes its pictures. Raises InputError when it is not a
    video or picture, is damaged, or needs another file.
    """
    import av

    refuse_false_index(descriptor, name)
    options = {
        "fd": str(descriptor),
        "protocol_whitelist": "fd",
        "format_whitelist": DEMUXERS,
        "max_streams": "256",
    }
    try:
        return av.open("fd:", options=options, metadata_errors="replace", hwaccel=accelerator)
    except MemoryError as exc:  # the file asks for absurdly much
        raise _unopenable(descriptor, name, exc) from None
    except (av.FFmpegError, OSError, ValueError) as exc:
        raise _unopenable(descriptor, name, exc) from exc


def _unopenable(descriptor: int, name: str, exc: Exception) -> InputError:
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return InputError(f"{name}: cannot be opened: {_why(exc)}")
    try:
        if os.fstat(descriptor).st_size == 0 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return InputError(f"{name}: is empty", hint="copy or download it again")
        head = os.pread(descriptor, 12, 0)
    except OSError:
        head = b""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return InputError(
            f"{name}: its index is missing or damaged; the recording or copy was cut short",
            hint="copy or download it again",
        )
    return InputError(
        f"{name}: is not a video or picture that can be read",
        hint="check the name; playlists, scripts and texts are not opened",
    )


def video_stream(container: InputContainer, name: str) -> av.VideoStream:
    """Pick the default video stream, else the first, never cover art; raise InputError if none."""
    from av.stream import Disposition

    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        raise InputError(
            f"{name}: has no video stream", hint="sound alone has no background; check the name"
        )
    return next((s for s in videos if s.disposition & Disposition.default), videos[0])


def companions_of(container: InputContainer) -> list[av.stream.Stream]:
    """List the streams that travel beside the picture: all but video."""
    return [s for s in container.streams if s.type != "video"]


class Timeline:
    """Mend the time stamps of formats whose clocks jump, packet by packet in file order.

    The rule is the ffmpeg tool's: a decode time stamp more than 10 s ahead of what its stream
    expects, or more than .1 s behind, shifts everything from there so that it continues. Two
    readers of one file see the same packets and so agree. `origin` (seconds) is subtracted from
    every time stamp.
    """

    def __init__(self, *, origin: Fraction, mend: bool) -> None:
        self.origin = origin
        self.jumps = 0
        self._mend = mend
        self._shift = Fraction(0)
        self._expected: dict[int, Fraction] = {}

    def correct(self, packet: Packet) -> None:
        """Rewrite `packet.pts` and `packet.dts` in place."""
        base = packet.time_base
        if base is None or (packet.dts is None and packet.pts is None):
            return
        if self._mend:
            self._follow(packet, base)
        shift = round((self._shift - self.origin) / base)
        if packet.pts is not None:
            packet.pts += shift
        if packet.dts is not None:
            packet.dts += shift

    def _follow(self, packet: Packet, base: Fraction) -> None:
        stamp = packet.dts if packet.dts is not None else packet.pts
        assert stamp is not None
        time = stamp * base + self._shift
        expected = self._expected.get(packet.stream_index)
        if expected is not None and not -BACKWARD_S <= time - expected <= JUMP_S:
            self._shift += expected - time
            self.jumps += 1
            time = expected
        self._expected[packet.stream_index] = time + (packet.duration or 0) * base


def timeline_for(container: InputContainer, start_s: float | None) -> Timeline:
    """Build the time line of a freshly opened container; `start_s` is where the user begins."""
    relative = container.format.name in RELATIVE_FORMATS
    origin = Fraction(0)
    if relative and container.start_time is not None:
        origin = Fraction(container.start_time, 1_000_000)
    if start_s:
        origin += Fraction(start_s).limit_denominator(1_000_000)
    return Timeline(origin=origin, mend=relative)


def seek_near(container: InputContainer, start_s: float) -> None:
    """Go to the key frame at or before `start_s` after the start; stay put where it cannot."""
    import av

    relative = container.format.name in RELATIVE_FORMATS
    target = round(start_s * 1_000_000) + (container.start_time or 0 if relative else 0)
    try:
        container.seek(max(target, 0), backward=True)
    except (av.FFmpegError, OSError):
        return


def describe_input(path: str | Path) -> str:
    """Name an input in messages."""
    return "standard input" if str(path) == STDIN else str(path)
