"""The demo makes a clip, mattes it, and says where everything is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Cli, decode

from vidmatte.cli.demo import DAWN, DUSK, NAMES, dusk, write_contact
from vidmatte.errors import InputError

pytest.importorskip("skimage")


def test_demo_writes_everything_and_says_where(run_cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    arguments = ("demo", "--output", folder, "--height", 90, "--frames", 4)
    done = run_cli(*arguments, "--backend", "null:disc")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    for name in ("source.mp4", "result.mp4", "contact.png"):
        assert str(folder / name) in done.stdout
    assert len(decode(folder / "result.mp4")) == 4
    contact = cv2.imread(str(folder / "contact.png"))
    assert contact is not None
    source, matte, result = np.split(contact, 3, axis=1)
    assert matte.min() == 0 < matte.max() == 255
    assert np.abs(source[matte == 255].astype(int) - result[matte == 255]).mean() < 8
    assert np.abs(source[matte == 0].astype(int) - result[matte == 0]).mean() > 8
    again = run_cli(*arguments, "--backend", "null", "--quiet")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.fault
def test_demo_in_a_file_is_one_line(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("demo", "--output", tmp_path / "file" / "demo")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


def test_background_goes_from_dusk_to_dawn() -> None:
    sky = dusk(160, 90)
    assert sky.shape == (90, 160, 3)
    np.testing.assert_array_equal(sky[0, 0], DUSK)
    np.testing.assert_allclose(sky[-1, 115], DAWN, atol=4)


def test_contact_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_contact([tmp_path / "none.mp4"], tmp_path / "c.png", 0)
