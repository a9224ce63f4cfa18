"""Hundreds of damaged files through the real command: no crash, hang, traceback or leftover.

`pytest -m slow tests/test_fuzz.py` runs thousands; VIDMATTE_FUZZ_CASES and VIDMATTE_FUZZ_SEED say
how many and which.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fuzz_cases import CLIPS, MUTATIONS, PICTURES, Mutation, load_bases, make_bases, media_case
from fuzz_weights import USES, make_weights
from fuzzing import ENOUGH, LIMIT_S, Verdict

pytestmark = pytest.mark.fault

Record = Callable[[str, object], None]
PROCESSES = 2
# Seeds of the thousands lie behind those of the hundreds.
SLOW_SEED = int(os.environ.get("VIDMATTE_FUZZ_SEED", "100000"))
SLOW_CASES = int(os.environ.get("VIDMATTE_FUZZ_CASES", "5000"))
IMPORTS_S, CASE_S = 60.0, 1.0  # generous: .1 s is usual, and other tests run beside these


def fuzz(kind: str, seed: int, count: int, folder: Path) -> list[Verdict]:
    """Run the cases in processes of their own, which import once and fork for every case."""
    bases = folder / "bases"
    bases.mkdir()
    {"media": make_bases, "weights": make_weights}[kind](bases)
    share = -(-count // PROCESSES)
    starts = range(seed, seed + count, share)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("fuzzing.py")),
             "--kind", kind, "--seed", str(start), "--count", str(min(share, seed + count - start)),
             "--folder", str(folder / str(start)), "--bases", str(bases),
             "--verdicts", str(folder / f"{start}.json")],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for start in starts
    ]  # fmt: skip
    limit_s = IMPORTS_S + CASE_S * share + ENOUGH * 2 * LIMIT_S
    try:
        said = [worker.communicate(timeout=limit_s)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    paths = [folder / f"{start}.json" for start in starts]
    assert all(path.is_file() for path in paths), said
    return [Verdict(**facts) for path in paths for facts in json.loads(path.read_text())]


def report(wrong: list[Verdict], kind: str) -> str:
    """What went wrong, with the command that does each case again."""
    return "\n".join(
        f"{v.case}\n  exit code {v.exit_code}, {v.seconds:.1f} s, {v.peak_mb} MB: "
        f"{'; '.join(v.problems)}\n  python tests/fuzzing.py --kind {kind} --seed {v.seed}\n"
        f"{v.stderr}"
        for v in wrong
    )


def check(kind: str, verdicts: list[Verdict], count: int, record_property: Record) -> None:
    """Fail on whatever went wrong; tell `make faults` what was counted."""
    record_property("fuzz_cases", len(verdicts))
    record_property("hangs", sum(verdict.seconds >= LIMIT_S for verdict in verdicts))
    record_property("tracebacks", sum("Traceback" in verdict.stderr for verdict in verdicts))
    wrong = [verdict for verdict in verdicts if verdict.problems]
    assert not wrong, report(wrong, kind)
    assert len(verdicts) == count


@pytest.mark.timeout(300)
def test_300_damaged_videos_and_pictures(tmp_path: Path, record_property: Record) -> None:
    verdicts = fuzz("media", 0, 300, tmp_path)
    check("media", verdicts, 300, record_property)
    # Damage that is always noticed, or never, would test one half of the code only.
    succeeded = sum(verdict.exit_code == 0 for verdict in verdicts)
    assert 60 < succeeded < 240
    assert len({verdict.base for verdict in verdicts}) == len(CLIPS) + len(PICTURES) + 1
    assert {m for v in verdicts for m in v.mutations} == {m.__name__ for m in MUTATIONS}


@pytest.mark.timeout(300)
def test_60_damaged_weights(tmp_path: Path, record_property: Record) -> None:
    verdicts = fuzz("weights", 0, 60, tmp_path)
    check("weights", verdicts, 60, record_property)
    assert 0 < sum(verdict.exit_code == 0 for verdict in verdicts) < 40
    assert {verdict.base for verdict in verdicts} == {use.damaged for use in USES}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_videos_and_pictures(tmp_path: Path, record_property: Record) -> None:
    verdicts = fuzz("media", SLOW_SEED, SLOW_CASES, tmp_path)
    check("media", verdicts, SLOW_CASES, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_damaged_weights(tmp_path: Path, record_property: Record) -> None:
    count = max(1, SLOW_CASES // 5)
    check("weights", fuzz("weights", SLOW_SEED, count, tmp_path), count, record_property)


def test_a_seed_means_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_bases(tmp_path / name)
    a, b = (load_bases(tmp_path / name) for name in ("a", "b"))
    assert a == b
    assert media_case(7, a) == media_case(7, b) != media_case(8, a)


@pytest.mark.parametrize(
    "mutation", dict.fromkeys(MUTATIONS), ids=lambda mutation: mutation.__name__
)
def test_a_mutation_changes_something_and_survives_anything(mutation: Mutation) -> None:
    base = b"RIFF\x10\0\0\0AVI LIST\x04\0\0\0hdrl" + bytes(range(200))
    for data in (base, b"", b"x", b"YUV4MPEG2 W64 H48\nFRAME\n", b"\x1aE\xdf\xa3\xae\x80"):
        damaged = [mutation(data, random.Random(seed), [base]) for seed in range(20)]
        assert any(d != data for d in damaged) or not data
