"""Read the manifest of the corpus, and make the corpus where its generator is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_media import UPRIGHT
from corpus_probe import Turn


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the corpus manifest. `file` may hold surrogates for bytes that are not UTF-8."""

    id: str
    file: str
    via: str
    group: str
    kind: str
    expected: str
    warn: bool
    skip_if_root: bool
    props: dict[str, Any]
    sha256: str

    @classmethod
    def from_manifest(cls, row: dict[str, Any]) -> Entry:
        """Read one element of the manifest's `entries`."""
        return cls(
            **{key: row[key] for key in ("id", "via", "group", "kind", "expected", "props")},
            file=os.fsdecode(row["file"].encode("utf8", "surrogateescape")),
            warn=row.get("warn", False),
            skip_if_root=row.get("skip_if_root", False),
            sha256=row.get("sha256", ""),
        )

    @property
    def video(self) -> dict[str, Any]:
        """What is expected of the pictures; empty if the manifest says nothing."""
        return self.props.get("video") or {}

    @property
    def turn(self) -> Turn:
        """The display matrix, as signs, that makes the stored picture upright."""
        if self.video.get("mirror") == "h":
            return (-1, 0, 0, 1)
        turns: dict[int, Turn] = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
        return turns.get(self.video.get("rotate_cw", 0), UPRIGHT)

    @property
    def ids(self) -> list[int] | None:
        """The bar codes in order, or None if pictures carry none."""
        ids, frames = self.video.get("ids"), self.video.get("frames", 2)
        if ids and len(ids) == 2 and ids[0] < ids[1] and ids[1] - ids[0] == frames:
            return list(range(*ids))
        return ids or None

    @property
    def has_broken_times(self) -> bool:
        """Whether the source's time stamps are missing or jump, so that ours must differ."""
        return any(self.video.get(k) for k in ("pts_back", "pts_jump", "pts_missing"))


def shared_folder() -> Path:
    """Where the corpus generator lies."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("VIDMATTE_SHARED", beside))


def generate_corpus(folder: Path, only: str | None = None) -> None:
    """Write the corpus, or the entries whose id matches `only`, into `folder`."""
    script = shared_folder() / "corpus" / "make_corpus.py"
    command = [sys.executable, str(script), str(folder), *(["--only", only] if only else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def load_manifest(corpus: Path) -> tuple[list[Entry], list[list[int]]]:
    """Return the entries and the six drawn patch colours."""
    manifest = json.loads((corpus / "manifest.json").read_text("utf8"))
    return [Entry.from_manifest(row) for row in manifest["entries"]], manifest["patches_rgb"]
