"""Decode a file, a picture or standard input into frames, whatever state it is in."""

from __future__ import annotations

import os
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from vidmatte.errors import InputError
from vidmatte.frames import Frame, VideoInfo
from vidmatte.sources import _shared
from vidmatte.sources._damage import DamageReport
from vidmatte.sources._describe import describe, stated_end_s
from vidmatte.sources._hardware import NVDEC, accelerator, is_same, suits_device

if TYPE_CHECKING:
    import av
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer

    Packet = av.Packet[av.stream.Stream]

MAX_ERRORS_IN_A_ROW = 500  # packets; past that the rest of the stream is taken for lost
_CONVERT = "convert it first, to H.264 for example"
# Their packets are joined from pieces, and one is called corrupt for a piece that it lacks.
_MARKING_GAPS = frozenset({"mpegts", "mpeg", "mpegvideo"})
REORDER_PICTURES = 16  # what H.264 and HEVC may hold back (their largest picture buffer)


class FileSource:
    """A video or picture file, or standard input ("-"), as a source of frames.

    Entering decodes the first picture, so that what cannot be read is known before a model is
    loaded. `start_s` and `end_s` cut, in seconds of the source's own time; the first frame kept
    then has time 0 or later. `on_packet` gets the packets of the other streams, time-corrected,
    on the decoding thread (for inputs that cannot be opened twice).

    `gpu` is the number of an NVIDIA GPU that is to decode, to be set until it is entered: pictures
    then stay there ("cuda"), see `sources._hardware`. It does so where its first picture is
    FFmpeg's own bit for bit, else FFmpeg decodes; `decoder_name` says who does. A GPU conceals
    damage inside of pictures without a word.

    Raises InputError from `__enter__` and while iterating.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        start_s: float | None = None,
        end_s: float | None = None,
        max_pixels: int | None = None,
        on_packet: Callable[[Packet], None] | None = None,
        gpu: int | None = None,
    ) -> None:
        self._path = str(path)
        self._name = _shared.describe_input(path)
        self._threads = threads
        self._start_s = start_s
        self._length_s = _length_s(start_s, end_s)
        self._max_pixels = max_pixels or _shared.MAX_PIXELS
        self._on_packet = on_packet
        self.gpu = gpu
        self._descriptor = -1
        self._waiting: deque[av.VideoFrame] = deque()
        self.decoder_name = "FFmpeg"
        self.notes: list[str] = []
        self.decoded = 0

    def __enter__(self) -> Self:
        if self._path == _shared.STDIN:
            self._descriptor = _shared.open_stdin()
        else:
            self._descriptor = _shared.open_descriptor(self._path)
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._waiting.clear()
        self._leave()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _leave(self) -> None:
        if pictures := getattr(self, "_pictures", None):
            with suppress(ValueError):  # a thread that hangs in the decoder still runs it
                pictures.close()  # it holds this source, which would keep its decoder for long
        if container := getattr(self, "container", None):
            container.close()

    @property
    def files(self) -> list[str]:
        """The one name it reads."""
        return [self._path]

    @property
    def damage(self) -> list[str]:
        """One line per cause of what was lost or repaired."""
        return self._report.lines()

    @property
    def mended(self) -> list[str]:
        """One line per kind of time stamp that had to be changed."""
        return self._report.mended()

    @property
    def has_companions(self) -> bool:
        """Whether streams other than video, or tags, travel beside the picture."""
        container = self.container
        return bool(_shared.companions_of(container) or container.metadata or container.chapters())

    @property
    def video_metadata(self) -> dict[str, str]:
        """The tags of the picture's stream."""
        return dict(self._stream.metadata)

    def _open(self) -> None:
        first = self._begin()
        self.info: VideoInfo = describe(self._name, self.container, self._stream, first)
        is_file = self._path != _shared.STDIN and self._on_packet is None  # can be read twice
        if self.gpu is not None and is_file and suits_device(self.info):
            first = self._move_to_device(self.gpu, first)
        self._waiting.append(first)
        videos = len(self.container.streams.video)
        if videos > 1:
            self.notes.append(f"video stream {self._stream.index} of {videos} is used")
        self._mend = _PresentationTimes(self.info, self._report)

    def _begin(self, device: HWAccel | None = None) -> av.VideoFrame:
        """Open the container and the decoder and return the first picture."""
        self._report = DamageReport(self._start_s or 0.0)
        self.container: InputContainer = _shared.open_container(
            self._descriptor, self._name, device
        )
        self._stream = _shared.video_stream(self.container, self._name)
        self._timeline = _shared.timeline_for(self.container, self._start_s)
        if self._start_s:
            _shared.seek_near(self.container, self._start_s)
        # A GPU decodes by itself: with threads it would hold a picture for each of them.
        self._decoder = self._open_decoder(self._threads if device is None else 1)
        self._pictures = self._decode()
        first = next(self._pictures, None)
        if first is None:
            raise self._nothing()
        return first

    def _begin_again(self, device: HWAccel | None = None) -> av.VideoFrame:
        self._leave()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._begin(device)

    def _move_to_device(self, gpu: int, first: av.VideoFrame) -> av.VideoFrame:
        """Begin again on the GPU; come back unless its first picture is the same as `first`."""
        import av

        # No driver, no such GPU, no memory left on it, a codec or profile that it has not.
        with suppress(InputError, av.FFmpegError):
            picture = self._begin_again(accelerator(gpu))
            if is_same(picture, first):
                self.decoder_name = NVDEC
                return picture
        return self._begin_again()

    def _nothing(self) -> InputError:
        """Say why no picture came out at all."""
        if self._path == _shared.STDIN and "mp4" in self.container.format.name:
            return InputError(
                f"{self._name}: its index is at the end, and a pipe cannot go back",
                hint="name the file instead of piping it, or move its index to the front",
            )
        hint = "check the name, or copy or download it again"
        return InputError(f"{self._name}: {self._report.why_nothing()}", hint=hint)

    def _open_decoder(self, threads: int) -> av.VideoCodecContext:
        import av

        stream = self._stream
        context: av.VideoCodecContext | None = stream.codec_context
        if context is None:
            raise InputError(f"{self._name}: no decoder knows its video format", hint=_CONVERT)
        self._check_size(stream.width, stream.height)
        if stream.metadata.get("alpha_mode") == "1" and context.name in ("vp9", "vp8"):
            # The native decoders drop the alpha that WebM keeps in block additions.
            library = "libvpx-vp9" if context.name == "vp9" else "libvpx"
            context = cast("av.VideoCodecContext", av.CodecContext.create(library, "r"))
        context.options = {"max_pixels": str(self._max_pixels)}
        context.thread_type = "AUTO"
        context.thread_count = threads
        return context

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise InputError(
                f"{self._name}: pictures of {width}x{height} are over the limit of "
                f"{self._max_pixels} pixels",
                hint="raise the limit with --max-size if the file is trusted",
            )

    def __iter__(self) -> Iterator[Frame]:
        reason = f"ends before {self._start_s or 0:g} s"
        for picture in self._all_pictures():
            self._check_size(picture.width, picture.height)
            pts, duration = self._mend.place(picture)
            time_s = pts * self.info.time_base
            if self._start_s and time_s < 0:
                continue
            if self._length_s is not None and time_s >= self._length_s:
                reason = "no picture is left between --start and --end"
                break
            yield Frame(picture, self.decoded, pts, self.info.time_base, duration)
            self.decoded += 1
        video = self.container.streams.video.index(self._stream)
        self._report.look_closer(self._descriptor, self._frames_behind(), video)
        if not self.decoded:
            raise InputError(f"{self._name}: {reason}")

    def _frames_behind(self) -> float | None:
        """How many frames the file states behind its last picture; 0 where the user ends it."""
        if self._length_s is not None:
            return 0.0
        end_s = stated_end_s(self.container, self._stream)
        return None if end_s is None else self._mend.frames_until(end_s - (self._start_s or 0.0))

    def _all_pictures(self) -> Iterator[av.VideoFrame]:
        while self._waiting:
            yield self._waiting.popleft()
        yield from in_display_order(self._pictures, self._report)

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Yield every picture that decodes; count what does not. Ends at the end of the stream."""
        import av

        in_a_row = 0
        for packet in self._packets():
            if self._is_cut(packet):
                self._report.undecodable(packet)
                continue
            try:
                pictures = self._decoder.decode(packet if packet.size else None)
                in_a_row = 0
            except av.error.DecoderNotFoundError as exc:
                raise InputError(
                    f"{self._name}: no decoder knows its video format", hint=_CONVERT
                ) from exc
            except av.error.EOFError:
                continue
            except BlockingIOError as exc:
                raise InputError(f"{self._name}: its decoder cannot start its threads") from exc
            except (av.FFmpegError, ValueError):
                self._report.undecodable(packet)
                in_a_row += 1
                if in_a_row > MAX_ERRORS_IN_A_ROW:
                    return
                continue
            for picture in pictures:
                self._report.decoded(picture)
                yield picture
        self._report.drained()

    def _is_cut(self, packet: Packet) -> bool:
        """Whether the file ends within the packet.

        Its error would come when the decoder is emptied, and cost the whole pictures that wait
        in the decoder's other threads.
        """
        marks_gaps = self.container.format.name in _MARKING_GAPS
        return packet.is_corrupt and packet.size > 0 and not marks_gaps

    def _packets(self) -> Iterator[Packet]:
        import av

        self._discard_unread()
        packets = self.container.demux()
        errors = 0
        while errors < MAX_ERRORS_IN_A_ROW:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except IndexError:  # PyAV 18, behind the last packet, at streams it did not know
                self._report.late_stream = True
                break
            except (av.FFmpegError, OSError) as exc:
                errors += 1
                self._report.unreadable()
                if isinstance(exc, (av.error.EOFError, OSError)):
                    break
                continue
            if packet.size == 0:
                if packet.stream is self._stream:
                    yield packet
                continue
            self._timeline.correct(packet)
            if packet.stream is self._stream:
                self._report.saw(packet)
                yield packet
            elif self._on_packet is not None and packet.stream.type != "video":
                self._on_packet(packet)
        self._report.finished(self._stream, self._descriptor, self._timeline.jumps)

    def _discard_unread(self) -> None:
        """Let the demuxer skip what nobody reads; jumping clocks need to see every stream."""
        if self._on_packet is not None or self.container.format.name in _shared.RELATIVE_FORMATS:
            return
        from av.stream import Discard

        for stream in self.container.streams:
            if stream is not self._stream:
                stream.discard = Discard.all


def in_display_order(
    pictures: Iterator[av.VideoFrame], report: DamageReport
) -> Iterator[av.VideoFrame]:
    """Sort pictures that a decoder gives out of order after damage; else pass them at once."""
    held: list[av.VideoFrame] = []
    until = 0
    for count, picture in enumerate(pictures):
        if report.damaged:
            report.damaged = False
            until = count + 2 * REORDER_PICTURES
        if picture.pts is None or (count >= until and not held):
            yield picture
            continue
        insort(held, picture, key=_pts_of)
        while len(held) > (REORDER_PICTURES if count < until else 0):
            yield held.pop(0)
    yield from held


def _length_s(start_s: float | None, end_s: float | None) -> Fraction | None:
    """How long the cut is, as decimal as the user wrote it: in binary 0.2 s lies behind 1/5 s."""
    if end_s is None:
        return None
    start, end = (Fraction(t).limit_denominator(1_000_000) for t in (start_s or 0.0, end_s))
    return end - start


def _pts_of(picture: av.VideoFrame) -> int:
    return picture.pts or 0


class _PresentationTimes:
    """Give every picture a time stamp that is after the one before.

    A picture that is not after its predecessor is put an eighth of a frame behind it: what
    follows keeps its own time.
    """

    def __init__(self, info: VideoInfo, report: DamageReport) -> None:
        self._base = info.time_base
        self._step = max(1, round(1 / (info.frame_rate * info.time_base)))
        self._report = report
        self._last: int | None = None

    def place(self, picture: av.VideoFrame) -> tuple[int, int]:
        """Return (pts, duration) of `picture` in the stream's time base."""
        pts = picture.pts if picture.pts is not None else picture.dts
        if pts is None:
            self._report.unstamped += 1
            pts = 0 if self._last is None else self._last + self._step
        elif self._last is not None and pts <= self._last:
            self._report.not_later += 1
            pts = self._last + max(1, self._step // 8)
        if self._last is None:
            self._report.began(pts, self._step)
        else:
            self._report.stepped((pts - self._last) / self._step, float(self._last * self._base))
        self._last = pts
        return pts, picture.duration or 0

    def frames_until(self, end_s: float) -> float:
        """How many frames lie between the end of the last picture and `end_s`."""
        last = self._last or 0
        return (end_s / float(self._base) - last) / self._step - 1
