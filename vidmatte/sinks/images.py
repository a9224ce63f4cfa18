"""Write pictures as files: one picture, or a sequence in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vidmatte.frames import RANGE_FULL, VideoInfo
from vidmatte.sequences import numbered_files
from vidmatte.sinks import SinkReport
from vidmatte.sinks._shared import Turner, converter_for, refused, translated
from vidmatte.sinks.part import PartFolder, rename
from vidmatte.sinks.plan import OutputPlan

if TYPE_CHECKING:
    import av


class PictureEncoder:
    """Turns pictures into the bytes of picture files, one encoder for all of one size."""

    def __init__(self, plan: OutputPlan, info: VideoInfo) -> None:
        self._plan, self._info = plan, info
        self._turner = Turner(info) if plan.turned else None
        self._converter = converter_for(plan, info)

    def encode(self, picture: av.VideoFrame) -> bytes:
        """Return the file's bytes."""
        import av

        picture = self._converter.convert(picture)
        if self._turner is not None:
            picture = self._turner.turn(picture)
        context = av.CodecContext.create(self._plan.codec, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = picture.width, picture.height
        context.pix_fmt = self._plan.pix_fmt
        context.time_base = picture.time_base or self._info.time_base
        context.color_range = RANGE_FULL if self._plan.codec == "mjpeg" else picture.color_range
        context.options = dict(self._plan.options)
        packets = context.encode(picture) + context.encode(None)
        return b"".join(bytes(p) for p in packets)


class PictureSink:
    """One picture file at an open descriptor; a second picture is an error of the caller."""

    def __init__(self, descriptor: int, name: str, plan: OutputPlan, info: VideoInfo) -> None:
        self.report = SinkReport()
        self._descriptor, self._name = descriptor, name
        self._encoder = PictureEncoder(plan, info)

    def write(self, picture: av.VideoFrame) -> None:
        """Encode and write the picture."""
        with translated(self._name):
            data = memoryview(self._encoder.encode(picture))
            while data:
                data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Nothing is held back."""


class SequenceSink:
    """Numbered pictures, from 1 up, in a part folder whose pictures are moved out at the end.

    `pattern` is a file name with one %d or %0Nd. The pictures are written into the part folder
    `path`, `NAME.part/` beside the target folder's files, and moved there by `commit`. Without
    `replace`, one that took a final name during the run is not overwritten.
    """

    def __init__(
        self, pattern: Path, plan: OutputPlan, info: VideoInfo, *, replace: bool = True
    ) -> None:
        self._pattern = pattern
        self._replace = replace
        self._encoder = PictureEncoder(plan, info)
        self._files: list[str] = []
        self.report = SinkReport()
        self._folder = PartFolder(part_folder(pattern), pattern)
        self.path = self._folder.path
        self.kept_aside = self._folder.kept_aside

    def write(self, picture: av.VideoFrame) -> None:
        """Encode the next picture into its own file."""
        name = self._pattern.name % (len(self._files) + 1)
        with translated(str(self._pattern)):
            data = self._encoder.encode(picture)
        try:
            _write_whole(self.path / name, data)
        except OSError as exc:
            self._folder.check()
            raise refused(self._pattern, exc) from exc
        self._files.append(name)

    def close(self) -> None:
        """Nothing is held back; name what an earlier, longer run has left under these names."""
        ours = set(self._files)
        left = [path.name for _, path in numbered_files(self._pattern) if path.name not in ours]
        if left:
            note = f"{len(left)} pictures of an earlier run stay, first {left[0]}"
            self.report.notes.append(note)

    def commit(self) -> None:
        """Move the pictures to their final names and remove the part folder."""
        self._folder.check()
        try:
            for name in self._files:
                target = self._pattern.with_name(name)
                rename(self.path / name, target, replace=self._replace)
        except OSError as exc:
            raise refused(self._pattern, exc) from exc
        self._folder.remove()

    def abandon(self) -> Path | None:
        """Keep and return the part folder if it holds a picture, else remove it."""
        if self._files and self.path.is_dir():
            self._folder.close()
            return self.path
        self._folder.discard()
        return None


def part_folder(pattern: Path) -> Path:
    """Return `NAME.part` for the pattern `NAME_%04d.png`."""
    stem = pattern.stem.split("%")[0].rstrip("_-. ") or "pictures"
    return pattern.with_name(f"{stem}.part")


def _write_whole(path: Path, data: bytes) -> None:
    """Write a new file, or leave none: a picture that is cut would not be shown."""
    file = path.open("xb", buffering=0)
    try:
        with file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
    except BaseException:
        path.unlink(missing_ok=True)
        raise
