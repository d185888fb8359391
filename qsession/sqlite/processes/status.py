"""Status: what a process tells `qsession who` and `qsession top` about its engines.

A thread of each process that has opened a writer waits at a Unix socket, and answers with the
``stats()`` of the engines on the file it is asked about, by :mod:`qsession.commands.engines`. So
nothing is written anywhere, and nobody pays for it until somebody asks. Only the same user and root
get an answer. QSESSION_STATUS=off in the environment turns it off; Windows has no such sockets.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

from qsession.sqlite.processes import fork
from qsession.statistics import Stats

TIMEOUT = 1.0
"""Seconds for either side to say what it has to say."""
NAME = "qsession."
ABSTRACT = sys.platform == "linux"
"""Whether sockets have a namespace of their own, which cleans up after itself."""
_serving: int | None = None
"""The process whose thread serves: after a fork it is the parent's."""

logger = logging.getLogger("qsession")


class Engine(Protocol):
    """What is asked of a pool."""

    write_queue: Any
    admission: Any

    def stats(self) -> Stats: ...

    def checkedout(self) -> int: ...


def serve() -> None:
    """Start to answer, once in each process. Never raises: this is a convenience."""
    global _serving  # noqa: PLW0603
    if _serving == os.getpid() or not hasattr(socket, "AF_UNIX"):
        return
    _serving = os.getpid()
    if os.environ.get("QSESSION_STATUS", "").lower() == "off":
        return
    try:
        address = address_of(_serving, make=True)
        listening = socket.socket(socket.AF_UNIX)
        if not ABSTRACT:
            Path(address).unlink(missing_ok=True)  # of a process that had this number before
        listening.bind(address)
        listening.listen(8)
        threading.Thread(
            target=_answer_all, args=(listening,), name="qsession status", daemon=True
        ).start()
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
        logger.debug("`qsession who` will not see this process: %s", error)


def address_of(pid: int, make: bool = False) -> str:
    """Where the process with this number is asked; else than on Linux a file for this user."""
    if ABSTRACT:
        return f"\0{NAME}{pid}"
    folder = Path(tempfile.gettempdir()) / f"qsession-{os.getuid()}"
    if make:
        folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{str(folder)!r} is not a folder that only this user can access")
    return str(folder / f"{NAME}{pid}")


def _answer_all(listening: socket.socket) -> None:
    """In the thread. Only this frame knows the socket, so it is never closed at exit."""
    while True:
        try:
            asking, _ = listening.accept()
        except OSError as error:  # out of file descriptors, say
            logger.debug("`qsession who` will no longer see this process: %s", error)
            return
        with asking:
            try:
                _answer(asking)
            except Exception as error:
                logger.debug("An answer to `qsession who` failed: %s", error)


def _answer(asking: socket.socket) -> None:
    asking.settimeout(TIMEOUT)
    device, inode = map(int, asking.recv(100).split())
    if _may_ask(asking):
        asking.sendall(json.dumps(_engines((device, inode))).encode())


def _may_ask(asking: socket.socket) -> bool:
    """Whether this user or root is at the other end; elsewhere the folder sees to that."""
    return not ABSTRACT or peer_of(asking)[1] in (0, os.geteuid())


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, by the kernel: see unix(7), SO_PEERCRED.

    The process is 0 where its number means nothing here: it is in another namespace.
    """
    size = struct.calcsize("iII")
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, user, _ = struct.unpack("iII", credentials)
    return pid, user


def _engines(identity: tuple[int, int]) -> list[dict[str, Any]]:
    """Of each engine on a file, what its ``stats()`` say, in a form for JSON."""
    engines = cast("list[Engine]", list(fork.pools))
    return [_of(each) for each in engines if (each.write_queue.identity or ()) == identity]


def _of(engine: Engine) -> dict[str, Any]:
    told = asdict(engine.stats())
    turn = engine.write_queue.turn
    told["turn"] = "waits" if turn.waits else "holds" if turn.held else "idle"
    told["readers"] = engine.checkedout()
    told["draining"] = engine.admission.is_shut
    return told
