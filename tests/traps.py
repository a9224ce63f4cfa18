"""Traps for programs that open what they should not: a listener, and files that notice readers."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

IN_ACCESS, IN_OPEN = 0x1, 0x20
EVENT = struct.Struct("iIII")


class Listener:
    """Accepts connections on a free port of this machine, TCP and UDP, and counts them."""

    def __init__(self) -> None:
        self.contacts = 0
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._udp.setblocking(False)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._tcp.close()
        self._udp.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            self.contacts += 1
            connection.close()

    def seen(self) -> int:
        """How often it was contacted; what knocked before this call is counted."""
        self._knock()
        try:
            while True:
                self._udp.recv(1 << 16)
                self.contacts += 1
        except BlockingIOError:
            return self.contacts

    def _knock(self) -> None:
        """Connections are accepted in order: once ours is counted, so is all before it."""
        before = self.contacts
        with socket.create_connection(("127.0.0.1", self.port)) as own:
            own.settimeout(5)
            own.recv(1)
        self.contacts -= 1
        assert self.contacts >= before


class Bait:
    """Files that nobody may open: inotify reports everybody who does."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        for path in paths:
            watch = libc.inotify_add_watch(self._descriptor, os.fsencode(path), IN_ACCESS | IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())

    def bites(self) -> int:
        """How many openings and readings there were since the last call."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return 0
        count = at = 0
        while at < len(data):
            at += EVENT.size + EVENT.unpack_from(data, at)[3]
            count += 1
        return count

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)
