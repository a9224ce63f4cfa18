"""Write an animated GIF: one palette from the first pictures, then every picture in it."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, cast

from vidmatte.frames import VideoInfo
from vidmatte.sinks import SinkReport
from vidmatte.sinks._shared import Turner, converter_for, translated
from vidmatte.sinks.plan import OutputPlan

if TYPE_CHECKING:
    import av

PALETTE_PICTURES = 24  # what the palette is made from; keeps memory flat for any length
PALETTE_BYTES = 64 << 20  # at the most: two 4K pictures
CLOCK = Fraction(1, 100)  # GIF counts hundredths of a second
MIN_STEP = 2  # browsers slow down anything shorter


class GifSink:
    """A GIF at an open descriptor; alpha becomes one bit at a threshold of one half."""

    def __init__(self, descriptor: int, name: str, plan: OutputPlan, info: VideoInfo) -> None:
        import av

        self.report = SinkReport()
        self._name, self._plan, self._info = name, plan, info
        self._converter = converter_for(plan, info, "bgra")
        self._turner = Turner(info) if plan.turned else None
        self._first: list[av.VideoFrame] = []
        self._graph: av.filter.Graph | None = None
        self._last = -MIN_STEP
        self._closed = False
        with translated(name):
            self._container = av.open(f"file:/dev/fd/{descriptor}", "w", format="gif")

    def write(self, picture: av.VideoFrame) -> None:
        """Take a picture; the first ones wait until the palette is made."""
        with translated(self._name):
            self._take(picture)

    def _take(self, picture: av.VideoFrame) -> None:
        picture = self._converter.convert(picture)
        if self._turner is not None:
            picture = self._turner.turn(picture)
        assert picture.pts is not None
        assert picture.time_base is not None
        pts = max(round(picture.pts * picture.time_base / CLOCK), self._last + MIN_STEP)
        self._last = picture.pts = pts
        picture.time_base = CLOCK
        if self._graph is not None:
            self._encode(picture)
            return
        self._first.append(picture)
        waiting = len(self._first)
        if (
            waiting == PALETTE_PICTURES
            or waiting * 4 * picture.width * picture.height > PALETTE_BYTES
        ):
            self._start()

    def _start(self) -> None:
        """Make the palette, open the encoder, and write the waiting pictures."""
        import av

        palette = self._palette()
        width, height = self._first[0].width, self._first[0].height
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("bgra"), time_base=CLOCK
        )
        colours = graph.add_buffer(
            width=16, height=16, format=av.VideoFormat("bgra"), time_base=CLOCK
        )
        use = graph.add("paletteuse", "dither=bayer:bayer_scale=4:alpha_threshold=128")
        sink = graph.add("buffersink")
        source.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        palette.pts = 0
        colours.push(palette)
        colours.push(None)
        self._graph, self._source, self._sink = graph, source, sink
        stream = self._container.add_stream("gif", rate=self._info.frame_rate)
        self._stream = stream
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "pal8"
        context.time_base = self._stream.time_base = CLOCK
        waiting, self._first = self._first, []
        for picture in waiting:
            self._encode(picture)

    def _palette(self) -> av.VideoFrame:
        import av

        first = self._first[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=first.width, height=first.height, format=av.VideoFormat("bgra"), time_base=CLOCK
        )
        transparent = int(self._plan.content == "transparent")
        make = graph.add("palettegen", f"reserve_transparent={transparent}")
        sink = graph.add("buffersink")
        graph.link_nodes(source, make, sink).configure()
        for picture in self._first:
            source.push(picture)
        source.push(None)
        return cast("av.VideoFrame", sink.pull())

    def _encode(self, picture: av.VideoFrame | None) -> None:
        import av

        self._source.push(picture)
        while True:
            try:
                mapped = cast("av.VideoFrame", self._sink.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._container.mux(self._stream.encode(mapped))

    def close(self) -> None:
        """Write what waits and finish the file."""
        if self._closed:
            return
        self._closed = True
        try:
            with translated(self._name):
                if self._graph is None and self._first:
                    self._start()
                if self._graph is not None:
                    self._encode(None)
                    self._container.mux(self._stream.encode(None))
        finally:
            with translated(self._name):
                self._container.close()
