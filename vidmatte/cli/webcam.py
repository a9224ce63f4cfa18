"""`vidmatte webcam`: a camera without its background, as another camera."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidmatte.cli.options import fit_option, network_options
from vidmatte.cli.run import RateType
from vidmatte.errors import OutputError, UsageError

if TYPE_CHECKING:
    import av

    from vidmatte.backends import Precision
    from vidmatte.cli.keys import Bindings, TerminalKeys
    from vidmatte.cli.status import LiveConsole
    from vidmatte.live.contracts import OpenOutput
    from vidmatte.live.rack import BackgroundRack
    from vidmatte.live.recording import Recording
    from vidmatte.live.session import LiveSession
    from vidmatte.pipeline import Stop
    from vidmatte.sinks.preview import Preview

TICK_S = 0.05  # between looks at keys
PREVIEW_TICK_S = 1 / 60  # the same where a window shows every picture
CONTROL_GRACE_S = 1.0
SMALLEST, LARGEST = 64, 8192
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


class PictureSizeType(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT in pixels."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (width, height)."""
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' is not a size like 1280x720", param, ctx)
        width, height = int(match[1]), int(match[2])
        if not (SMALLEST <= width <= LARGEST and SMALLEST <= height <= LARGEST):
            self.fail(f"'{value}' is not between {SMALLEST} and {LARGEST} a side", param, ctx)
        return width, height


@click.command()
@click.option(
    "--camera",
    metavar="NAME",
    help="Number, /dev/videoN, name, URL, video file, or synthetic. Default: the first camera.",
)
@click.option(
    "--size", type=PictureSizeType(), metavar="WxH", help="Picture size. Default: the camera's."
)
@click.option("--fps", type=RateType(), metavar="FPS", help="Wanted rate. Default: the camera's.")
@click.option(
    "--virtual-cam",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[DEVICE]",
    help="Be a camera for other programs: the first virtual camera, or DEVICE.",
)
@click.option("--preview", is_flag=True, help="Show the result in a window.")
@click.option("--record", metavar="FILE", help="Also write what is shown to a video file.")
@click.option("--overwrite", is_flag=True, help="Replace a recording that exists.")
@click.option(
    "-b",
    "--background",
    "backgrounds",
    multiple=True,
    metavar="B",
    help="Colour, picture, video, blur[:STRENGTH], none, or a folder of them; again for more. "
    "The first is shown, key b goes on. Default: green.",
)
@fit_option
@click.option(
    "--fast",
    "preset",
    flag_value="fast",
    help="The small network from the start, so coarser edges. When too slow: as balanced.",
)
@click.option(
    "--balanced",
    "preset",
    flag_value="balanced",
    default=True,
    help="The default. When too slow: the small network, then masks moved along with the picture, "
    "then half the rate.",
)
@click.option(
    "--quality",
    "preset",
    flag_value="quality",
    help="Every picture has a mask of its own. When too slow: the small network, then half the "
    "rate.",
)
@network_options
@click.option("--mirror", is_flag=True, help="Flip the camera, not the background.")
@click.option("--allow-network", is_flag=True, help="Open a --camera that is a URL.")
@click.option(
    "--reconnect-timeout",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for a lost camera or virtual camera.",
)
@click.option("--notice", is_flag=True, help="Say on the picture why the background is alone.")
@click.option("--control", "name", metavar="NAME", help="Name for `vidmatte control --name NAME`.")
@click.option("--no-control", is_flag=True, help="Do not listen to `vidmatte control`.")
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="End by itself, this long after the first picture.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON at the end.")
def webcam(
    *,
    camera: str | None,
    size: tuple[int, int] | None,
    fps: Fraction | None,
    virtual_cam: str | None,
    preview: bool,
    record: str | None,
    overwrite: bool,
    backgrounds: tuple[str, ...],
    fit: str,
    preset: str,
    model: str | None,
    weights: Path | None,
    device: str,
    backend: str,
    precision: Precision,
    mirror: bool,
    allow_network: bool,
    reconnect_timeout: float,
    notice: bool,
    name: str | None,
    no_control: bool,
    seconds: float | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Show the camera without its background to video calls, in a window, or to a file.

    Keys, here and in the window: b next background, space twice to show the room, f freeze,
    m mirror, q quit.

    Example: vidmatte webcam --virtual-cam --background beach.jpg
    """
    is_seen = virtual_cam is not None or record is not None
    _require_somewhere(is_seen or preview)
    from vidmatte.cli.status import LiveConsole
    from vidmatte.live.contracts import LiveChoice
    from vidmatte.live.session import LiveSession
    from vidmatte.matting import MattingChoice, find_model
    from vidmatte.sources.camera import CameraChoice, open_camera

    rack, recording = _checked_files(
        backgrounds or ("green",), fit, record, camera, overwrite=overwrite
    )
    _require_one(device)
    matting = MattingChoice(model, weights, backend, device, precision)
    find_model(matting)  # a wrong name is told before a camera is waited for
    wanted = LiveChoice(
        size, fps, mirror, preset,
        reconnect_timeout_s=reconnect_timeout, notice=notice, release_idle=not preview,
    )  # fmt: skip
    session = LiveSession(
        partial(open_camera, CameraChoice(camera, size, fps, allow_network)),
        None if virtual_cam is None else _opener(virtual_cam or None),
        rack, matting, wanted, recording,
    )  # fmt: skip
    console = LiveConsole(quiet=quiet or as_json, as_json=as_json)
    job = WebcamJob(session, rack, recording, console, seconds)
    return job.run(preview=preview, is_seen=is_seen, name=None if no_control else name or "")


def _require_one(device: str) -> None:
    from vidmatte.backends._spread import parse_devices

    if len(parse_devices(device)) > 1:
        raise UsageError(f"--device {device}: a camera needs one", hint="name one, like cuda:0")


def _require_somewhere(is_shown: bool) -> None:
    if not is_shown:
        raise UsageError(
            "nothing to show the result on", hint="add --virtual-cam, --preview or --record FILE"
        )


def _checked_files(
    names: tuple[str, ...], fit: str, record: str | None, camera: str | None, *, overwrite: bool
) -> tuple[BackgroundRack, Recording | None]:
    """Check backgrounds and recording, one against the other, before anything heavy."""
    from vidmatte.live.rack import BackgroundRack
    from vidmatte.live.recording import Recording
    from vidmatte.outputs import refuse_same_file

    rack = BackgroundRack(names, fit)
    if record is None:
        return rack, None
    folder = os.path.realpath(os.path.dirname(os.path.abspath(record)))
    if folder in (os.path.realpath(n) for n in names if os.path.isdir(n)):
        raise UsageError(
            f"{record}: would join the backgrounds of its own folder",
            hint="record into another folder",
        )
    inputs = [name for name in (*names, camera) if name is not None and os.path.isfile(name)]
    refuse_same_file([record], inputs)
    return rack, Recording(record, overwrite=overwrite)


def _opener(device: str | None) -> OpenOutput:
    from vidmatte.sinks.virtualcam import open_virtual_camera

    return partial(open_virtual_camera, device)


class WebcamJob:
    """A session with everything that the person before it sees and presses."""

    def __init__(
        self,
        session: LiveSession,
        rack: BackgroundRack,
        recording: Recording | None,
        console: LiveConsole,
        seconds: float | None,
    ) -> None:
        self._session, self._rack, self._recording = session, rack, recording
        self._console = console
        self._seconds = seconds
        self._first_s: float | None = None
        self._preview: Preview | None = None
        self._previewed: av.VideoFrame | None = None
        self._is_seen = True
        self._keys: TerminalKeys
        self._bindings: Bindings

    def run(self, *, preview: bool, is_seen: bool, name: str | None) -> int:
        """Run until the end and return the exit code.

        `is_seen`: the result goes elsewhere than to the preview, too. `name` is the control
        socket's, empty for the default, None for no socket.
        """
        from vidmatte.cli.console import watch_signals
        from vidmatte.cli.keys import Bindings, TerminalKeys
        from vidmatte.pipeline import Stop

        self._is_seen = is_seen
        stop = Stop()
        self._keys = TerminalKeys()
        watch_signals(stop, before_exit=self._keys.restore)
        if hasattr(signal, "SIGHUP"):  # the terminal was closed: finish the recording
            signal.signal(signal.SIGHUP, lambda number, frame: stop.request(number))
        self._bindings = Bindings(self._session, self._rack.next, self._console.event)
        with ExitStack() as stack:
            stack.enter_context(self._keys)
            if name is not None:
                stack.callback(self._listen(name))
            if preview:
                self._open_preview(stack)
            return self._run(stop)

    def _run(self, stop: Stop) -> int:
        tick_s = TICK_S if self._preview is None else PREVIEW_TICK_S
        try:
            result = self._session.run(stop, self._tick, tick_s=tick_s)
        finally:
            self._tell_events()
        recording = self._recording
        recorded = recording.name if recording is not None and recording.written else None
        if recording is not None and recording.dropped:
            self._console.event(f"the recording lacks {recording.dropped} pictures: too slow")
        return self._console.finish(result, recorded)

    def _listen(self, name: str) -> Callable[[], None]:
        """Open the control socket; return what closes it."""
        from vidmatte.live.control import (
            DEFAULT_NAME,
            Commands,
            ControlServer,
            is_supported,
            socket_path,
        )
        from vidmatte.pipeline import Crew

        if not is_supported():
            self._console.event("`vidmatte control` does not work on this system")
            return lambda: None
        server, crew = ControlServer(socket_path(name or DEFAULT_NAME)), Crew()
        server.start(Commands(self._session, self._rack), crew)

        def close() -> None:
            server.close()
            crew.join(CONTROL_GRACE_S)

        return close

    def _open_preview(self, stack: ExitStack) -> None:
        """Open the window; where none can be, go on without if the result is seen elsewhere."""
        from vidmatte.sinks.preview import Preview

        try:
            self._preview = Preview.open()
        except OutputError as exc:
            if not self._is_seen:
                raise
            self._console.event(f"no preview: {exc}")
            return
        stack.callback(self._preview.close)

    def _tick(self) -> None:
        """Look at everything once; on the main thread, about twenty times a second."""
        now_s = time.monotonic()
        self._tell_events()
        pressed = self._keys.read()
        if self._preview is not None:
            pressed += self._show_preview(self._preview)
        for key in pressed:
            self._bindings.press(key, now_s)
        self._bindings.tick(now_s)
        status = self._session.status()
        self._console.show_status(status)
        if self._first_s is None and status.counts.shown:
            self._first_s = now_s
        if self._first_s is not None and self._is_over(now_s - self._first_s):
            self._session.end()

    def _is_over(self, elapsed_s: float) -> bool:
        return self._seconds is not None and elapsed_s >= self._seconds

    def _show_preview(self, preview: Preview) -> list[str]:
        """Show the last picture if it is a new one; return the keys pressed in the window."""
        if preview.closed:
            self._preview = None
            if self._is_seen:
                self._console.event("the preview was closed; everything else goes on")
            else:
                self._session.end()
            return []
        picture = self._session.picture()
        if picture is not None and picture is not self._previewed:
            self._previewed = picture
            preview.show(picture)
        return preview.keys()

    def _tell_events(self) -> None:
        for line in self._session.events():
            self._console.event(line)
