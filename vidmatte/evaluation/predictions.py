"""Pictures with masks, and what predicts the masks: networks, or folders of finished mattes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vidmatte.backends import open_backend, usable_cores
from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.geometry import to_upright
from vidmatte.errors import BackendError, InputError, UsageError
from vidmatte.evaluation.reading import MatteReader
from vidmatte.matting import Matting, MattingChoice, Network, find_model
from vidmatte.models.table import Curve, multiply_adds, network_size, parameter_count
from vidmatte.pairs import pictures_in, read_rgb, some
from vidmatte.renders import working_layout
from vidmatte.sources.file import FileSource
from vidmatte.threads import network_threads

if TYPE_CHECKING:
    from vidmatte.frames import Samples
    from vidmatte.models.registry import Model

Prediction = NDArray[np.float64]
Mask = NDArray[np.bool_]
Mode = Literal["matte", "raw", "official"]

OFFICIAL_SIDE = 320  # u2net_test.py: RescaleT(320)


class Pair(NamedTuple):
    """A picture and its mask, both of upright `size` (width, height)."""

    picture: Path
    mask: Path
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The stem that both share."""
        return self.picture.stem

    def read_mask(self) -> Mask:
        """Return the mask (H, W): true where its grey is above 128 of 255, as is usual."""
        grey = read_matte(self.mask)
        return np.asarray(grey > (128 if grey.dtype == np.uint8 else 128 * 257))


class Predictor(Protocol):
    """What makes predictions: a network, or a folder of finished ones.

    `parameters` counts a network's trainable ones. `facts` describe it for a report.
    """

    label: str
    parameters: int | None
    facts: dict[str, str]

    def predict(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Prediction]]:
        """Yield each pair, in any order, with its prediction (H, W) in 0..1."""


def read_matte(path: Path) -> Samples:
    """Return the matte that a picture file shows, upright (H, W); see MatteReader."""
    with FileSource(path, threads=1) as source:
        (frame,) = islice(source, 1)
        return MatteReader(source.info).read(frame.picture)


def check_sizes(
    found: Sequence[tuple[Path, Path]], each: Callable[[], None] = lambda: None
) -> list[Pair]:
    """Read every picture and mask once; raise InputError for what cannot be read or differs.

    `each` is called after each pair and may raise to stop.
    """
    pairs = []
    for picture, mask in found:
        pairs.append(_pair(picture, mask))
        each()
    return pairs


def _pair(picture: Path, mask: Path) -> Pair:
    size, mask_size = _upright_size(picture), _upright_size(mask)
    if size != mask_size:
        raise InputError(
            f"{mask}: is {_times(mask_size)}, its picture {picture} {_times(size)}",
            hint="masks are as large as their pictures",
        )
    return Pair(picture, mask, size)


def _upright_size(path: Path) -> tuple[int, int]:
    with FileSource(path, threads=1) as source:
        return source.info.upright_size


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class FolderPrediction:
    """Finished predictions in a folder, by the stems of their names.

    With `stretch` each is stretched to its own minimum and maximum, as published numbers are made.
    Raises InputError unless every pair has one.
    """

    parameters: int | None = None

    def __init__(self, label: str, folder: Path, pairs: Sequence[Pair], *, stretch: bool) -> None:
        self.label = label
        self.facts = {"folder": str(folder)}
        self._files = pictures_in(folder)
        self._stretch = stretch
        missing = [pair.name for pair in pairs if pair.name not in self._files]
        if missing:
            raise InputError(
                f"{folder}: lacks {len(missing)} of {len(pairs)} predictions: {some(missing)}",
                hint="predictions are named like their pictures: a.png for a.jpg",
            )

    def predict(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Prediction]]:
        """Yield each pair with its prediction."""
        for pair in pairs:
            path = self._files[pair.name]
            alpha = read_matte(path)
            if alpha.shape[::-1] != pair.size:
                size = alpha.shape[1], alpha.shape[0]
                raise InputError(
                    f"{path}: is {_times(size)}, its picture {pair.picture} {_times(pair.size)}",
                    hint="predictions are as large as their pictures",
                )
            unit = alpha / np.iinfo(alpha.dtype).max
            yield pair, _stretched(unit) if self._stretch else unit


class NetworkPrediction:
    """A network's predictions.

    "matte" is what `vidmatte run` makes of a picture. "raw" is the network's own answer, enlarged
    bilinearly. "official" is what the authors' test script saves: the picture stretched to
    320×320 and divided by its own maximum, the answer stretched to its own minimum and maximum, in
    8 bits, then enlarged. The network sees 8-bit pictures in every mode.
    """

    def __init__(
        self, label: str, model: Model, mode: Mode, choice: MattingChoice, longer: int = 320
    ) -> None:
        self.label = label
        self.parameters: int | None = parameter_count(model.row.network)
        self.facts = {"model": model.name, "weights": str(model.path), "sha256": model.sha256}
        self._mode = mode
        self._choice = choice
        self._longer = longer
        raw = replace(model, row=replace(model.row, curve=Curve(0.0, 1.0)))
        self._model = raw if mode == "raw" else model

    def predict(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Prediction]]:
        """Yield each pair with its prediction, grouped by the network's size."""
        for size, group in groupby(sorted(pairs, key=self._size_for), key=self._size_for):
            network = self._open(size)
            try:
                for pair in group:
                    yield pair, self._predict(pair, network)
            finally:
                network.backend.close()

    def _size_for(self, pair: Pair) -> tuple[int, int]:
        """Return the network's (width, height) for a picture."""
        if self._mode == "official":
            return OFFICIAL_SIDE, OFFICIAL_SIDE
        return network_size(*pair.size, self._model.row, self._longer)

    def _open(self, size: tuple[int, int]) -> Network:
        width, height = size
        choice, network = self._choice, self._model.row.network
        official = self._mode == "official" and choice.precision == "auto"
        backend = open_backend(
            self._model,
            size=(height, width),
            backend=choice.backend,
            device=choice.device,
            precision="f32" if official else choice.precision,
            threads=network_threads(usable_cores(), multiply_adds(network, width, height)),
        )
        self.facts["backend"] = backend.description
        return Network(self._model, backend)

    def _predict(self, pair: Pair, network: Network) -> Prediction:
        if self._mode == "official":
            return official_prediction(read_rgb(pair.picture), network, str(pair.picture))
        with FileSource(pair.picture, threads=1) as source:
            layout = working_layout(source.info, needs_alpha=False)
            turned, refined = source.info.orientation, self._mode == "matte"
            matting = Matting(source.info, layout, network, temporal=False, refinement=refined)
            (matte,) = matting.process(islice(source, 1))
            upright = to_upright(matte.alpha / np.iinfo(matte.alpha.dtype).max, turned)
            return np.asarray(upright, np.float64)


def official_prediction(
    picture: NDArray[np.uint8], network: Network, name: str = "picture"
) -> Prediction:
    """Return what the authors' script saves for (H, W, 3) uint8 RGB, as (H, W) in 0..1.

    u2net_test.py and data_loader.py of github.com/xuebinqin/U-2-Net: RescaleT, ToTensorLab,
    normPRED, save_output; resized without anti-aliasing, which reproduces their result pictures.
    Raises BackendError, which names the picture, for NaN.
    """
    cv2 = load_cv2()
    height, width, _ = picture.shape
    small = cv2.resize(picture.astype(np.float32), (OFFICIAL_SIDE, OFFICIAL_SIDE))
    brightest = max(float(small.max()), 1.0)
    image = np.rint(small * (255 / brightest)).astype(np.uint8)
    answer = network.backend.infer(image[None])[0].astype(np.float64)
    if not np.isfinite(answer.sum()):
        raise BackendError(
            f"{name}: the network returned NaN", hint="try --precision f32, or other weights"
        )
    saved = (_stretched(answer) * 255).astype(np.uint8)  # the script truncates
    return np.asarray(cv2.resize(saved, (width, height)) / 255.0, np.float64)


def _stretched(values: Prediction) -> Prediction:
    lowest, highest = float(values.min()), float(values.max())
    return values if highest == lowest else (values - lowest) / (highest - lowest)


def predictors_for(
    models: Sequence[str],
    weights: Sequence[Path],
    folders: Sequence[str],
    pairs: Sequence[Pair],
    mode: Mode,
    choice: MattingChoice,
    longer: int = 320,
) -> list[Predictor]:
    """Find every named network and folder, in this order; the default model if none is named.

    `folders` are NAME=FOLDER. Weights are labelled by their file's stem, or its whole name where
    that is taken. Raises ModelError, BackendError, InputError and UsageError.
    """
    found: list[Predictor] = []
    default: tuple[str | None, ...] = () if weights or folders else (None,)
    for name in models or default:
        model = find_model(replace(choice, model=name))
        found.append(NetworkPrediction(model.name, model, mode, choice, longer))
    stems = [path.stem for path in weights] + [predictor.label for predictor in found]
    for path in weights:
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        model = find_model(replace(choice, weights=path))
        found.append(NetworkPrediction(label, model, mode, choice, longer))
    for named in folders:
        label, separator, folder = named.partition("=")
        if not (label and separator and folder):
            raise UsageError(f"--pred {named}: is not NAME=FOLDER", hint="e.g. --pred mine=out")
        found.append(FolderPrediction(label, Path(folder), pairs, stretch=mode == "official"))
    _refuse_equal_labels([predictor.label for predictor in found])
    return found


def _refuse_equal_labels(labels: Sequence[str]) -> None:
    """Raise UsageError where two rows of a table would have the same name."""
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(
                f"{label}: is named twice", hint="give --pred another name, or leave one out"
            )
