"""Names of numbered pictures: which patterns are meant, and which files they stand for."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NUMBER = re.compile(r"%(?:0?[1-9][0-9]?)?d")  # %d, %4d, %04d; a bounded width


def is_sequence(path: Path) -> bool:
    """Whether the name is a pattern of numbered pictures (`frame_%04d.png`).

    Only one `%d`, `%4d` or `%04d` in the last part of a path makes a pattern; any other `%`
    makes the whole name a plain one.
    """
    return len(_NUMBER.findall(path.name)) == 1 and path.name.count("%") == 1


def numbered_files(pattern: Path) -> list[tuple[int, Path]]:
    """List the existing files that `pattern` stands for as (number, path), in order of number.

    The folder's own part is taken as it is written. An unreadable folder holds none.
    """
    before, after = _NUMBER.split(pattern.name)
    name = re.compile(f"{re.escape(before)} *([0-9]{{1,18}}){re.escape(after)}", re.ASCII)
    try:
        listed = os.listdir(pattern.parent)
    except OSError:
        return []
    found = []
    for entry in listed:
        match = name.fullmatch(entry)
        if match is not None and pattern.name % int(match[1]) == entry:
            found.append((int(match[1]), pattern.with_name(entry)))
    return sorted(found)
