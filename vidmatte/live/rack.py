"""The backgrounds of a live session: built aside, swapped whole, one always ready to show alone."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.backdrop import Backdrop
from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.colour import colour_samples, effective_colour
from vidmatte.compute.cpu.looping import VideoBackground
from vidmatte.errors import InputError, UsageError, printable
from vidmatte.frames import Frame, Layout, VideoInfo, plane_views
from vidmatte.live.ahead import AheadBackground, reason
from vidmatte.live.folder import WatchedFolder

if TYPE_CHECKING:
    import av

    from vidmatte.compute.cpu.background import Background
    from vidmatte.frames import Samples
    from vidmatte.pipeline import Crew

NONE = "none"
SCAN_S = 1.5  # between looks at watched folders
GREY = (48, 48, 48)  # shown alone where the background would be the camera itself
MAX_EVENTS = 100  # kept for a reader who does not come
MAX_NOTICES = 8  # pictures kept with a notice on them
_NO_ALPHA = np.zeros((0, 0), np.uint8)  # a still picture does not look at it


class BackgroundRack:
    """The backgrounds of one session, in the order in which `next` goes through them.

    `names` are what `run --background` takes, `none` (the camera picture as it is: a deliberate
    state), and folders, which are watched: their pictures and videos join in by name. The first
    is shown first. Raises UsageError and InputError for what can be known to fail.
    """

    def __init__(self, names: Sequence[str], fit: str = "cover") -> None:
        self._fit = fit
        self._folders: dict[str, WatchedFolder] = {}
        self._names = [self._checked(name) for name in names]
        self._changed = threading.Condition()
        self._wish: str | None = None
        self._shown: _Built | None = None  # what `current` gave last
        self._newest: _Built | None = None  # the same, or what it will give next
        self._discarded: list[_Built] = []
        self._events: deque[str] = deque(maxlen=MAX_EVENTS)
        self._closed = False

    def _checked(self, name: str) -> str:
        """Check what can be checked; return the name under which it is known."""
        if name == NONE:
            return name
        if os.path.isdir(name):
            self._folders[name] = WatchedFolder(name, self._fit)
            return name
        backdrop = Backdrop(name, self._fit)
        backdrop.check()
        return os.path.abspath(name) if backdrop.files else name

    def start(self, info: VideoInfo, layout: Layout, crew: Crew) -> None:
        """Build the first background, for pictures of `info` in `layout`, and start the thread.

        Raises VidmatteError where none of the first name's files can be used.
        """
        self._info, self._layout, self._crew = info, layout, crew
        for folder in self._folders.values():
            self._events += folder.scan(first=True)[0]
        cycle = self._cycle()
        if not cycle:
            raise InputError(
                f"{', '.join(self._names)}: no picture or video can be used as a background",
                hint="put one in, or name another --background",
            )
        self._newest = self._build(cycle[0])
        self._newest.alone("")  # loads OpenCV's font, 20 ms that a sender cannot spare
        crew.start("rack", self._work, behind=True)

    def current(self) -> Background | None:
        """Return the background for the next frame; None stands for the camera as it is.

        For the compute thread. What an earlier call gave must no longer be used.
        """
        with self._changed:
            assert self._newest is not None, "start comes first"
            if self._shown is not self._newest:
                if self._shown is not None:
                    self._discarded.append(self._shown)
                    self._changed.notify_all()
                self._shown = self._newest
            return self._shown.background

    def closed_picture(self, notice: str | None = None) -> av.VideoFrame:
        """Return the background alone: a picture for every state in which no matte is at hand.

        Nothing of the camera is in it: for blur and `none` it is dark grey; of a video it is the
        first picture. `notice` is written into a corner, if given, in ASCII. The picture is
        shared, so nobody writes into it or stamps it. For any thread; never waits for a build.
        """
        newest = self._newest
        assert newest is not None, "start comes first"
        return newest.alone(notice)

    @property
    def shows_room(self) -> bool:
        """Whether the newest background is `none`. For any thread."""
        newest = self._newest
        return newest is not None and newest.background is None

    @property
    def label(self) -> str:
        """What is shown, in words for a status line."""
        newest = self._newest
        text = self._names[0] if newest is None else newest.text
        return printable(os.path.basename(text) if os.path.isabs(text) else text)

    def next(self, *, with_none: bool = True) -> None:
        """Ask for the next background; `with_none=False` passes over `none`. For any thread."""
        with self._changed:
            cycle = [text for text in self._cycle() if with_none or text != NONE]
            if not cycle:
                return
            held = self._wish or (self._newest.text if self._newest else "")
            position = cycle.index(held) + 1 if held in cycle else 0
            self._wish = cycle[position % len(cycle)]
            self._changed.notify_all()

    def choose(self, text: str) -> None:
        """Ask for a colour, `blur`, or a file by its absolute name. For any thread.

        Raises UsageError and InputError, and leaves the old background, for what cannot be used.
        `none` is refused unless the session was started with it.
        """
        if text == NONE:
            if NONE not in self._names:
                raise UsageError(
                    "'none' shows the room", hint="name it as a --background at the start"
                )
        else:
            backdrop = Backdrop(text, self._fit)
            if backdrop.files and not os.path.isabs(text):
                raise UsageError(f"{text}: is not a full path", hint="begin it with /")
            backdrop.check()
        with self._changed:
            self._wish = text
            self._changed.notify_all()

    def events(self) -> list[str]:
        """Return what happened since the last call, a line each. For any thread."""
        with self._changed:
            lines = list(self._events)
            self._events.clear()
        return lines

    def close(self) -> None:
        """End the thread and close what is open. May be called twice, from any thread."""
        with self._changed:
            self._closed = True
            held = [b for b in (self._shown, self._newest, *self._discarded) if b is not None]
            self._discarded = []
            self._changed.notify_all()
        for built in held:
            built.close()

    def _cycle(self) -> list[str]:
        """List what `next` goes through: names as given, folders as their files."""
        cycle: dict[str, None] = {}
        for name in self._names:
            folder = self._folders.get(name)
            cycle |= dict.fromkeys([name] if folder is None else folder.files)
        return list(cycle)

    def _work(self) -> None:
        """Serve wishes and look at the folders until closed; on the rack's thread."""
        while self._wait():
            self._close_discarded()
            wish = self._wish
            if wish is not None:
                self._serve(wish)
            else:
                self._look()

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when closed."""
        wait_s = SCAN_S if self._folders else None
        if any(folder.is_busy for folder in self._folders.values()):
            wait_s = 0
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wish or self._discarded, wait_s)
            return not self._closed

    def _close_discarded(self) -> None:
        """Close what is no longer shown, and keep none of it alive while waiting."""
        with self._changed:
            discarded, self._discarded = self._discarded, []
        for built in discarded:
            built.close()

    def _serve(self, wish: str) -> None:
        """Build a wished background and hand it over; after a failure the old one stays."""
        try:
            built = self._build(wish)
        except Exception as exc:  # noqa: BLE001 - a call goes on, whatever a file holds
            built = None
            self._say(f"{reason(wish, exc)}; the background stays as it is")
        with self._changed:
            is_wanted = self._wish == wish and not self._closed
            if self._wish == wish:
                self._wish = None
            stale = built
            if built is not None and is_wanted:
                stale = None if self._newest is self._shown else self._newest
                self._newest = built
        if stale is not None:
            stale.close()  # no frame has been shown over it

    def _look(self) -> None:
        """Scan the folders; what is shown and has changed is built again."""
        for folder in self._folders.values():
            events, changed = folder.scan()
            for line in events:
                self._say(line)
            with self._changed:
                if self._newest is not None and self._newest.text in changed:
                    self._wish = self._wish or self._newest.text

    def _say(self, line: str) -> None:
        with self._changed:
            self._events.append(line)

    def _build(self, text: str) -> _Built:
        colour = effective_colour(self._info, self._layout)
        grey = colour_samples(GREY, colour, self._layout)
        if text == NONE:
            return _Built(text, None, self._picture(grey))
        if Path(text).parent in self._watched() and os.path.islink(text):
            raise InputError(f"{text}: is a link; those of a watched folder are not followed")
        backdrop = Backdrop(text, self._fit)
        background = backdrop.build(self._info, self._layout)
        if background.constant is not None:
            return _Built(text, background, self._picture(background.constant))
        blank = self._picture(grey)
        if not backdrop.files:  # blur
            return _Built(text, background, blank)
        if not isinstance(background, VideoBackground):
            still = background.planes(Frame(blank, 0, 0, self._info.time_base), _NO_ALPHA)
            return _Built(text, background, self._picture(still))
        try:
            ahead = AheadBackground(text, background, blank, self._say)
        except BaseException:
            background.close()
            raise
        ahead.start(self._crew)
        return _Built(text, ahead, self._picture(ahead.first))

    def _watched(self) -> set[Path]:
        return {Path(folder.path) for folder in self._folders.values()}

    def _picture(self, planes: Sequence[int] | Sequence[Samples]) -> av.VideoFrame:
        """Make a picture of the session's size from planes, or from one sample per plane."""
        import av

        picture = av.VideoFrame(self._info.width, self._info.height, self._layout.pix_fmt)
        colour = self._info.colour
        picture.colorspace, picture.color_range = colour.matrix, colour.range
        picture.color_primaries, picture.color_trc = colour.primaries, colour.transfer
        for out, plane in zip(plane_views(picture, writable=True), planes, strict=True):
            out[...] = plane
        return picture


@dataclass(slots=True)
class _Built:
    """A background that is ready, its name, and pictures of it alone by notice."""

    text: str
    background: Background | None
    picture: av.VideoFrame
    noticed: dict[str, av.VideoFrame] = field(default_factory=dict)

    def alone(self, notice: str | None) -> av.VideoFrame:
        """Return the picture, with a notice on it if there is one."""
        if notice is None:
            return self.picture
        found = self.noticed.get(notice)
        if found is None:
            found = with_notice(self.picture, notice)
            if len(self.noticed) < MAX_NOTICES:
                self.noticed[notice] = found
        return found

    def close(self) -> None:
        """Close what the background reads."""
        if self.background is not None:
            self.background.close()


def with_notice(picture: av.VideoFrame, text: str) -> av.VideoFrame:
    """Return a copy of an 8-bit YUV picture with a line of ASCII in its lower left corner."""
    import av

    cv2 = load_cv2()
    noted = av.VideoFrame(picture.width, picture.height, picture.format.name)
    noted.colorspace, noted.color_range = picture.colorspace, picture.color_range
    noted.color_primaries, noted.color_trc = picture.color_primaries, picture.color_trc
    planes = [plane.copy() for plane in plane_views(picture)]
    height, width = planes[0].shape
    line = text.encode("ascii", "replace").decode("ascii")
    (wide, high), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(height / 900, 0.9 * width / max(wide, 1))
    margin = max(1, round(high * scale / 2))
    right, top = 4 * margin + round(wide * scale), height - 4 * margin
    for plane, dark in zip(planes, (32, 128, 128), strict=True):
        step = height // plane.shape[0]
        plane[top // step :, : -(-right // step)] = dark
    at, thick = (2 * margin, height - margin), max(1, round(1.5 * scale))
    cv2.putText(planes[0], line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 200, thick, cv2.LINE_AA)
    for out, plane in zip(plane_views(noted, writable=True), planes, strict=True):
        out[...] = plane
    return noted
