"""Ways to make `vidmatte evaluate` say something."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from conftest import make_clip
from message_tools import Patch, Prepare, Scenario, both, failing, without

from vidmatte.backends import null

SIZE = (48, 64)  # of the clip s.mp4


def pictures(*names: str, size: tuple[int, int] = SIZE) -> Prepare:
    """White pictures under these names."""

    def prepare(folder: Path, patch: Patch) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / name), np.full(size, 255, np.uint8))

    return prepare


def grey(name: str, frames: int = 3, size: tuple[int, int] = (64, 48)) -> Prepare:
    return lambda folder, patch: make_clip(
        folder / name, frames, size=size, pix_fmt="gray", codec="ffv1"
    )


def not_a_number(folder: Path, patch: Patch) -> None:
    patch.setitem(null.FORMULAS, "ones", lambda matte_HW, index: matte_HW.fill(np.nan))


PAIR = pictures("i/a.png", "m/a.png")
SALIENCY = "evaluate saliency --images i --masks m"
READY = f"{SALIENCY} --pred a=m"
VIDEO = "evaluate video --pred a.mkv --truth b.mkv"
TWO = both(grey("a.mkv"), grey("b.mkv"))
EVALUATE = {
    "scores": Scenario(f"{SALIENCY} --backend null --pred ready=m --model live", PAIR),
    "scores of no folder": Scenario(SALIENCY, pictures("m/a.png")),
    "scores of an address": Scenario("evaluate saliency --images http://127.0.0.1/i --masks m",
                                     PAIR),
    "scores of no pair": Scenario(SALIENCY, pictures("i/a.png", "m/b.png")),
    "scores of names twice": Scenario(SALIENCY, pictures("i/a.png", "i/a.jpg", "m/a.png")),
    "scores without partners": Scenario(READY, pictures("i/a.png", "m/a.png", "i/b.png",
                                                        "m/c.png", "m/d.png", "m/e.png")),
    "scores of another size": Scenario(SALIENCY, both(PAIR, pictures("m/a.png", size=(9, 9)))),
    "scores of a text": Scenario(SALIENCY, both(PAIR, lambda folder, patch:
                                                (folder / "i" / "a.png").write_text("words"))),
    "scores of a coloured mask": Scenario(SALIENCY, both(PAIR, lambda folder, patch: cv2.imwrite(
        str(folder / "m" / "a.png"), np.full((*SIZE, 3), (0, 0, 200), np.uint8)))),
    "scores of missing predictions": Scenario(
        f"{SALIENCY} --pred mine=p", pictures("i/a.png", "m/a.png", "i/b.png", "m/b.png", "p/b.png")
    ),
    "scores of small predictions": Scenario(
        f"{SALIENCY} --pred mine=p", both(PAIR, pictures("p/a.png", size=(9, 9)))
    ),
    "scores of no name": Scenario(f"{SALIENCY} --pred p", PAIR),
    "scores of one name": Scenario(f"{SALIENCY} --model live --model live", PAIR),
    "scores of no model": Scenario(f"{SALIENCY} --model u3net", PAIR),
    "scores official and raw": Scenario(f"{SALIENCY} --official --raw"),
    "scores official at a size": Scenario(f"{SALIENCY} --official --size 512"),
    "scores of NaN": Scenario(f"{SALIENCY} --official --backend null", both(PAIR, not_a_number)),
    "scores without pysodmetrics": Scenario(SALIENCY, without("py_sod_metrics")),
    "scores without matplotlib": Scenario(f"{READY} --plot p.png",
                                          both(PAIR, without("matplotlib.figure"))),
    "scores into a jpg": Scenario(f"{READY} --plot p.jpg", PAIR),
    "scores into a device": Scenario(f"{READY} --csv /dev/null --overwrite", PAIR),
    "scores into a picture": Scenario(f"{READY} --csv i/a.png --overwrite", PAIR),
    "scores into a file": Scenario(f"{READY} --json s.mp4", PAIR),
    "scores on a full disk": Scenario(f"{READY} --json o.json", both(
        PAIR, failing("os", "fsync", OSError(28, "No space left on device")))),
    "errors": Scenario(VIDEO, TWO),
    "errors of no video": Scenario(VIDEO, grey("a.mkv")),
    "errors of a composite": Scenario("evaluate video --pred s.mp4 --truth b.mkv", both(
        grey("b.mkv"), lambda folder, patch: make_clip(folder / "s.mp4", 3, colour=(1, 1, 1, 1)))),
    "errors of other lengths": Scenario(VIDEO, both(grey("a.mkv", 5), grey("b.mkv"))),
    "errors of other sizes": Scenario(VIDEO, both(grey("a.mkv", 3, (32, 48)), grey("b.mkv"))),
    "errors of a cut video": Scenario(VIDEO, both(grey("a.mkv", 9), grey("b.mkv", 9),
                                                  lambda folder, patch: cut(folder / "a.mkv"))),
    "errors of standard input": Scenario("evaluate video --pred - --truth b.mkv", TWO),
    "errors of a folder of two": Scenario("evaluate video --pred p --truth b.mkv", both(
        TWO, pictures("p/a_1.png", "p/b_1.png"))),
    "errors of a folder of none": Scenario("evaluate video --pred p --truth b.mkv", both(
        TWO, pictures("p/a.png"))),
    "errors by what is left out": Scenario(f"{VIDEO} --no-conn --by conn", TWO),
    "errors of one frame": Scenario("evaluate video --pred a.mkv --truth a.mkv --by dtssd "
                                    "--contact c.png", grey("a.mkv", 1)),
    "errors on a jpg": Scenario(f"{VIDEO} --contact c.jpg", TWO),
}  # fmt: skip


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
