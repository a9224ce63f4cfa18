"""`vidmatte cameras`: the table, the document, the advice, and nothing of strangers raw."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Cli
from test_imports import HEAVY, modules_after

from vidmatte.cli.cameras import cameras
from vidmatte.sinks import virtualcam
from vidmatte.sinks.virtualcam import VirtualCameraDescription
from vidmatte.sources import _devices, camera
from vidmatte.sources.camera import CameraDescription
from vidmatte.v4l2 import CameraFormat

FORMATS = (
    CameraFormat(1280, 720, (Fraction(30), Fraction(15)), "mjpg"),
    CameraFormat(640, 480, (Fraction(30000, 1001),), "yuyv"),
    CameraFormat(1280, 720, (Fraction(10),), "yuyv"),
    CameraFormat(320, 240, (), "yuyv"),
)
FOUND = [
    CameraDescription(0, "/dev/video0", "Integrated Camera", FORMATS),
    CameraDescription(2, "/dev/video2", "video2", problem="permission denied"),
]
VIRTUAL = [VirtualCameraDescription("/dev/video10", "vidmatte")]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, FOUND, VIRTUAL)


def there(
    monkeypatch: pytest.MonkeyPatch,
    cams: list[CameraDescription],
    virtual: list[VirtualCameraDescription],
) -> None:
    monkeypatch.setattr(camera, "list_cameras", lambda: cams)
    monkeypatch.setattr(virtualcam, "list_virtual_cameras", lambda: virtual)


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(cameras, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.usefixtures("found")
def test_the_table() -> None:
    lines = output_of().splitlines()
    assert lines[:7] == [
        "cameras",
        "  0  /dev/video0  Integrated Camera",
        "       320x240  yuyv",
        "       640x480  yuyv 29.97 fps",
        "       1280x720  mjpg 30, 15 fps; yuyv 10 fps",
        "  2  /dev/video2  video2  (permission denied)",
        "virtual cameras",
    ]
    assert lines[7] == "     /dev/video10  vidmatte"
    assert lines[8].startswith("/dev/video2: ")
    assert len(lines) == 9


@pytest.mark.usefixtures("found")
def test_the_document() -> None:
    document = json.loads(output_of("--json"))
    assert [c["device"] for c in document["cameras"]] == ["/dev/video0", "/dev/video2"]
    assert document["cameras"][0]["formats"][1] == {
        "width": 640, "height": 480, "pixel_format": "yuyv", "rates": [29.97],
    }  # fmt: skip
    assert document["cameras"][1]["problem"] == "permission denied"
    assert document["virtual_cameras"] == [
        {"device": "/dev/video10", "name": "vidmatte", "problem": None}
    ]


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("linux", ["plug one in", "sudo modprobe v4l2loopback devices=1 exclusive_caps=1"]),
        ("darwin", ["System Settings", "install OBS 30"]),
        ("win32", ["Settings, Privacy, Camera", "install OBS Studio"]),
    ],
)
def test_without_any_the_steps_are_told(
    monkeypatch: pytest.MonkeyPatch, system: str, words: list[str]
) -> None:
    there(monkeypatch, [], [])
    monkeypatch.setattr(_devices, "CONTAINER_MARKS", ())
    monkeypatch.setattr(_devices.v4l2, "hidden_devices", lambda: 0)
    monkeypatch.setattr(sys, "platform", system)
    shown = output_of()
    for word in words:
        assert word in shown
    assert "--camera synthetic" in shown


def test_pyvirtualcam_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, FOUND[:1], VIRTUAL)
    assert "pip install" not in output_of()
    monkeypatch.setattr("vidmatte.cli.cameras.find_spec", lambda name: None)
    assert 'pyvirtualcam is not installed: pip install "vidmatte[webcam]"' in output_of()


@pytest.mark.fault
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_names_of_devices_are_escaped(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    evil = "\x1b]0;title\x07\u202ecam"
    there(
        monkeypatch,
        [CameraDescription(0, "/dev/video0", evil, (CameraFormat(1, 1, (), "\x1b[2J"),))],
        [VirtualCameraDescription("/dev/video1", evil)],
    )
    shown = output_of(*arguments)
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "title" in shown


def test_the_real_command(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("cameras", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    assert set(document) == {"cameras", "virtual_cameras", "advice"}
    assert bool(document["advice"]) or (document["cameras"] and document["virtual_cameras"])


def test_help_is_light(run_cli: Cli) -> None:
    code = (
        "import sys\nfrom vidmatte.cli import program\n"
        "try: program(sys.argv[1:], standalone_mode=True)\nexcept SystemExit: pass"
    )
    assert not modules_after(code, run_cli, "cameras", "--help") & {*HEAVY, "numpy"}
    if sys.platform == "linux":
        assert not modules_after(code, run_cli, "cameras") & {*HEAVY, "pyvirtualcam"}
