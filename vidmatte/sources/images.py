"""Read numbered pictures (`frame_%04d.png`) as the frames of a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vidmatte.errors import InputError
from vidmatte.frames import Frame, VideoInfo
from vidmatte.sequences import numbered_files
from vidmatte.sources import _shared
from vidmatte.sources._describe import describe, orientation_of

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

DEFAULT_RATE = Fraction(25)
_GET_AGAIN = "get the picture again, or remove it"
MAX_LOST_IN_A_ROW = 500  # pictures; past that the rest is taken for lost


class ImageSequenceSource:
    """Numbered picture files as a source of frames, `rate` of them per second.

    `pattern` is a file name with one %d or %0Nd. The pictures come in the order of their numbers,
    from the lowest there is; each lasts 1/rate, and holes in the numbering take no time. A
    picture that cannot be read keeps its time and is counted in `damage`, like the holes.
    `start_s` and `end_s` cut; the first picture kept then has time 0. Raises InputError from
    `__enter__` and while iterating.
    """

    has_companions = False

    def __init__(
        self,
        pattern: str | Path,
        *,
        rate: Fraction = DEFAULT_RATE,
        start_s: float | None = None,
        end_s: float | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._name = str(pattern)
        self._rate = rate
        self._numbered = numbered_files(Path(pattern))
        self._wanted = self._numbered[_slot(start_s or 0.0, rate) : _slot(end_s, rate)]
        self._max_pixels = max_pixels or _shared.MAX_PIXELS
        self._first: tuple[int, av.VideoFrame] | None = None
        self._reason = "no picture is left between --start and --end"
        self._hint: str | None = None
        self._lost: list[int] = []
        self._damaged: list[int] = []
        self._turned: list[int] = []
        self.notes: list[str] = []
        self.mended: list[str] = []
        self.video_metadata: dict[str, str] = {}

    @property
    def files(self) -> list[str]:
        """The picture files that the pattern stands for, in order."""
        return [str(path) for _, path in self._numbered]

    def __enter__(self) -> Self:
        if not self._numbered:
            raise InputError(
                f"{self._name}: no such file, and no numbered pictures of that name",
                hint="check the path; %04d stands for four digits",
            )
        self._pictures = self._decode()
        self._first = next(self._pictures, None)
        if self._first is None:
            raise InputError(f"{self._name}: {self._reason}", hint=self._hint)
        self.info: VideoInfo = replace(
            self._described,
            name=self._name,
            time_base=1 / self._rate,
            frame_rate=self._rate,
            frame_count=len(self._wanted),
            duration_s=float(len(self._wanted) / self._rate),
            is_still=False,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._first = None

    @property
    def damage(self) -> list[str]:
        """One line per cause of what is missing or could not be read."""
        numbers = [number for number, _ in self._wanted]
        holes = [a for a, b in pairwise(numbers) if b > a + 1]
        causes = []
        if holes:
            missing = numbers[-1] - numbers[0] + 1 - len(numbers)
            causes.append(f"{_count(missing)} missing in the numbering, first after {holes[0]}")
        for slots, what in (
            (self._lost, "could not be read"),
            (self._damaged, "decoded with damage"),
            (self._turned, "turned unlike the first one"),
        ):
            if slots:
                first, time_s = self._wanted[slots[0]][1].name, float(slots[0] / self._rate)
                causes.append(f"{_count(len(slots))} {what}, first {first} at {time_s:.2f} s")
        return causes

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        first, self._first = self._first, None
        if first is not None:
            yield Frame(first[1], index, first[0], self.info.time_base, 1)
            index += 1
        for slot, picture in self._pictures:
            if orientation_of(picture) != self.info.orientation:
                self._turned.append(slot)
            yield Frame(picture, index, slot, self.info.time_base, 1)
            index += 1

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield every picture that can be read with its place in time, counted in pictures."""
        in_a_row = 0
        for slot, (_, path) in enumerate(self._wanted):
            try:
                picture = self._read(path)
            except _TooLargeError:
                raise
            except InputError as exc:
                self._reason, self._hint = str(exc), exc.hint
                self._lost.append(slot)
                in_a_row += 1
                if in_a_row > MAX_LOST_IN_A_ROW:
                    self._lost.extend(range(slot + 1, len(self._wanted)))
                    return
                continue
            in_a_row = 0
            if picture.is_corrupt:
                self._damaged.append(slot)
            yield slot, picture

    def _read(self, path: Path) -> av.VideoFrame:
        """Decode one file behind the guard that every input passes. Raises InputError."""
        descriptor = _shared.open_descriptor(path)
        try:
            with _shared.open_container(descriptor, str(path)) as container:
                return self._first_picture(container, path)
        finally:
            os.close(descriptor)

    def _first_picture(self, container: InputContainer, path: Path) -> av.VideoFrame:
        import av

        stream = _shared.video_stream(container, str(path))
        if not container.format.name.endswith("_pipe"):
            raise InputError(
                f"{path}: is not a picture", hint="remove it, or name the video itself"
            )
        self._check_size(path, stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
        stream.codec_context.thread_count = 1  # a picture holds no work for more, and waits less
        try:
            picture = next(container.decode(stream), None)
        except (av.FFmpegError, ValueError) as exc:
            raise InputError(f"{path}: cannot be decoded", hint=_GET_AGAIN) from exc
        if picture is None:
            raise InputError(f"{path}: cannot be decoded", hint=_GET_AGAIN)
        self._check_size(path, picture.width, picture.height)
        if not hasattr(self, "_described"):
            self._described = describe(self._name, container, stream, picture)
        return picture

    def _check_size(self, path: Path, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise _TooLargeError(
                f"{path}: is {width}x{height}, over the limit of {self._max_pixels} pixels",
                hint="raise the limit with --max-size if the pictures are trusted",
            )


class _TooLargeError(InputError):
    """Past the user's limit: ends the run, where a picture that cannot be read is only counted."""


def _slot(time_s: float | None, rate: Fraction) -> int | None:
    """The first picture at or after `time_s`, counted from 0."""
    return None if time_s is None else ceil(Fraction(time_s).limit_denominator(10**6) * rate)


def _count(pictures: int) -> str:
    return f"{pictures} picture{'s' if pictures != 1 else ''}"
