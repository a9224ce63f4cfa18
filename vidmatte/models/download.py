"""Fetch a pinned weights file: resumable, checked, never half under its own name."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from vidmatte.errors import ModelError
from vidmatte.models.registry import private_folder
from vidmatte.models.table import Download
from vidmatte.models.weights import MAX_BYTES

TIMEOUT_S = 30
ATTEMPTS = 3
SLOW_S = 60.0  # a server that sends less than SLOW_BYTES in this time is given up
SLOW_BYTES = 1 << 16
_BLOCK = 1 << 18
Report = Callable[[int, int | None], None]


class _CutError(Exception):
    """The connection ended before the file did, or brings next to nothing."""


class _HugeError(ModelError):
    """The body is larger than any weights; what came of it is removed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows only to hosts that the row names, and never from https to anything less."""

    max_redirections = 5

    def __init__(self, source: Download) -> None:
        self._hosts = (urllib.parse.urlsplit(source.url).hostname or "", *source.hosts)

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to follow with; raise ModelError for a place it may not lead to."""
        target = urllib.parse.urlsplit(newurl)
        host = target.hostname or ""
        known = any(host == name or host.endswith(f".{name}") for name in self._hosts)
        if not known or target.scheme != urllib.parse.urlsplit(req.full_url).scheme:
            fp.close()
            raise ModelError(
                f"{_host(req.full_url)} leads to {target.scheme}://{host}, which is not its own",
                hint="get the file elsewhere and run: vidmatte models import FILE",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(source: Download, path: Path, report: Report) -> None:
    """Fetch `source` to `path`, which exists afterwards only if its SHA-256 is the pinned one.

    Bytes go to `path` + ".part", which a later call continues where the server allows it. `report`
    hears (bytes so far, bytes in all or None). Raises ModelError.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        private_folder(path.parent)
        _fetch_all(source, part, report)
        _check(source, part)
        os.replace(part, path)
    except _HugeError:
        part.unlink(missing_ok=True)
        raise
    except OSError as exc:
        raise ModelError(
            f"cannot write {part}: {exc.strerror}", hint="free some space and run it again"
        ) from exc


def _fetch_all(source: Download, part: Path, report: Report) -> None:
    """Fetch until the file is whole; a cut connection is taken up again ATTEMPTS times in all."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(source, part, report)
        except _CutError as exc:
            if attempt < ATTEMPTS:
                continue
            done = part.stat().st_size if part.exists() else 0
            raise ModelError(
                f"the connection to {_host(source.url)} was cut after {done} bytes: {exc}",
                hint="run the same command again: it continues there",
            ) from exc
        return


def _host(url: str) -> str:
    return urllib.request.Request(url).host or url


def _fetch(source: Download, part: Path, report: Report) -> None:
    url = source.url
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vidmatte"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        opener = urllib.request.build_opener(_Redirects(source))
        with opener.open(request, timeout=TIMEOUT_S) as response:
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
    total = None if response.length is None else have + response.length
    _refuse_huge(total or 0)
    report(have, total)
    began_at, began_with = time.monotonic(), have
    while block := response.read1(_BLOCK):  # what is there, however little: read() would wait
        file.write(block)
        have += len(block)
        _refuse_huge(have)
        report(have, total)
        if time.monotonic() - began_at > SLOW_S:
            if have - began_with < SLOW_BYTES:
                raise _CutError(f"only {have - began_with} bytes came in {SLOW_S:g} s")
            began_at, began_with = time.monotonic(), have
    if total is not None and have < total:
        raise _CutError(f"{total - have} bytes are missing")


def _refuse_huge(size: int) -> None:
    if size > MAX_BYTES:
        raise _HugeError(
            f"the server sends more than {MAX_BYTES} bytes, which no weights here take",
            hint="nothing was installed; get the file elsewhere and import it",
        )


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
