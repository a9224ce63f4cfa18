"""Encode pictures into a video file and mux the source's other streams beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from vidmatte.errors import OutputError
from vidmatte.frames import VideoInfo
from vidmatte.sinks import SinkReport
from vidmatte.sinks import _hardware as hardware
from vidmatte.sinks._matroska import ROOM, write_aspect
from vidmatte.sinks._shared import Turner, converter_for, translated
from vidmatte.sinks._streams import MATROSKA, Carrier, CompanionReader, kept_tags
from vidmatte.sinks.plan import OutputPlan

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer

MAX_INTERLEAVE_US = 1_000_000  # what the muxer holds back for a stream that is silent
CLUSTER_MS = 500  # what a Matroska loses to a sudden end, beyond what the encoder holds
APNG_TICKS = 65535  # a second has at most so many: a delay is a fraction of 16-bit numbers
# Codecs that have the shape of pixels themselves.
OWN_ASPECT = frozenset({"libx264", "libx265", "mpeg4", "ffv1", *hardware.FORMATS})
HELD_ASPECT = frozenset({"mp4", "mov", "apng"})  # containers that FFmpeg tells it
INTERLACED_CODECS = {"libx264", "mpeg4", "ffv1"}
CODEC_FLAG_INTERLACED = (1 << 18) | (1 << 29)  # AV_CODEC_FLAG_INTERLACED_DCT and _ME


@dataclass(frozen=True, slots=True)
class Muxing:
    """What a video file gets beside its pictures, and what encodes them.

    That is so many threads (0: auto), or with NVENC the GPU of this number (None: the first).
    """

    companions: CompanionReader | None = None
    audio: bool = True
    video_metadata: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    gpu: int | None = None


class FileSink:
    """A video file at an open descriptor (a part file, a FIFO or standard output).

    Time stamps, colour tags, sample aspect ratio, orientation, HDR metadata, field order and
    the container's metadata are the source's. Raises OutputError.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        plan: OutputPlan,
        info: VideoInfo,
        muxing: Muxing | None = None,
        *,
        streamed: bool = False,
    ) -> None:
        self._name = name
        self.report = SinkReport()
        self._turner = Turner(info) if plan.turned else None
        self._address = f"pipe:{descriptor}" if streamed else f"file:/dev/fd/{descriptor}"
        self._plan, self._info = plan, info
        muxing = muxing or Muxing()
        self._companions = muxing.companions
        self._closed = False
        self._carrier: Carrier | None = None
        self._last_pts: int | None = None
        self._moved_s = Fraction(0)
        self._converter = converter_for(plan, info)
        interlaced = info.field_order != "progressive" and plan.codec in INTERLACED_CODECS
        self._interlaced = interlaced
        needs_marks = interlaced or info.sample_aspect_ratio != 1
        self._marker = FrameMarker(info) if needs_marks else None
        self._patched = -1 if streamed else self._aspect_descriptor(descriptor)
        self._is_started = False
        with translated(name):
            self._container = self._open()
            self._stream = self._add_video(muxing)
            if self._companions is not None:
                self._carrier = Carrier(
                    self._container, self._companions, self.report, audio=muxing.audio
                )
                self._container.metadata.update(kept_tags(self._companions.metadata))
                self._container.set_chapters(self._companions.chapters)  # type: ignore[arg-type]

    def _aspect_descriptor(self, descriptor: int) -> int:
        """Return the file whose header has to be told the shape of its pixels, or -1."""
        is_told = self._info.sample_aspect_ratio != 1 and self._plan.container in MATROSKA
        return descriptor if is_told else -1

    def _open(self) -> OutputContainer:
        import av

        options = {"max_interleave_delta": str(MAX_INTERLEAVE_US), "flush_packets": "1"}
        if self._plan.container in ("matroska", "webm"):
            options["cluster_time_limit"] = str(CLUSTER_MS)
        if self._plan.container in ("mp4", "mov"):
            options |= {"movflags": self._movflags(), "video_track_timescale": self._timescale()}
        # The address names our own descriptor: FFmpeg never resolves the user's name.
        return av.open(self._address, "w", format=self._plan.container, options=options)

    def _movflags(self) -> str:
        tags = self._companions.metadata if self._companions else {}
        apple = any(k.startswith("com.") for k in tags)
        return "hybrid_fragmented+delay_moov" + ("+use_metadata_tags" if apple else "")

    def _timescale(self) -> str:
        """Ticks per second of the track: the source's own clock, made fine enough for players."""
        ticks = self._time_base().denominator
        return str(ticks * -(-1000 // ticks))

    def _time_base(self) -> Fraction:
        rate = self._info.frame_rate
        if self._plan.container == "avi":
            return 1 / rate  # its clock
        if self._plan.container == "apng":
            return Fraction(1, rate.numerator * max(1, APNG_TICKS // rate.numerator))
        return self._info.time_base

    def _add_video(self, muxing: Muxing) -> av.VideoStream:
        info, plan = self._info, self._plan
        options = dict(plan.options)
        if plan.codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # it prints its settings to the terminal
        self._add_hdr(options)
        self._add_fields(options)
        if plan.codec in hardware.FORMATS and muxing.gpu is not None:
            options["gpu"] = str(muxing.gpu)
        stream = cast(
            "av.VideoStream",
            self._container.add_stream(plan.codec, rate=info.frame_rate, options=options),
        )
        context = stream.codec_context
        turned = plan.turned and info.orientation.swaps_sides
        context.width, context.height = info.upright_size if turned else (info.width, info.height)
        context.pix_fmt = hardware.SENT_AS.get((plan.codec, plan.pix_fmt), plan.pix_fmt)
        context.time_base = stream.time_base = self._time_base()
        context.framerate = info.frame_rate
        context.sample_aspect_ratio = stream.sample_aspect_ratio = (
            1 / info.sample_aspect_ratio if turned else info.sample_aspect_ratio
        )
        context.gop_size = max(1, round(info.frame_rate))
        context.thread_type = "FRAME" if plan.codec in ("libx264", "libx265") else "AUTO"
        context.thread_count = muxing.threads
        if plan.codec in ("libx265", "hevc_nvenc") and plan.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players refuse FFmpeg's default, hev1
        self._tag_colour(context)
        if self._interlaced:
            context.flags |= CODEC_FLAG_INTERLACED
        stream.metadata.update(kept_tags(muxing.video_metadata))
        self._prepare_aspect(stream)
        if info.display_matrix is not None and not plan.turned:
            stream.set_display_matrix(list(info.display_matrix))
        self._start(context)
        return stream

    def _start(self, context: av.VideoCodecContext) -> None:
        """Open the encoder: what it refuses is known before a model is loaded."""
        import av

        try:
            context.open()
        except (av.FFmpegError, OSError) as exc:
            codec = self._plan.codec
            if codec not in hardware.FORMATS:
                raise
            raise OutputError(
                f"{self._name}: {codec} cannot start: no NVIDIA encoder here takes these pictures",
                hint="leave --codec out, or use h264 or hevc, which encode on the CPU",
            ) from exc

    def _tag_colour(self, context: av.VideoCodecContext) -> None:
        if self._plan.content == "matte":
            context.color_range = 2
            return
        colour = self._converter.colour
        context.colorspace, context.color_range = colour.matrix, colour.range
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer

    def _add_hdr(self, options: dict[str, str]) -> None:
        if self._plan.codec != "libx265":
            return
        extra = ["log-level=error"]
        if self._info.mastering_display:
            extra.append(f"master-display={self._info.mastering_display}")
        if self._info.content_light:
            extra.append(f"max-cll={self._info.content_light}")
        if self._info.mastering_display or self._info.content_light:
            extra += ["hdr10=1", "repeat-headers=1"]
        given = options.get("x265-params")
        options["x265-params"] = ":".join(([given] if given else []) + extra)

    def _add_fields(self, options: dict[str, str]) -> None:
        if self._interlaced and self._plan.codec == "libx264":
            options["x264-params"] = f"{self._info.field_order}=1"

    def write(self, picture: av.VideoFrame) -> None:
        """Encode a picture and mux it and the sound up to it."""
        with translated(self._name):
            picture = self._converter.convert(picture)
            if self._turner is not None:
                picture = self._turner.turn(picture)
            if self._marker is not None:
                picture = self._marker.mark(picture)
            picture.pict_type = 0  # the source's own I, P, B must not drive the encoder
            self._place(picture)
            for packet in self._stream.encode(picture):
                self._mux(packet)

    def _place(self, picture: av.VideoFrame) -> None:
        """Move the time stamp to the output's clock, keeping it after the one before."""
        base = self._time_base()
        assert picture.time_base is not None
        if picture.pts is None:
            return
        time_s = picture.pts * picture.time_base
        if picture.time_base != base:
            picture.pts = round(time_s / base)
            picture.time_base = base
        if self._last_pts is None and picture.pts < 0 and self._plan.container in ("mp4", "mov"):
            # Their edit list would hide what lies before 0. All streams move alike.
            self._container.options["avoid_negative_ts"] = "make_non_negative"
        if self._last_pts is not None and picture.pts <= self._last_pts:
            picture.pts = self._last_pts + 1
        self._last_pts = picture.pts
        self._moved_s = max(self._moved_s, abs(picture.pts * base - time_s))

    def _mux(self, packet: av.Packet[av.VideoStream]) -> None:
        time_s = None if packet.dts is None else float(packet.dts * packet.time_base)
        if self._carrier is not None and time_s is not None:
            self._carrier.carry(time_s)
        self._container.mux(packet)
        if not self._is_started:
            self._is_started = True
            self._write_aspect()

    def _prepare_aspect(self, stream: av.VideoStream) -> None:
        """Make room in the header for the shape of pixels, or say that it is lost."""
        plan, ratio = self._plan, self._info.sample_aspect_ratio
        if self._patched >= 0:
            stream.metadata["title"] = stream.metadata.get("title", "") + ROOM
        elif ratio != 1 and plan.codec not in OWN_ASPECT and plan.container not in HELD_ASPECT:
            place = "a pipe" if plan.container in MATROSKA else f".{plan.container}"
            self.report.notes.append(
                f"pixels of {ratio} become square: {plan.codec} in {place} cannot say their shape"
            )

    def _write_aspect(self) -> None:
        """Put it into the header that was written."""
        if self._patched >= 0:
            context = self._stream.codec_context
            ratio = context.sample_aspect_ratio
            assert ratio is not None
            write_aspect(self._patched, (context.width, context.height), ratio)

    def close(self) -> None:
        """Flush the encoder, mux what sound is left, and write the index."""
        if self._closed:
            return
        self._closed = True
        if self._moved_s > 1 / self._info.frame_rate:
            suffix, moved_s = f".{self._plan.container}", float(self._moved_s)
            moved = f"pictures are moved by up to {moved_s:.2f} s: {suffix} has one rate"
            self.report.notes.append(moved)
        try:
            with translated(self._name):
                for packet in self._stream.encode(None):
                    self._mux(packet)
                if self._carrier is not None:
                    self._carrier.carry(None)
                    self._carrier.finish()
        finally:
            with translated(self._name):
                self._container.close()
                self._write_aspect()  # the muxer has written its header anew


class FrameMarker:
    """Marks pictures with field order and sample aspect ratio, which PyAV can only do by filters.

    Some encoders take them from the pictures and not from their settings.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        self._graph: av.filter.Graph | None = None

    def mark(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return the same planes with the marks set."""
        if self._graph is None:
            self._graph = self._build(picture)
        self._source.push(picture)
        return cast("av.VideoFrame", self._sink.pull())

    def _build(self, picture: av.VideoFrame) -> av.filter.Graph:
        import av

        graph = av.filter.Graph()
        self._source = graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=self._info.time_base,
        )
        order = "prog" if self._info.field_order == "progressive" else self._info.field_order
        ratio = self._info.sample_aspect_ratio
        if (picture.width, picture.height) != (self._info.width, self._info.height):
            ratio = 1 / ratio  # turned by a quarter
        filters = [
            graph.add("setfield", order),
            graph.add("setsar", f"{ratio.numerator}/{ratio.denominator}"),
        ]
        self._sink = graph.add("buffersink")
        graph.link_nodes(self._source, *filters, self._sink).configure()
        return graph
