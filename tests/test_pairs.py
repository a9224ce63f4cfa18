"""Which pictures and masks belong together, and what is no picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from training_pictures import make_folders

from vidmatte.errors import InputError
from vidmatte.pairs import find_pairs, pictures_in, read_grey, read_rgb


def test_pictures_pair_by_stem_whatever_the_ending(tmp_path: Path) -> None:
    images, masks = tmp_path / "i", tmp_path / "m"
    named = {images: ("b.JPG", "a.png", "x.webp"), masks: ("a.bmp", "b.png", "y.png")}
    for folder, names in named.items():
        folder.mkdir()
        for name in (*names, "notes.txt", ".a.png"):
            (folder / name).touch()
    pairs = find_pairs(images, masks)
    assert pairs.found == [(images / "a.png", masks / "a.bmp"), (images / "b.JPG", masks / "b.png")]
    assert pairs.alone == [images / "x.webp", masks / "y.png"]


def test_two_pictures_of_one_stem_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="two pictures of one name"):
        pictures_in(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file.png", "https://example.org/pictures"])
def test_what_is_no_folder_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    with pytest.raises(InputError, match=name.split("/")[0]):
        pictures_in(tmp_path / name)


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    images, masks = make_folders(tmp_path, 1)
    (masks / "p00.png").rename(masks / "other.png")
    with pytest.raises(InputError, match="no picture has a mask"):
        find_pairs(images, masks)


def test_a_picture_is_read_as_rgb_and_a_mask_as_grey(tmp_path: Path) -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    assert (read_rgb(tmp_path / "a.png") == rgb).all()
    grey = read_grey(tmp_path / "a.png")
    assert grey.shape == (4, 6)
    assert abs(int(grey[0, 0]) - round(0.299 * 200)) <= 1


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_cannot_be_read_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as a picture"):
        read_rgb(tmp_path / "a.png")


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path) -> None:
    whole = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    absurd = bytearray(whole)
    absurd[16:24] = (0x7FFFFFFF).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(absurd)
    with pytest.raises(InputError, match=r"a\.png"):
        read_rgb(tmp_path / "a.png")


def test_no_device_or_pipe_is_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="is no picture file"):
        read_grey(tmp_path / "a.png")


def test_a_picture_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.png: permission denied"):
        read_rgb(tmp_path / "a.png")
