"""A background video: the picture for a time, from the beginning again at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from vidmatte.compute.cpu.fitting import Fit, VideoFitter
from vidmatte.errors import InputError

if TYPE_CHECKING:
    import av

    from vidmatte.frames import Frame, Layout, Samples, VideoInfo


class Pictures(Protocol):
    """The part of a source that a background needs, once its context is entered."""

    @property
    def info(self) -> VideoInfo:
        """What the video says of itself."""

    def __iter__(self) -> Iterator[Frame]: ...


# Times stamped in milliseconds are off by half of one: without slack, equal rates would stutter.
_SLACK_S = 1e-3

OpenPictures = Callable[[], AbstractContextManager[Pictures]]


class VideoBackground:
    """Shows the picture that a looped video has at each frame's time after the first frame's.

    Pictures are decoded on demand in the caller's thread; two are held at a time.
    """

    constant = None

    def __init__(
        self, open_pictures: OpenPictures, fit: Fit, info: VideoInfo, layout: Layout
    ) -> None:
        self._pictures = LoopedPictures(open_pictures)
        self._fitting = fit, info, layout
        self._fitter: VideoFitter | None = None
        self._shown: av.VideoFrame | None = None
        self._planes: list[Samples] = []
        self._start_s: float | None = None

    def planes(self, frame: Frame, alpha: Samples) -> list[Samples]:
        """Return the planes for a frame; converted once per background picture."""
        if self._start_s is None:
            self._start_s = frame.time_s
        picture = self._pictures.at(frame.time_s - self._start_s)
        if self._fitter is None:
            self._fitter = VideoFitter(self._pictures.info, *self._fitting)
        if picture is not self._shown:
            self._planes, self._shown = self._fitter.planes(picture), picture
        return self._planes

    def close(self) -> None:
        """Close the video. May be called twice."""
        self._pictures.close()


class LoopedPictures:
    """The pictures of a video by time, forward only, looped. Opens it at the first call."""

    def __init__(self, open_pictures: OpenPictures) -> None:
        self._open = open_pictures
        self._stack = ExitStack()
        self._frames: Iterator[Frame] | None = None
        self._shown: Frame | None = None
        self._next: Frame | None = None
        self._loop_start_s = 0.0
        self.info: VideoInfo

    def at(self, time_s: float) -> av.VideoFrame:
        """Return the picture shown at a time, in seconds from the video's first picture.

        A time before that of the last call gives the last call's picture again.

        Raises:
            InputError: the video holds no picture.

        """
        if self._frames is None:
            self._rewind()
        while (end_s := self._end_of_shown_s()) <= time_s + _SLACK_S:
            if self._next is None:
                loop_s = end_s - self._loop_start_s
                loops = max(1, (time_s + _SLACK_S - self._loop_start_s) // loop_s)
                self._loop_start_s += loop_s * loops
                self._rewind()
            else:
                self._shown, self._next = self._next, self._following()
        assert self._shown is not None
        return self._shown.picture

    def close(self) -> None:
        """Close the video. May be called twice."""
        self._stack.close()
        self._frames = None

    def _rewind(self) -> None:
        self._stack.close()
        pictures = self._stack.enter_context(self._open())
        self.info = pictures.info
        self._frames = iter(pictures)
        self._shown = self._following()
        if self._shown is None:
            raise InputError(
                f"{self.info.name}: the background video holds no picture",
                hint="name another picture, video or colour",
            )
        self._first_s = self._shown.time_s
        self._next = self._following()

    def _following(self) -> Frame | None:
        assert self._frames is not None
        return next(self._frames, None)

    def _end_of_shown_s(self) -> float:
        """Return when the picture shown makes way for the next; a still never does."""
        shown, following = self._shown, self._next
        assert shown is not None
        if following is not None:
            return self._loop_start_s + following.time_s - self._first_s
        if shown.time_s <= self._first_s:
            return float("inf")
        rate = self.info.frame_rate or Fraction(25)
        length_s = float(shown.duration * shown.time_base or 1 / rate)
        return self._loop_start_s + shown.time_s - self._first_s + length_s
