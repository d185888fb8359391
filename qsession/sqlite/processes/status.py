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

from qsession.sqlite.processes import fork

if TYPE_CHECKING:
    from qsession.sqlite.pool import WriteQueuePool

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
        address = _address(_serving, make=True)
        listening = socket.socket(socket.AF_UNIX)
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
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{str(folder)!r} is not a folder for this user alone")
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
    return not _ABSTRACT or _peer(asking)[1] in (0, os.geteuid())


def _peer(connected: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, by the kernel: see unix(7), SO_PEERCRED.

    The process is 0 where its number means nothing here: it is in another namespace.
    """
    size = struct.calcsize("iII")
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, user, _ = struct.unpack("iII", credentials)
    return pid, user


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
    """The processes with engines on a file, and what those say. Raises ``OSError`` without it.

    Any user can make a socket by a name of ours on Linux, and answer there. So the kernel is asked
    who did. Only this user, root and the owner of the file are believed.
    """
    found = os.stat(path)
    for name in sorted(_names()):
        with suppress(OSError, ValueError):
            pid, engines = _ask(name, found)
            if pid and engines:
                yield pid, engines


def _names() -> set[int]:
    """Who serves, by their own numbers. Without a list of the system, whoever has left a socket."""
    if _ABSTRACT:
        lines = _SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.rpartition(" @")[2] for line in lines if f" @{_NAME}" in line]
    else:
        try:
            names = [each.name for each in Path(_address(0)).parent.glob(f"{_NAME}*")]
        except OSError:  # nobody has served yet
            names = []
    numbers = [each.removeprefix(_NAME) for each in names]
    return {int(each) for each in numbers if each.isascii() and each.isdecimal()}


def _ask(name: int, found: os.stat_result) -> tuple[int, list[dict[str, Any]]]:
    """The process behind a socket, and what its engines say; 0 if it is not to be believed."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(TIMEOUT)
        asking.connect(_address(name))
        pid, user = _peer(asking) if _ABSTRACT else (name, os.geteuid())
        if user not in (0, os.geteuid(), found.st_uid):
            return 0, []
        asking.sendall(f"{found.st_dev} {found.st_ino}".encode())
        while more := asking.recv(65536):
            answer += more
    told = json.loads(answer or b"[]")
    return pid, [each for each in told if _fits(each, _TOLD)] if isinstance(told, list) else []


_TOLD: dict[str, Any] = {
    **dict.fromkeys(("waiting", "readers", "commits", "groups", "conflicts"), int),
    "turn": str,
    "draining": bool,
    "holder": (
        None,
        {"task": str, "statement": str, "where": str, "held": (int, float), "wrote": bool},
    ),
    "waits": {"bounds": list, "counts": list, "total": (int, float), "maximum": (int, float)},
}
"""What `who` and `top` need of each engine."""


def _fits(told: Any, form: Any) -> bool:
    """Whether an answer has a form; that of a process with another version may not."""
    if isinstance(form, dict):
        return isinstance(told, dict) and all(
            key in told and _fits(told[key], form[key]) for key in form
        )
    if isinstance(form, tuple):
        return any(_fits(told, each) for each in form)
    return told is None if form is None else isinstance(told, form)
