"""Status: what a process tells `qsession who` and `qsession top` about its engines.

A thread of each process that has opened a writer waits at a Unix socket, and answers with the
``stats()`` of the engines on the file it is asked about. So nothing is written anywhere, and nobody
pays for it until somebody asks. Only the same user and root get an answer. QSESSION_STATUS=off in
the environment turns it off; Windows has no such sockets.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fork

if TYPE_CHECKING:
    from .pool import WriteQueuePool

TIMEOUT = 1.0
"""Seconds for either side to say what it has to say."""
_NAME = "qsession."
_SOCKETS = Path("/proc/net/unix")
_ABSTRACT = sys.platform == "linux"
_serving: int | None = None
"""The process whose thread serves: after a fork it is the parent's."""

logger = logging.getLogger("qsession")


def serve() -> None:
    """Start to answer, once in each process. Never raises: this is a convenience."""
    global _serving  # noqa: PLW0603
    if _serving == os.getpid() or not hasattr(socket, "AF_UNIX"):
        return
    _serving = os.getpid()
    if os.environ.get("QSESSION_STATUS", "").lower() == "off":
        return
    try:
        listening = socket.socket(socket.AF_UNIX)
        address = _address(_serving, make=True)
        if not _ABSTRACT:
            Path(address).unlink(missing_ok=True)  # of a process that had this number before
        listening.bind(address)
        listening.listen(8)
        threading.Thread(
            target=_answer_all, args=(listening,), name="qsession status", daemon=True
        ).start()
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
        logger.debug("qsession who will not see this process: %s", error)


def _address(pid: int, make: bool = False) -> str:
    """In Linux' abstract namespace, which cleans up after itself; else a file for this user."""
    if _ABSTRACT:
        return f"\0{_NAME}{pid}"
    folder = Path(tempfile.gettempdir()) / f"qsession-{os.getuid()}"
    if make:
        folder.mkdir(mode=0o700, exist_ok=True)
    return str(folder / f"{_NAME}{pid}")


def _answer_all(listening: socket.socket) -> None:
    """In the thread. Only this frame knows the socket, so it is never closed at exit."""
    while True:
        try:
            asking, _ = listening.accept()
        except OSError as error:  # out of file descriptors, say
            logger.debug("qsession who will not see this process any more: %s", error)
            return
        with asking:
            try:
                _answer(asking)
            except Exception as error:
                logger.debug("an answer to qsession who failed: %s", error)


def _answer(asking: socket.socket) -> None:
    asking.settimeout(TIMEOUT)
    device, inode = map(int, asking.recv(100).split())
    if _may_ask(asking):
        asking.sendall(json.dumps(_engines((device, inode))).encode())


def _may_ask(asking: socket.socket) -> bool:
    """Whether this user or root is at the other end; elsewhere the folder sees to that."""
    if not _ABSTRACT:
        return True
    credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())


def _engines(identity: tuple[int, int]) -> list[dict[str, Any]]:
    """Of each engine on a file, what its ``stats()`` say, in a form for JSON."""
    return [
        _of(pool)
        for pool in list(fork.pools)
        if (pool.checkpointer.identity() or ())[:2] == identity
    ]


def _of(pool: WriteQueuePool) -> dict[str, Any]:
    told = asdict(pool.stats())
    turn = pool.writer.turn
    told["turn"] = "waits" if turn.waits else "holds" if turn.held else "idle"
    told["readers"] = pool.checkedout()
    told["draining"] = pool.admission.is_shut
    return told


# Whoever asks.


def engines_on(path: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The processes with engines on a file, and what those say. Raises ``OSError`` without it."""
    found = os.stat(path)
    for pid in sorted(_processes()):
        with suppress(OSError, ValueError):
            if engines := _ask(pid, found.st_dev, found.st_ino):
                yield pid, engines


def _processes() -> set[int]:
    """Who serves. Without a list of the system, whoever has left a socket."""
    if _ABSTRACT:
        lines = _SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.rpartition(" @")[2] for line in lines if f" @{_NAME}" in line]
    else:
        names = [each.name for each in Path(_address(0)).parent.glob(f"{_NAME}*")]
    return {int(each.removeprefix(_NAME)) for each in names}


def _ask(pid: int, device: int, inode: int) -> list[dict[str, Any]]:
    answer = b""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(TIMEOUT)
        asking.connect(_address(pid))
        asking.sendall(f"{device} {inode}".encode())
        while more := asking.recv(65536):
            answer += more
    told: list[dict[str, Any]] = json.loads(answer or b"[]")
    return told
