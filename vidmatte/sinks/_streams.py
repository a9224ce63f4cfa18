"""Carry sound, subtitles, attachments and data into the output: copied, converted or named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Protocol, cast

from vidmatte.sinks import SinkReport

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.stream import Stream

    Packet = av.Packet[Stream]

# What a container gets when it cannot hold the source's sound.
AUDIO_FALLBACK = {"webm": "libopus", "mp4": "aac", "mov": "aac", "mpegts": "aac", "avi": "aac",
                  "matroska": "aac", "nut": "aac"}  # fmt: skip
USUAL_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "2.1",
    4: "quad",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000,
             7350)  # fmt: skip
OPUS_RATES = (48000, 24000, 16000, 12000, 8000)
# MPEG-TS does not tell PyAV what it holds beyond its defaults (ETSI TS 101 154, ATSC A/53).
HELD_BY_MPEGTS = frozenset({"aac", "ac3", "dts", "dvb_subtitle", "dvb_teletext", "eac3", "mp2",
                            "mp3"})  # fmt: skip
MP4_ONLY = frozenset({"flac", "opus", "truehd"})  # movenc lists them for .mov and refuses them
MATROSKA = ("matroska", "webm")
# Text subtitles, by the name of the codec that each container holds.
SUBTITLES = {"mp4": ("mov_text",), "mov": ("mov_text",), "webm": ("webvtt",)}
OWN_TAGS = frozenset({"encoder", "duration", "major_brand", "minor_version", "compatible_brands",
                      "creation_time", "number_of_frames", "number_of_bytes", "bps",
                      "_statistics_writing_app", "_statistics_tags"})  # fmt: skip


class CompanionReader(Protocol):
    """What the file sink needs of the streams beside the picture."""

    streams: list[Stream]
    stop_s: float | None

    @property
    def metadata(self) -> dict[str, str]: ...

    @property
    def chapters(self) -> list[dict[str, Any]]: ...

    def packets_until(self, time_s: float | None) -> Iterable[Packet]: ...


def kept_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Drop the tags that describe the old file's making rather than its content."""
    return {k: v for k, v in metadata.items() if k.split("-")[0].lower() not in OWN_TAGS}


class Carrier:
    """Adds one output stream per companion stream and moves packets across.

    `report` gets what was converted, left out or lost, one line each.
    """

    def __init__(
        self,
        container: OutputContainer,
        companions: CompanionReader,
        report: SinkReport,
        *,
        audio: bool,
    ) -> None:
        self._container = container
        self._companions = companions
        self._routes: dict[int, Callable[[Packet], None]] = {}
        self._encoders: list[_Transcoder] = []
        self._last_dts_s: dict[int, Fraction] = {}
        self._formats: dict[int, bytes] = {}
        self._changed: Counter[str] = Counter()
        self._report = report
        self._dropped: Counter[str] = Counter()
        for stream in companions.streams:
            if stream.type == "audio" and not audio:
                continue
            self._add(stream)

    def _add(self, stream: Stream) -> None:
        name = _name_of(stream)
        adders = {
            "audio": self._add_audio,
            "subtitle": self._add_subtitle,
            "attachment": self._add_attachment,
            "data": self._add_data,
        }
        adder = adders.get(stream.type)
        if adder is None or not adder(stream):
            self._report.notes.append(
                f"{name} is left out: .{self._container.format.name} cannot hold it"
            )

    def _add_audio(self, stream: Stream) -> bool:
        if stream.codec_context is None:
            return False
        if self._holds(stream.codec_context.codec.canonical_name) and self._copy(stream):
            return True
        encoder = AUDIO_FALLBACK.get(self._container.format.name)
        if encoder is None:
            return False
        transcoder = _Transcoder(self._container, stream, encoder)
        self._encoders.append(transcoder)
        self._routes[stream.index] = transcoder.feed
        self._report.notes.append(
            f"{_name_of(stream)} is converted to {encoder.removeprefix('lib')}"
        )
        return True

    def _add_subtitle(self, stream: Stream) -> bool:
        if stream.codec_context is None:
            return False
        name = stream.codec_context.codec.canonical_name
        allowed = SUBTITLES.get(self._container.format.name)
        if name in (allowed or (name,)) and self._holds(name):
            return self._copy(stream)
        return False

    def _add_attachment(self, stream: Stream) -> bool:
        if self._container.format.name != "matroska":
            return False
        tags = stream.metadata
        self._container.add_attachment(
            tags.get("filename", "attachment"),
            tags.get("mimetype", "application/octet-stream"),
            bytes(stream.data),  # type: ignore[attr-defined]
        )
        return True

    def _add_data(self, stream: Stream) -> bool:
        if "timecode" in stream.metadata:
            return True  # the muxer writes the track anew from the picture's tag
        if self._container.format.name not in ("mp4", "mov") or stream.name is None:
            return False  # also a time code whose tag was out of a pipe's reach
        return self._copy(stream)

    def _holds(self, codec: str) -> bool:
        if self._container.format.name == "mpegts":
            return codec in HELD_BY_MPEGTS
        if self._container.format.name == "mov" and codec in MP4_ONLY:
            return False
        names = self._container.supported_codecs
        return codec in names or {"subrip": "srt", "ass": "ssa"}.get(codec, codec) in names

    def _copy(self, stream: Stream) -> bool:
        config = _missing_config(stream)
        if config == b"" and self._container.name.startswith("pipe:"):
            return False  # a header that cannot be written anew needs it at once
        try:
            output = self._container.add_stream_from_template(stream)
        except ValueError:
            return False
        if config:
            output.codec_context.extradata = config
        output.metadata.update(kept_tags(stream.metadata))
        output.disposition = stream.disposition

        unframe = _unframer(self._container, stream)
        step = 1 if stream.type == "audio" else 0
        one_format = _is_adts(stream) and self._container.format.name != "mpegts"

        def forward(packet: Packet) -> None:
            if one_format and self._changes(stream, packet):
                return
            for bare in unframe(packet):
                if self._in_order(stream, bare, step, output.time_base):
                    bare.stream = output
                    self._container.mux(bare)

        self._routes[stream.index] = forward
        self._report.copied += 1
        return True

    def _changes(self, stream: Stream, packet: Packet) -> bool:
        """Whether a packet of AAC in ADTS has another rate or channels than the first one.

        Elsewhere they stand once, in the header: such a packet would play at a wrong speed.
        """
        sound_format = _adts_format(packet)
        if sound_format is None:
            return False  # a damaged header says nothing
        if sound_format == self._formats.setdefault(stream.index, sound_format):
            return False
        self._changed[_name_of(stream)] += 1
        return True

    def _in_order(self, stream: Stream, packet: Packet, step: int, base: Fraction | None) -> bool:
        """Whether the decode time is `step` ticks on at least: a muxer gives up at one that is not.

        Sound has to move on (1); several lines of text may begin at once (0). `stream` is where
        the packet came from: what a filter has changed no longer knows. `base` is the muxer's:
        time stamps that are finer may become equal in it, which only Matroska takes.
        """
        assert packet.dts is not None
        assert packet.time_base is not None
        unit = packet.time_base
        if base is not None and self._container.format.name not in MATROSKA:
            unit = max(unit, base)
        time_s = packet.dts * packet.time_base
        last_s = self._last_dts_s.get(stream.index)
        if last_s is not None and _ticks(time_s, unit) < _ticks(last_s, unit) + step:
            self._dropped[_name_of(stream)] += 1
            return False
        self._last_dts_s[stream.index] = time_s
        return True

    def carry(self, time_s: float | None) -> None:
        """Move the packets that start up to `time_s`, or all the rest for None."""
        for packet in self._companions.packets_until(time_s):
            route = self._routes.get(packet.stream_index)
            if route is not None:
                route(packet)

    def finish(self) -> None:
        """Flush the converters and say what was lost."""
        for transcoder in self._encoders:
            transcoder.finish()
            if transcoder.damaged:
                self._dropped[transcoder.name] += transcoder.damaged
        for name, count in self._dropped.items():
            self._report.losses.append(f"{name}: {count} damaged packets are left out")
        self._routes.clear()  # they hold this carrier, and so the input would stay open in memory
        for name, count in self._changed.items():
            self._report.losses.append(
                f"{name}: its rate or channels change; {count} packets are left out"
            )


def _ticks(time_s: Fraction, unit: Fraction) -> int:
    return floor(time_s / unit + Fraction(1, 2))  # as FFmpeg rounds


def _missing_config(stream: Stream) -> bytes | None:
    """Build what AAC in ADTS frames keeps in each of them and files want once, in their header.

    Returns None for sound that has it or needs none, and b"" for what is not plain AAC-LC.
    ISO/IEC 14496-3, 1.6.2.1: object type, index of the rate, channel configuration.
    """
    import av

    context = stream.codec_context
    if not _is_adts(stream):
        return None
    assert isinstance(context, av.AudioCodecContext)
    channels = {8: 7}.get(context.channels, context.channels)
    if context.profile != "LC" or context.sample_rate not in AAC_RATES or channels > 7:
        return b""
    index = AAC_RATES.index(context.sample_rate)
    return (2 << 11 | index << 7 | channels << 3).to_bytes(2, "big")


def _is_adts(stream: Stream) -> bool:
    context = stream.codec_context
    return context is not None and context.name == "aac" and not context.extradata


def _adts_format(packet: Packet) -> bytes | None:
    """Profile, rate and channels as an ADTS header has them (ISO/IEC 14496-3, 1.A.2.2.1), or None.

    They are bits 16, 17, 18 to 21 and 23 to 25.
    """
    head = int.from_bytes(bytes(memoryview(packet)[:4]).ljust(4, b"\0"), "big")
    return (head & 0xFDC0).to_bytes(2, "big") if head >> 20 == 0xFFF else None


def _unframer(container: OutputContainer, stream: Stream) -> Callable[[Packet], Iterable[Packet]]:
    """Strip the ADTS headers that AAC carries in transport streams where MP4 wants it bare.

    FFmpeg's muxer does it by itself, but not with `delay_moov`.
    """
    import av
    from av.bitstream import BitStreamFilterContext

    if not _is_adts(stream) or container.format.name not in ("mp4", "mov"):
        return lambda packet: (packet,)
    bare = BitStreamFilterContext("aac_adtstoasc", stream)

    def unframe(packet: Packet) -> Iterable[Packet]:
        try:
            return bare.filter(packet)
        except av.FFmpegError:
            return ()  # a damaged packet of sound

    return unframe


class _Transcoder:
    """Decode one sound stream and encode it anew for a container that cannot hold it."""

    def __init__(self, container: OutputContainer, stream: Stream, encoder: str) -> None:
        from av.audio.resampler import AudioResampler

        self._container = container
        self.name = _name_of(stream)
        self.damaged = 0
        self._decoder: av.AudioCodecContext = stream.codec_context  # type: ignore[assignment]
        rate = self._decoder.sample_rate
        if encoder == "libopus" and rate not in OPUS_RATES:
            rate = 48000
        layout = self._decoder.layout.name
        if layout.endswith("channels"):  # the source does not say which is which
            layout = USUAL_LAYOUTS.get(self._decoder.layout.nb_channels, "stereo")
        self._output = cast(
            "av.AudioStream", container.add_stream(encoder, rate=rate, layout=layout)
        )
        context = self._output.codec_context
        sample_format = context.codec.audio_formats[0].name  # type: ignore[index]
        context.format = sample_format
        self._output.metadata.update(kept_tags(stream.metadata))
        self._output.disposition = stream.disposition
        self._resampler = AudioResampler(sample_format, layout, rate)

    def feed(self, packet: Packet) -> None:
        """Decode a packet and mux what the encoder gives back; count damaged ones and go on."""
        import av

        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            self.damaged += 1
            return
        for frame in frames:
            self._encode(frame)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        for resampled in self._resampler.resample(frame):
            self._container.mux(self._output.encode(resampled))

    def finish(self) -> None:
        """Flush decoder, resampler and encoder."""
        import av

        try:
            for frame in self._decoder.decode(None):
                self._encode(frame)
        except av.error.EOFError:
            pass  # nothing was ever decoded
        self._encode(None)
        self._container.mux(self._output.encode(None))


def _name_of(stream: Stream) -> str:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown format"
    kind = {"audio": "sound", "subtitle": "subtitle"}.get(stream.type, stream.type)
    return f"{kind} stream {stream.index} ({codec})"
