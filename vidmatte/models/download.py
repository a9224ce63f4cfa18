"""Fetch a pinned weights file: resumable, checked, never half under its own name."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vidmatte.errors import ModelError
from vidmatte.models.table import Download

TIMEOUT_S = 30
ATTEMPTS = 3
_BLOCK = 1 << 18
Report = Callable[[int, int | None], None]


class _CutError(Exception):
    """The connection ended before the file did."""


def download(source: Download, path: Path, report: Report) -> None:
    """Fetch `source` to `path`, which exists afterwards only if its SHA-256 is the pinned one.

    Bytes go to `path` + ".part", which a later call continues where the server allows it. `report`
    hears (bytes so far, bytes in all or None). Raises ModelError.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch_all(source.url, part, report)
        _check(source, part)
        os.replace(part, path)
    except OSError as exc:
        raise ModelError(
            f"cannot write {part}: {exc.strerror}", hint="free some space and run it again"
        ) from exc


def _fetch_all(url: str, part: Path, report: Report) -> None:
    """Fetch until the file is whole; a cut connection is taken up again ATTEMPTS times in all."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(url, part, report)
        except _CutError as exc:
            if attempt < ATTEMPTS:
                continue
            done = part.stat().st_size if part.exists() else 0
            raise ModelError(
                f"the connection to {_host(url)} was cut after {done} bytes: {exc}",
                hint="run the same command again: it continues there",
            ) from exc
        return


def _host(url: str) -> str:
    return urllib.request.Request(url).host or url


def _fetch(url: str, part: Path, report: Report) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vidmatte"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            resumed = response.status == 206
            _refuse_page(response, url)
            with part.open("ab" if resumed else "wb") as file:
                _copy(response, file, have if resumed else 0, report)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 416:  # Nothing follows what we have: the hash decides whether it is whole.
            return
        raise ModelError(
            f"{_host(url)} answered {exc.code} {exc.reason} for {url}",
            hint="get the file elsewhere and run: vidmatte models import FILE",
        ) from exc
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as exc:
        raise _CutError(str(exc) or type(exc).__name__) from exc
    except urllib.error.URLError as exc:
        raise ModelError(
            f"cannot reach {_host(url)}: {exc.reason}",
            hint="check the network, or get the file elsewhere and import it",
        ) from exc


def _refuse_page(response: http.client.HTTPResponse, url: str) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xml"):
        raise ModelError(
            f"{_host(url)} sent a web page instead of the file",
            hint=f"open {url} in a browser, then run: vidmatte models import FILE",
        )


def _copy(response: http.client.HTTPResponse, file: BinaryIO, have: int, report: Report) -> None:
    length = response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    report(have, total)
    while block := response.read(_BLOCK):
        file.write(block)
        have += len(block)
        report(have, total)
    if total is not None and have < total:
        raise _CutError(f"{total - have} bytes are missing")


def _check(source: Download, part: Path) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        part.unlink()
        raise ModelError(
            f"the file from {_host(source.url)} is not the expected one: SHA-256 {found}, "
            f"expected {source.sha256}",
            hint="nothing was installed; try again, or import a file that you trust",
        )
