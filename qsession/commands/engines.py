"""Asks the processes on a file about their engines, and says in words what each one does.

For ``qsession who``, ``qsession top`` and the dashboard; so it needs nothing but this package.
:mod:`qsession.sqlite.processes.status` answers.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from qsession.sqlite.processes import status

_SOCKETS = Path("/proc/net/unix")


def engines_on(path: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The processes with engines on a file, and their answers. Raises ``OSError`` for no file.

    On Linux any user can create a socket with such a name. So the kernel is asked which user did,
    and only answers of this user, root and the owner of the file are used.
    """
    found = os.stat(path)
    for name in sorted(_names()):
        with suppress(OSError, ValueError):
            pid, engines = _ask(name, found)
            if pid and engines:
                yield pid, engines


def _names() -> set[int]:
    """The ids of processes that serve, from the system's list or from socket files."""
    if status.ABSTRACT:
        lines = _SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.rpartition(" @")[2] for line in lines if f" @{status.NAME}" in line]
    else:
        try:
            names = [
                each.name for each in Path(status.address_of(0)).parent.glob(f"{status.NAME}*")
            ]
        except OSError:  # no process has served yet
            names = []
    numbers = [each.removeprefix(status.NAME) for each in names]
    return {int(each) for each in numbers if each.isascii() and each.isdecimal()}


def _ask(name: int, found: os.stat_result) -> tuple[int, list[dict[str, Any]]]:
    """The process behind a socket and its answer; 0 if the answer is not trusted."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(status.TIMEOUT)
        asking.connect(status.address_of(name))
        pid, user = status.peer_of(asking) if status.ABSTRACT else (name, os.geteuid())
        if user not in (0, os.geteuid(), found.st_uid):
            return 0, []
        asking.sendall(f"{found.st_dev} {found.st_ino}".encode())
        while more := asking.recv(65536):
            answer += more
    told = json.loads(answer or b"[]")
    return pid, [each for each in told if _fits(each, _TOLD)] if isinstance(told, list) else []


_TOLD: dict[str, Any] = {
    **dict.fromkeys(("waiting", "readers", "commits", "syncs", "conflicts"), int),
    "turn": str,
    "draining": bool,
    "holder": (
        None,
        {"task": str, "statement": str, "where": str, "held": (int, float), "wrote": bool},
    ),
    "waits": {"bounds": list, "counts": list, "total": (int, float), "maximum": (int, float)},
}
"""The data that `who` and `top` need from each engine."""


def _fits(told: Any, form: Any) -> bool:
    """Whether an answer has the expected form. Another version's answer may not."""
    if isinstance(form, dict):
        return isinstance(told, dict) and all(
            key in told and _fits(told[key], form[key]) for key in form
        )
    if isinstance(form, tuple):
        return any(_fits(told, each) for each in form)
    return told is None if form is None else isinstance(told, form)


def in_words(engine: dict[str, Any], foreign: list[int]) -> str:
    """What an engine does now. ``foreign``: processes without qsession that hold the lock."""
    holder = engine["holder"]
    if holder is None:
        does = "idle"
    elif engine["turn"] == "waits":
        does = f"waits for another process: {holder['task']}, {holder['statement']!r}"
    elif foreign and engine["turn"] == "holds":
        others = ", ".join(map(str, foreign))
        does = (
            f"waits for SQLite's lock, held by pid {others}: {holder['task']}, "
            f"for {holder['held']:.1f} s, {holder['statement']!r}"
        )
    else:
        did = "writing" if holder["wrote"] else "holding the ticket, only read so far"
        does = (
            f"{did}: {holder['task']}, for {holder['held']:.1f} s, {holder['statement']!r}, "
            f"at {holder['where']}"
        )
    if engine["waiting"]:
        does += f"; {engine['waiting']:,} wait behind it"
    if engine["readers"]:
        does += f"; {engine['readers']:,} read"
    return does + ("; draining" if engine["draining"] else "")
