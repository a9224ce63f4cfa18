"""Packed pictures: complete, of the asked size, made anew when what they were made of changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_pictures import make_folders, pictured

from vidmatte.backends import open_backend
from vidmatte.errors import InputError, OutputError
from vidmatte.models.registry import resolve_model
from vidmatte.pairs import find_pairs
from vidmatte.training import pack as packing
from vidmatte.training.pack import Pack, empty_area, make_pack


@pytest.fixture
def pack_of(tmp_path: Path) -> Callable[..., Pack]:
    def make(
        count: int = 5, *, side: int = 64, teacher: object = None, told: object = None
    ) -> Pack:
        folder = tmp_path / "pictures"
        if not folder.exists():
            make_folders(folder, count)
        pairs = find_pairs(folder / "images", folder / "masks").found
        shown = told if callable(told) else lambda *_: None
        return make_pack(tmp_path / "pack", pairs, side=side, teacher=teacher, told=shown)  # type: ignore[arg-type]

    return make


def test_a_pack_holds_every_picture_at_its_size(pack_of: Callable[..., Pack]) -> None:
    pack = pack_of(5, side=96)
    assert pack.images.shape == (5, 96, 96, 3)
    for index in range(5):
        image, mask = pictured(index)
        assert (pack.images[index] == image).all()
        assert (pack.masks[index] == mask).all()
    assert pack.teacher is None


def test_a_pack_is_used_again_until_a_file_changes(
    pack_of: Callable[..., Pack], tmp_path: Path
) -> None:
    told: list[str] = []
    pack_of(told=lambda what, *_: told.append(what))
    assert told
    told.clear()
    pack_of(told=lambda what, *_: told.append(what))
    assert not told
    os.utime(tmp_path / "pictures" / "masks" / "p00.png", (1, 1))
    pack_of(told=lambda what, *_: told.append(what))
    assert told


def test_another_side_makes_another_pack(pack_of: Callable[..., Pack]) -> None:
    assert pack_of(side=64).images.shape[1] == 64
    assert pack_of(side=96).images.shape[1] == 96


def test_an_unfinished_pack_is_made_again(pack_of: Callable[..., Pack], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, count: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack_of(told=stop)
    assert len(pack_of()) == 5


@pytest.mark.parametrize("damage", ["images.u8", "pack.json", "empty.npy"])
def test_a_damaged_pack_is_made_again(
    damage: str, pack_of: Callable[..., Pack], tmp_path: Path
) -> None:
    wanted = pack_of().images.copy()
    path = tmp_path / "pack" / damage
    path.write_bytes(path.read_bytes()[:20])
    assert (pack_of().images == wanted).all()


def test_what_cannot_be_read_is_left_out_and_named(
    pack_of: Callable[..., Pack], tmp_path: Path
) -> None:
    make_folders(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / "images" / "p01.png").write_bytes(b"no picture")
    pack = pack_of(side=96)
    assert len(pack) == 3
    assert (pack.images[1] == pictured(2)[0]).all()
    (named,) = pack.facts["unreadable"]
    assert "p01.png" in named


def test_nothing_readable_is_an_error(pack_of: Callable[..., Pack], tmp_path: Path) -> None:
    images, _ = make_folders(tmp_path / "pictures", 2)
    for path in images.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"p00\.png"):
        pack_of()


def test_the_teacher_is_asked_about_the_packed_pictures(pack_of: Callable[..., Pack]) -> None:
    model = resolve_model("live")
    pack = pack_of(3, side=64, teacher=model)
    assert pack.teacher is not None
    backend = open_backend(model, size=(64, 64))
    for index in range(3):
        answer = backend.infer(pack.images[index][None].copy())[0]
        small = pack.teacher[index].reshape(32, 2, 32, 2).mean((1, 3)) / 255
        assert np.abs(small - answer).mean() < 0.03  # enlarged bilinearly and averaged back
    backend.close()
    assert model.sha256 in pack.facts["teacher"]


def test_a_full_disk_is_told_before_any_work(
    pack_of: Callable[..., Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="the pictures take"):
        pack_of()


def test_the_area_without_a_subject_has_none_and_is_the_largest() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 70:90] = 255
    left, top, right, bottom = (round(100 * place) for place in empty_area(mask))
    assert not mask[top:bottom, left:right].any()
    assert (left, top, right, bottom) == (0, 0, 70, 100)


def test_no_area_worth_using_is_none() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[::25] = 255
    assert empty_area(mask) == (0, 0, 0, 0)
    assert empty_area(np.zeros((100, 100), np.uint8)) == (0, 0, 1, 1)
