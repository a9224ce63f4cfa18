"""Servers that lead astray, drip, flood or lie: a download is bounded, and installs nothing."""

from __future__ import annotations

import http.client
import io
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from weights_server import BODY, Server, serve

from vidmatte.cli.models import models as models_command
from vidmatte.errors import ModelError
from vidmatte.models import download as download_module
from vidmatte.models.download import download
from vidmatte.models.network import U2Net
from vidmatte.models.table import Download, models

pytestmark = pytest.mark.fault


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def silent(done: int, total: int | None) -> None:
    """Report to nobody."""


def u2netp_bytes(seed: int) -> bytes:
    torch.manual_seed(seed)
    data = io.BytesIO()
    torch.save(U2Net(models()["u2netp"].network).state_dict(), data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "answered 302"),
        ("ftp://127.0.0.1:9/w", "leads to ftp://127.0.0.1"),
        ("data:,weights", "answered 302"),
        ("http://localhost:9/w", "leads to http://localhost"),
        ("http://127.0.0.1.example.invalid/w", "which is not its own"),
        ("https://example.invalid/w", "which is not its own"),
        ("/again", "answered 302"),  # for ever
    ],
)
def test_a_redirect_that_leads_away_is_refused(
    server: Server, folder: Path, location: str, message: str
) -> None:
    server.behaviour.location = location
    with pytest.raises(ModelError, match=message):
        download(server.source(), folder / "w.pth", silent)
    assert not (folder / "w.pth").exists()
    assert len(server.behaviour.asked) <= 6


def test_a_redirect_within_the_host_is_followed(server: Server, folder: Path) -> None:
    server.behaviour.location = "/moved"
    download(server.source(), folder / "w.pth", silent)
    assert (folder / "w.pth").read_bytes() == BODY


@pytest.mark.parametrize(
    ("target", "follows"),
    [
        ("https://cdn.example.invalid/w", True),
        ("https://example.invalid/w", True),
        ("http://example.invalid/w", False),
        ("https://notexample.invalid/w", False),
        ("https://cdn.example.invalid.evil.invalid/w", False),
        ("https://cdn.example.invalid@evil.invalid/w", False),
    ],
)
def test_only_named_hosts_are_followed_and_never_to_plain_http(target: str, follows: bool) -> None:
    source = Download("https://files.invalid/w", "0" * 64, "this test", ("example.invalid",))
    request = urllib.request.Request(source.url)
    arguments = (request, io.BytesIO(), 302, "Found", http.client.HTTPMessage(), target)
    redirects = download_module._Redirects(source)
    if follows:
        following = redirects.redirect_request(*arguments)
        assert following is not None
        assert following.full_url == target
    else:
        with pytest.raises(ModelError, match="which is not its own"):
            redirects.redirect_request(*arguments)


@pytest.mark.parametrize("length", [True, False])
def test_a_body_without_end_is_given_up(
    server: Server, folder: Path, length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "MAX_BYTES", 300_000)
    server.behaviour.length = length
    with pytest.raises(ModelError, match="sends more than 300000 bytes"):
        download(server.source(), folder / "w.pth", silent)
    assert list(folder.iterdir()) == []


def test_a_server_that_drips_is_given_up(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "SLOW_S", 0.1)
    server.behaviour.pause_s = 0.01
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"only \d+ bytes came in 0.1 s"):
        download(server.source(), folder / "w.pth", silent)
    assert time.monotonic() - began < 20
    assert len(server.behaviour.asked) == download_module.ATTEMPTS


@pytest.mark.parametrize("declared", ["nonsense", "-5", "10", "99999999"])
def test_a_length_that_lies_installs_nothing(server: Server, folder: Path, declared: str) -> None:
    server.behaviour.declared = declared
    server.behaviour.ranges = False
    source = server.source()
    if declared in ("nonsense", "-5"):  # then the end of the connection is the end of the file
        download(source, folder / "w.pth", silent)
        assert (folder / "w.pth").read_bytes() == BODY
        return
    with pytest.raises(ModelError, match=r"not the expected one|was cut after"):
        download(source, folder / "w.pth", silent)
    assert not (folder / "w.pth").exists()


def test_what_is_installed_is_what_was_hashed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone swaps the file between the check of the download and the import."""
    server.behaviour.body = u2netp_bytes(0)
    source = server.source(body=server.behaviour.body)
    monkeypatch.setitem(models(), "u2netp", replace(models()["u2netp"], download=source))
    other = u2netp_bytes(1)
    fetch = download_module.download

    def fetch_and_swap(source: Download, path: Path, report: Any) -> None:
        fetch(source, path, report)
        path.write_bytes(other)

    monkeypatch.setattr(download_module, "download", fetch_and_swap)
    result = CliRunner().invoke(models_command, ["download", "u2netp"])
    assert isinstance(result.exception, ModelError)
    assert "not the file that was checked" in str(result.exception)
    assert not (folder / "u2netp.safetensors").exists()
