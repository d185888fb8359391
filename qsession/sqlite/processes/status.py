"""Status: how a process tells `qsession who` and `qsession top` about its engines.

A thread of each process with a connected engine listens on a Unix socket. For a file named by
:mod:`qsession.commands.engines`, it answers with the ``stats()`` of its engines. So nothing is
written to disk, and there is no cost until a command asks. Only the same user and root get an
answer. QSESSION_STATUS=off in the environment turns it off. Windows has no such sockets.
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
"""Seconds that either side waits for the other."""
LINE = 20
"""How many of those who wait are told of."""
NAME = "qsession."
ABSTRACT = sys.platform == "linux"
"""Whether sockets have an abstract namespace, without files to clean up."""
_serving: int | None = None
"""The process whose thread serves. After a fork it is the parent."""

logger = logging.getLogger("qsession")


class Engine(Protocol):
    """The part of a pool that is used here."""

    write_queue: Any
    admission: Any

    def stats(self) -> Stats: ...

    def checkedout(self) -> int: ...


def serve() -> None:
    """Start to answer, once in each process. Never raises, because this is optional."""
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
            Path(address).unlink(missing_ok=True)  # left by an earlier process with this id
        listening.bind(address)
        listening.listen(8)
        threading.Thread(
            target=_answer_all, args=(listening,), name="qsession status", daemon=True
        ).start()
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
        logger.debug("`qsession who` will not see this process: %s", error)


def address_of(pid: int, make: bool = False) -> str:
    """The socket address of a process. On systems other than Linux it is a file for this user."""
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
    """In the thread. Only this frame refers to the socket, so it is not closed at exit."""
    while True:
        try:
            asking, _ = listening.accept()
        except OSError as error:  # for example, no more file descriptors
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
    """Whether this user or root asks. Without an abstract namespace the folder ensures this."""
    return not ABSTRACT or peer_of(asking)[1] in (0, os.geteuid())


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, from the kernel: see unix(7), SO_PEERCRED.

    The process is 0 if it is in another namespace, where ids differ.
    """
    size = struct.calcsize("iII")
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, user, _ = struct.unpack("iII", credentials)
    return pid, user


def _engines(identity: tuple[int, int]) -> list[dict[str, Any]]:
    """The ``stats()`` of each engine on a file, in a form for JSON."""
    engines = cast("list[Engine]", list(fork.pools))
    return [told_by(each) for each in engines if (each.write_queue.identity or ()) == identity]


def told_by(engine: Engine) -> dict[str, Any]:
    """What one engine has to tell, in a form for JSON."""
    told = asdict(engine.stats())
    turn = engine.write_queue.turn
    told["turn"] = "waits" if turn.waits else "holds" if turn.held else "idle"
    told["readers"] = engine.checkedout()
    told["draining"] = engine.admission.is_shut
    told["line"] = [asdict(each) for each in engine.write_queue.first_in_line(LINE)]
    return told
