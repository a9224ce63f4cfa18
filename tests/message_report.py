"""Ways to make `vidmatte report` say something."""

from __future__ import annotations

from pathlib import Path

from conftest import make_clip, run_file
from message_tools import Patch, Scenario, both, write


def matte(folder: Path, patch: Patch) -> None:
    """The matte of the clip that all is in: white."""
    run_file(folder / "s.mp4", folder / "m.mkv", contents=("matte",))


def short_matte(folder: Path, patch: Patch) -> None:
    """The matte of a clip with two pictures less."""
    make_clip(folder / "x.mp4", 1)
    run_file(folder / "x.mp4", folder / "m.mkv", contents=("matte",))


REPORT = {
    "report": Scenario("report s.mp4 m.mkv", matte),
    "report of lost pictures": Scenario("report s.mp4 m.mkv", short_matte),
    "report of damage": Scenario("report damaged.mkv s.mp4 --alpha m.mkv", matte),
    "report of an opaque output": Scenario("report s.mp4 s.mp4"),
    "report from standard input": Scenario("report - m.mkv"),
    "report of no such output": Scenario("report s.mp4 none.mov"),
    "report without a number": Scenario("report s.mp4 m.mkv --fail-if flicker"),
    "report without such a metric": Scenario("report s.mp4 m.mkv --fail-if speed>2"),
    "report past a limit": Scenario(
        "report s.mp4 m.mkv --fail-if lost-frames>=0 --fail-if flicker>0", matte
    ),
    "report that exists": Scenario("report s.mp4 m.mkv --html t.mp4", matte),
    "report over the input": Scenario("report s.mp4 m.mkv --html s.mp4 --overwrite", matte),
    "report into no folder": Scenario("report s.mp4 m.mkv --html no/r.html", matte),
    "report beside a stale part": Scenario(
        "report s.mp4 m.mkv --html r.html", both(matte, write("r.part.html", "old"))
    ),
}
