"""`vidmatte demo`: make a clip of real photographs in motion and take its background away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vidmatte.errors import OutputError, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidmatte.cli.console import Console
    from vidmatte.pipeline import Stop
    from vidmatte.sinks.plan import Content
    from vidmatte.sources.synthetic import SyntheticClip

    Picture = NDArray[np.uint8]

NAMES = ("source.mp4", "background.png", "result.mp4", "matte.mkv", "contact.png")
DUSK, DAWN = (22, 44, 92), (176, 222, 214)  # RGB of the generated background: sky and glow
SEED = 2  # a room out of focus behind the person
CONTACT_HEIGHT = 240  # of one of the contact picture's three parts


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("vidmatte-demo"),
    show_default=True,
    metavar="FOLDER",
    help="Where the demo's files go; those of an earlier demo are replaced.",
)
@click.option("--height", type=click.IntRange(90, 2160), default=720, show_default=True,
              help="Lines of the clip; 16:9.")  # fmt: skip
@click.option("--frames", type=click.IntRange(1, 9000), default=90, show_default=True,
              help="Length of the clip, at 30 frames per second.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Model; see `vidmatte models`. Default: live.")
@click.option("--backend", default="auto", show_default=True, help="auto, openvino, torch, null.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
def demo(
    output: Path, *, height: int, frames: int, model: str | None, backend: str, quiet: bool
) -> int:
    """Matte a generated clip and say where source, result and a contact picture are.

    The clip is made of photographs that scikit-image ships (pip install "vidmatte[demo]").

    Example: vidmatte demo --output demo
    """
    from vidmatte.cli.console import Console, watch_signals
    from vidmatte.pipeline import Stop

    stop = Stop()
    watch_signals(stop)
    console = Console(quiet=quiet, as_json=False)
    source, background, result, matte, contact = (output / name for name in NAMES)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _refused(output, exc) from exc
    console.say(f"making {source}: {frames} frames")
    _make_inputs(source, background, height - height % 2, frames, stop)
    outputs: dict[str, Content] = {str(result): "opaque", str(matte): "matte"}
    code = _matte(source, background, outputs, model, backend, console, stop)
    if code == 0:
        write_contact([source, matte, result], contact, frames // 2)
        for name, path in (("source", source), ("result", result), ("contact picture", contact)):
            click.echo(printable(f"{name}: {path}"))
    return code


def _make_inputs(source: Path, background: Path, height: int, frames: int, stop: Stop) -> None:
    from vidmatte.sources.synthetic import SyntheticClip

    width = round(height * 16 / 9 / 2) * 2
    try:
        _write_png(background, dusk(width, height))
        clip = SyntheticClip(width=width, height=height, frame_count=frames, seed=SEED)
        _write_whole(source, clip, stop)
    except OSError as exc:
        raise _refused(source, exc) from exc


def _write_whole(path: Path, clip: SyntheticClip, stop: Stop) -> None:
    from vidmatte.sources.synthetic import write_clip

    part = path.with_name(f"{path.stem}.part{path.suffix}")

    def leave_if_asked() -> None:
        if stop.reason is not None:
            raise click.exceptions.Exit(128 + stop.reason)

    try:
        write_clip(part, clip, sound=True, before_frame=leave_if_asked)
        leave_if_asked()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _matte(
    source: Path,
    background: Path,
    outputs: dict[str, Content],
    model: str | None,
    backend: str,
    console: Console,
    stop: Stop,
) -> int:
    from vidmatte.matting import MattingChoice
    from vidmatte.runner import FileRun

    job = FileRun(
        str(source),
        outputs,
        background=str(background),
        matting=MattingChoice(model=model, backend=backend),
        overwrite=True,
    )
    return console.show(job.run(stop, console.progress), str(source))


def dusk(width: int, height: int) -> Picture:
    """Return a generated background, (height, width, 3) uint8 RGB: an evening sky."""
    import numpy as np

    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    glow = np.clip(1.25 - np.hypot((x - 0.72) * 1.6, (y - 1.0) * 1.1), 0, 1)[..., None] ** 1.5
    sky = np.array(DUSK) + (np.array(DAWN) - np.array(DUSK)) * glow
    return np.asarray(np.rint(sky), np.uint8)


def write_contact(videos: list[Path], target: Path, index: int) -> None:
    """Write frame `index` of each video side by side as one picture."""
    import numpy as np

    from vidmatte.compute.cpu._shared import load_cv2

    cv2 = load_cv2()
    parts = []
    for video in videos:
        picture = _frame(video, index)
        width = round(picture.shape[1] * CONTACT_HEIGHT / picture.shape[0])
        size = (width, CONTACT_HEIGHT)
        parts.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    try:
        _write_png(target, np.hstack(parts))
    except OSError as exc:
        raise _refused(target, exc) from exc


def _write_png(path: Path, picture: Picture) -> None:
    """Write (H, W, 3) uint8 RGB; raise OSError. OpenCV itself would not say why it failed."""
    from vidmatte.compute.cpu._shared import load_cv2

    _, data = load_cv2().imencode(".png", picture[..., ::-1])
    path.write_bytes(data.tobytes())


def _refused(path: Path, exc: OSError) -> OutputError:
    reason = (exc.strerror or "cannot be written").lower()
    return OutputError(f"{path}: {reason}", hint="choose another folder with --output")


def _frame(video: Path, index: int) -> Picture:
    """Decode one frame to (H, W, 3) uint8 RGB."""
    from itertools import islice

    import numpy as np

    from vidmatte.sources.file import FileSource

    with FileSource(video) as source:
        frame = next(islice(source, index, None))
        return np.asarray(frame.picture.to_ndarray(format="rgb24"), np.uint8)
