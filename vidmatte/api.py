"""The Python interface: run over a file, iterate over mattes, matte single pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidmatte.frames import Colour, Frame, Matte, VideoInfo
from vidmatte.inputs import source_of
from vidmatte.jobs import Cut, EncodingChoice, Progress, RunResult
from vidmatte.matting import GPU_BATCH, MattingChoice, build_matting, open_network
from vidmatte.outputs import contents_of
from vidmatte.pipeline import Stop
from vidmatte.renders import working_layout
from vidmatte.runner import FileRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidmatte.backends import Precision
    from vidmatte.compute.cuda.engine import DeviceMatting
    from vidmatte.matting import Matting

Name = str | PathLike[str]


def run(
    source: Name,
    output: Name,
    *,
    background: str | None = None,
    fit: Literal["cover", "contain", "stretch"] = "cover",
    alpha: Name | None = None,
    foreground: Name | None = None,
    model: str | None = None,
    weights: Name | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    codec: str | None = None,
    crf: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    audio: bool = True,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Write `source` to `output` without its background, as the command `vidmatte run` does.

    `background` is a colour, a picture, a video, "blur[:strength]" or "transparent"; None is
    green, or transparent where the output's kind is made for it (.mov, .webm, .png, …). `alpha` and
    `foreground` name further outputs of the same pass. `on_progress` is called on this thread a
    few times a second. Outputs appear under their names only when whole. Raises VidmatteError
    subclasses; a KeyboardInterrupt stops the run and passes through.
    """
    outputs = contents_of(
        fspath(output),
        None if alpha is None else fspath(alpha),
        None if foreground is None else fspath(foreground),
        background,
    )
    job = FileRun(
        fspath(source),
        outputs,
        background="green" if background in (None, "transparent") else background,
        fit=fit,
        matting=MattingChoice(model, _path(weights), backend, device, precision),
        encoding=EncodingChoice(codec, crf, audio=audio),
        cut=Cut(start_s, end_s),
        overwrite=overwrite,
    )
    return job.run(Stop(), on_progress)


def mattes(
    source: Name,
    *,
    model: str | None = None,
    weights: Name | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    temporal: bool = True,
) -> Iterator[Matte]:
    """Yield one `Matte` per frame of a video or picture file.

    `matte.alpha` is (H, W) uint8, uint16 above 8 bits, in the stored orientation;
    `matte.frame.picture` is the decoder's own picture and read-only. Raises VidmatteError.
    """
    with source_of(fspath(source)) as opened:
        choice = MattingChoice(model, _path(weights), backend, device, precision)
        with closing(_open(opened.info, choice, temporal=temporal)) as matting:
            yield from matting.process(iter(opened))


class Matter:
    """Mattes single pictures; the network is loaded once per shape of picture.

    Results equal those of a video of that one frame. Belongs to one thread.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        weights: Name | None = None,
        backend: str = "auto",
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        self._choice = MattingChoice(model, _path(weights), backend, device, precision)
        self._shape: tuple[int, ...] = ()
        self._matting: Matting | DeviceMatting | None = None

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the alpha (H, W) uint8 of an upright (H, W, 3) uint8 RGB picture."""
        import av
        import numpy as np

        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError("a picture is an (H, W, 3) uint8 RGB array")
        if self._matting is None or self._shape != picture.shape:
            self.close()
            height, width, _ = picture.shape
            info = VideoInfo("picture", width, height, "rgb24", Fraction(1, 25), Fraction(25),
                             colour=Colour(0, 2), is_still=True)  # fmt: skip
            self._matting = _open(info, self._choice, temporal=False)
            self._shape = picture.shape
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        (matte,) = self._matting.process(iter([Frame(frame, 0, 0, Fraction(1, 25))]))
        return np.asarray(matte.alpha, np.uint8)

    def close(self) -> None:
        """Free the network."""
        if self._matting is not None:
            self._matting.close()
            self._matting = None


def _path(name: Name | None) -> Path | None:
    return None if name is None else Path(name)


def _open(info: VideoInfo, choice: MattingChoice, *, temporal: bool) -> Matting | DeviceMatting:
    layout = working_layout(info, needs_alpha=False)
    network = open_network(info, choice, gpu_batch=GPU_BATCH)
    return build_matting(info, layout, network, choice, temporal=temporal)
