"""Find a model's weights: embedded, installed by the user, or a file that the user names."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidmatte.errors import ModelError
from vidmatte.models.table import WEIGHTS_FOLDER, ModelRow, models, range_names
from vidmatte.models.weights import (
    folded,
    mean_magnitude,
    parse_tensors,
    read_bytes,
    recognise,
    sha256_of,
)

if TYPE_CHECKING:
    from vidmatte.models.weights import FoldedTensors, Tensors

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INT8_HINT = "use --precision bf16 or f32"
# Storing the same weights as fp16 moves their mean magnitude by less than 1e-5.
_SAME_WEIGHTS = 1e-3
CPU_DEFAULT = "live"
CUDA_DEFAULTS = ("u2net", "u2netp", "live")


@dataclass(frozen=True, slots=True)
class Model:
    """A row of the table together with the weights that were found for it.

    `sha256` is of the file at `path`: pinned (embedded), recorded at import (installed) or just
    computed (file; for the caller to print). `reason` says in one line why this model was taken.
    """

    row: ModelRow
    path: Path
    origin: Literal["embedded", "installed", "file"]
    sha256: str
    reason: str = ""
    tensors: Tensors | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.row.name

    def load(self) -> FoldedTensors:
        """Return kernels and biases by official name, float32, BN folded.

        The file's bytes are checked against `sha256` first. Raises ModelError.
        """
        tensors = self.tensors
        if tensors is None:
            data = read_bytes(self.path)
            if sha256_of(data) != self.sha256:
                raise ModelError(
                    f"{self.path} is damaged: its SHA-256 is not {self.sha256}",
                    hint="install vidmatte again"
                    if self.origin == "embedded"
                    else f"run: vidmatte models import FILE --name {self.name}",
                )
            tensors = parse_tensors(data, self.path)
            recognise(tensors, [self.row.network], self.path)
        return folded(self.row.network, tensors, self.path)

    def int8_ranges(self, tensors: FoldedTensors) -> dict[str, float]:
        """Return the largest value of each block's and stage's output, for 8-bit maps.

        They are read from FILE_int8.json beside the weights, else from those of this package, and
        hold for `tensors` only if they were made with the same weights. Raises ModelError.
        """
        beside = self.path.with_name(f"{self.path.stem}_int8.json")
        embedded = WEIGHTS_FOLDER / f"{self.name}_int8.json"
        path = next((path for path in (beside, embedded) if path.is_file()), None)
        if path is None:
            raise ModelError(f"there are no int8 ranges for {self.name}", hint=_INT8_HINT)
        try:
            facts = json.loads(path.read_text("utf-8"))
            ranges = {name: float(value) for name, value in facts["ranges"].items()}
            drift = abs(mean_magnitude(tensors) / float(facts["mean_magnitude"]) - 1)
            complete = all(ranges[name] > 0 for name in range_names(self.row.network))
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as exc:
            raise ModelError(f"{path} holds no int8 ranges", hint=_INT8_HINT) from exc
        if not complete or not drift <= _SAME_WEIGHTS:
            raise ModelError(f"the int8 ranges in {path} are of other weights", hint=_INT8_HINT)
        return ranges


def model_folder() -> Path:
    """Return the folder of installed weights: VIDMATTE_MODEL_DIR, else the user's data folder."""
    named = os.environ.get("VIDMATTE_MODEL_DIR")
    if named:
        return Path(named)
    from platformdirs import user_data_path

    return user_data_path("vidmatte", appauthor=False) / "models"


def private_folder(
    folder: Path, *, holds: str = "weights", variable: str = "VIDMATTE_MODEL_DIR"
) -> None:
    """Make the folder of installed weights for this user alone, or check one that is there.

    Raises OSError, and ModelError for a folder in which strangers could swap weights and record.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_foreign(folder, holds=holds, variable=variable)


def refuse_foreign(
    folder: Path, *, holds: str = "weights", variable: str = "VIDMATTE_MODEL_DIR"
) -> None:
    """Raise ModelError where someone else than this user or the administrator may write.

    `holds` says what lies in the folder, `variable` which one names another.
    """
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise ModelError(
            f"{folder}: belongs to another user, who could change the {holds}",
            hint=f"name a folder of your own in {variable}",
        )
    others = status.st_mode & stat.S_IWOTH
    if others or (status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)):
        raise ModelError(
            f"{folder}: {'everybody' if others else 'its group'} may write into it and change "
            f"the {holds}",
            hint=f"chmod {'o' if others else 'g'}-w '{folder}'",
        )


def _is_own_group(group: int) -> bool:
    """Whether a group is this user's alone: many systems make one of the same name for each."""
    import grp
    import pwd

    try:
        user, named = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return named.gr_name == user.pw_name and set(named.gr_mem) <= {user.pw_name}


def _refuse_unreadable(folder: Path) -> None:
    """Raise ModelError for a folder that is there and keeps what it holds to itself."""
    if os.path.isdir(folder) and not os.access(folder, os.X_OK):
        raise ModelError(
            f"{folder} cannot be read: permission denied",
            hint="name another folder in VIDMATTE_MODEL_DIR",
        )


def find(name: str) -> Model | None:
    """Return the embedded or installed model `name`, or None if its weights are not here.

    An installed file needs the record that `vidmatte models import` writes beside it.
    """
    row = models()[name]
    if row.sha256 is not None:
        return Model(row, WEIGHTS_FOLDER / f"{name}.safetensors", "embedded", row.sha256)
    path = model_folder() / f"{name}.safetensors"
    record = path.with_suffix(".json")
    if not os.path.isfile(path) or not os.path.isfile(record):
        _refuse_unreadable(path.parent)
        return None
    refuse_foreign(path.parent)
    try:
        sha256 = str(json.loads(record.read_text("utf-8"))["sha256"])
        if not _SHA256.fullmatch(sha256):
            raise ValueError("no SHA-256")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelError(
            f"{record} is damaged", hint=f"run: vidmatte models import FILE --name {name}"
        ) from exc
    return Model(row, path, "installed", sha256)


def from_file(path: Path, name: str | None = None) -> Model:
    """Read the user's own file; its network is recognised from parameter names and shapes.

    `name` chooses the row where several share a network. Raises ModelError.
    """
    data = read_bytes(path)
    tensors = parse_tensors(data, path)
    rows = list(models().values()) if name is None else [row_named(name)]
    network = recognise(tensors, list({r.network.name: r.network for r in rows}.values()), path)
    row = next(r for r in rows if r.network.name == network.name)
    reason = f"{network.name} weights from {path}"
    return Model(row, path, "file", sha256_of(data), reason, tensors)


def row_named(name: str) -> ModelRow:
    """Return the row `name`; ModelError with the known names otherwise."""
    rows = models()
    if name not in rows:
        raise ModelError(f"there is no model {name!r}", hint="models: " + ", ".join(rows))
    return rows[name]


def resolve_model(
    name: str | None = None, *, weights: Path | None = None, device: str = "cpu"
) -> Model:
    """Choose a model and find its weights.

    `name` None takes the default of `device` ("cpu", "cuda", "cuda:N"): `live` on a CPU; on CUDA
    u2net if installed, else u2netp, else live; `Model.reason` says which in one line. `weights`
    is the user's own file. Raises ModelError.
    """
    if weights is not None:
        return from_file(weights, name)
    if name is not None:
        row_named(name)
        model = find(name)
        if model is None:
            raise ModelError(f"the weights of {name} are not installed", hint=install_hint(name))
        return model
    return _default(device)


def install_hint(name: str) -> str:
    """Say how the weights of `name` come onto this machine."""
    if models()[name].download is not None:
        return f"run: vidmatte models download {name}"
    return f"get the official file and run: vidmatte models import FILE --name {name}"


def _default(device: str) -> Model:
    order = CUDA_DEFAULTS if device.startswith("cuda") else (CPU_DEFAULT,)
    missing: list[str] = []
    for name in order:
        model = find(name)
        if model is not None:
            reason = f"{device.partition(':')[0]} default: {name}"
            if missing:
                reason += f" ({', '.join(missing)} not installed)"
            return replace(model, reason=reason)
        missing.append(name)
    raise AssertionError("live is embedded")
