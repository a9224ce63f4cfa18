"""Parts, locks and final names: the output name only ever holds a whole file."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest
from conftest import decode, leftovers, make_clip, run_file

from vidmatte.errors import OutputError, UsageError
from vidmatte.outputs import (
    FileDestination,
    SequenceDestination,
    StreamDestination,
    destination_of,
    refuse_same_file,
)
from vidmatte.sinks.images import SequenceSink
from vidmatte.sinks.part import PartFile, check_target, part_name


def test_the_part_lies_beside_its_target_and_keeps_the_extension() -> None:
    assert part_name(Path("a/b.c.mp4")) == Path("a/b.c.part.mp4")


def test_a_part_gets_its_name_only_by_commit(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "o.mp4")
    os.write(part.descriptor, b"whole")
    part.flush()
    assert leftovers(tmp_path) == ["o.part.mp4"]
    part.commit()
    assert leftovers(tmp_path) == ["o.mp4"]
    assert (tmp_path / "o.mp4").read_bytes() == b"whole"
    assert part.descriptor < 0


def test_a_discarded_part_is_gone(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "o.mp4")
    part.discard()
    part.discard()
    assert leftovers(tmp_path) == []


@pytest.mark.fault
def test_a_part_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    first = PartFile(tmp_path / "o.mp4")
    os.write(first.descriptor, b"first")
    with pytest.raises(OutputError, match="another run is writing it"):
        PartFile(tmp_path / "o.mp4")
    first.commit()
    assert (tmp_path / "o.mp4").read_bytes() == b"first"


def test_the_part_stays_locked_until_it_has_its_name(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "o.mp4")
    part.flush()
    with (tmp_path / "o.part.mp4").open("rb") as probe, pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    part.discard()


@pytest.mark.fault
def test_a_stale_part_is_kept_aside_and_named(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "o.part.mp4").write_bytes(b"old %d" % number)
        part = PartFile(tmp_path / "o.mp4")
        assert part.kept_aside == tmp_path / f"o.stale{number}.mp4"
        assert part.kept_aside.read_bytes() == b"old %d" % number
        part.discard()


@pytest.mark.fault
def test_a_symlink_in_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "o.part.mp4").symlink_to(precious)
    part = PartFile(tmp_path / "o.mp4")
    os.write(part.descriptor, b"new")
    part.commit()
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "o.mp4").read_bytes() == b"new"


@pytest.mark.fault
def test_a_dangling_symlink_in_place_of_the_part_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "o.part.mp4").symlink_to(tmp_path / "elsewhere")
    PartFile(tmp_path / "o.mp4").discard()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.fault
def test_overwriting_a_symlink_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    precious = tmp_path / "precious.mp4"
    precious.write_bytes(b"precious")
    link = tmp_path / "o.mp4"
    link.symlink_to(precious)
    with pytest.raises(OutputError, match="exists already"):
        check_target(link, overwrite=False)
    part = PartFile(link)
    part.commit()
    assert precious.read_bytes() == b"precious"
    assert not link.is_symlink()


@pytest.mark.fault
def test_what_can_be_known_to_fail_is_known(tmp_path: Path) -> None:
    (tmp_path / "o.mp4").touch()
    with pytest.raises(OutputError, match="exists already"):
        check_target(tmp_path / "o.mp4", overwrite=False)
    check_target(tmp_path / "o.mp4", overwrite=True)
    with pytest.raises(OutputError, match="folder does not exist"):
        check_target(tmp_path / "no" / "o.mp4", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_target(tmp_path, overwrite=True)
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"):
        check_target(tmp_path / "dangling.mp4", overwrite=False)


@pytest.mark.fault
def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 2)
    with pytest.raises(OutputError, match="the name is too long"):
        run_file(source, tmp_path / ("x" * 300 + ".mp4"))


def test_destinations_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    assert isinstance(destination_of(str(tmp_path / "o.mp4"), overwrite=False), FileDestination)
    assert isinstance(destination_of(str(tmp_path / "fifo.mp4"), overwrite=False),
                      StreamDestination)  # fmt: skip
    assert isinstance(destination_of(str(tmp_path / "f_%04d.png"), overwrite=False),
                      SequenceDestination)  # fmt: skip
    assert isinstance(destination_of("/dev/null", overwrite=False), StreamDestination)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="terminal"):
        destination_of("-", overwrite=False)


@pytest.mark.fault
def test_the_same_file_by_any_name_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "s.mp4"
    source.touch()
    (tmp_path / "hard.mp4").hardlink_to(source)
    (tmp_path / "soft.mp4").symlink_to(source)
    new = str(tmp_path / "new.mp4")
    for other in ("s.mp4", "hard.mp4", "soft.mp4", "./s.mp4"):
        with pytest.raises(UsageError, match="is also"):
            refuse_same_file([f"{tmp_path}/{other}"], [str(source)])
    with pytest.raises(UsageError, match="is also"):
        refuse_same_file([new, f"{tmp_path}/../{tmp_path.name}/new.mp4"], [])
    refuse_same_file([new], [str(source)])
    refuse_same_file(["-"], ["-"])


@pytest.mark.fault
def test_an_input_that_is_the_part_or_a_picture_of_the_output_is_refused(tmp_path: Path) -> None:
    part, picture = tmp_path / "o.part.mp4", tmp_path / "f_0007.png"
    part.touch()
    picture.touch()
    with pytest.raises(UsageError, match="is also"):
        refuse_same_file([str(tmp_path / "o.mp4")], [str(part)])
    with pytest.raises(UsageError, match="is also"):
        refuse_same_file([str(tmp_path / "f_%04d.png")], [str(picture)])
    refuse_same_file([str(tmp_path / "g_%04d.png")], [str(picture)])


@pytest.mark.fault
def test_an_output_that_fails_to_be_renamed_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "s.mp4", 5)
    commit = PartFile.commit

    def refuse(self: PartFile) -> None:
        if self.target.name == "a.mkv":
            raise OutputError(f"{self.target}: permission denied")
        commit(self)

    monkeypatch.setattr(PartFile, "commit", refuse)
    with pytest.raises(OutputError, match="permission denied") as caught:
        run_file(source, tmp_path / "o.mp4", tmp_path / "a.mkv", contents=("opaque", "matte"))
    assert leftovers(tmp_path, "s.mp4") == ["a.part.mkv", "o.mp4"]
    assert any("a.part.mkv" in note for note in caught.value.__notes__)


@pytest.mark.fault
def test_a_disk_that_fills_at_the_last_moment_leaves_no_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delayed write shows in fsync: nothing may be renamed before every output is on disk."""
    source = make_clip(tmp_path / "s.mp4", 5)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        run_file(source, tmp_path / "o.mp4", tmp_path / "a.mkv", contents=("opaque", "matte"))
    assert not (tmp_path / "o.mp4").exists()
    assert not (tmp_path / "a.mkv").exists()


@pytest.mark.fault
def test_overwrite_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 5)
    output = tmp_path / "o.mp4"
    output.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        run_file(source, output)
    damaged = tmp_path / "broken.mp4"
    damaged.write_bytes(source.read_bytes()[:600])
    with pytest.raises(Exception, match=r"broken\.mp4"):
        run_file(damaged, output, overwrite=True)
    assert output.read_bytes() == b"old"
    run_file(source, output, overwrite=True)
    assert len(decode(output)) == 5


def test_a_sequence_is_written_in_a_part_folder_and_moved(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3)
    result = run_file(source, tmp_path / "f_%04d.png", contents=("transparent",))
    assert leftovers(tmp_path, "s.mp4") == ["f_0001.png", "f_0002.png", "f_0003.png"]
    assert decode(tmp_path / "f_0002.png")[0].format.name == "rgba"
    assert result.frames == 3


@pytest.mark.fault
def test_a_file_that_appears_during_the_run_is_not_overwritten(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "o.mp4", replace=False)
    os.write(part.descriptor, b"ours")
    (tmp_path / "o.mp4").write_bytes(b"somebody's")
    with pytest.raises(OutputError, match="appeared during the run"):
        part.commit()
    assert (tmp_path / "o.mp4").read_bytes() == b"somebody's"
    assert part.path.read_bytes() == b"ours"
    part.close()


@pytest.mark.fault
def test_a_picture_that_appears_during_the_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, taken = make_clip(tmp_path / "s.mp4", 3), tmp_path / "f_0002.png"
    close = SequenceSink.close

    def interfere(sink: SequenceSink) -> None:
        close(sink)
        taken.write_bytes(b"somebody's")

    monkeypatch.setattr(SequenceSink, "close", interfere)
    with pytest.raises(OutputError, match="appeared during the run"):
        run_file(source, tmp_path / "f_%04d.png", contents=("transparent",))
    assert taken.read_bytes() == b"somebody's"
    assert decode(tmp_path / "f.part" / "f_0002.png")


@pytest.mark.parametrize("links", [True, False])
def test_a_free_name_is_taken_with_and_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    part = PartFile(tmp_path / "o.mp4", replace=False)
    os.write(part.descriptor, b"ours")
    part.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]
    assert (tmp_path / "o.mp4").read_bytes() == b"ours"
