"""Database: one of those that are shown, and what the engines on it say."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession.commands.engines import engines_on
from qsession.engine import is_queued, stats
from qsession.ext.dashboard.figures import Sample, figures
from qsession.ext.dashboard.slow import SlowPlaces
from qsession.sqlite.processes.owners import command_line, lock_holders
from qsession.sqlite.processes.status import told_by
from qsession.urls import place_of

AnyEngine: TypeAlias = "AsyncEngine | Engine"
Given: TypeAlias = "AnyEngine | Callable[[], AnyEngine] | str | Path"

WINDOW = 10.0
"""Seconds over which the times of waits are taken."""
SLOW_SHOWN = 50


class Database:
    """An engine, a function that returns one, or the path of a file.

    Raises `sqlalchemy.exc.InvalidRequestError` for an engine that is not qsession's.
    """

    def __init__(self, given: Given) -> None:
        if isinstance(given, (AsyncEngine, Engine)):
            stats(given)
        self._given = given
        self._samples: deque[Sample] = deque()

    def look(self, slow: SlowPlaces) -> dict[str, Any]:
        """The present figures. It may take a second for each process that does not answer."""
        given = self._given
        if isinstance(given, (str, Path)):
            return self._figures("sqlite", str(given), _told_on(str(given)), slow)
        engine = given if isinstance(given, (AsyncEngine, Engine)) else given()
        if not is_queued(engine):
            told = {(os.getpid(), 0): _told_by_server(engine)}
            return self._figures(engine.dialect.name, place_of(engine.url), told, slow)
        pool: Any = engine.pool
        path = pool.write_queue.path
        found = _told_on(path) if path else {}
        own = told_by(pool)
        if own["size"] + own["acquired"] and os.getpid() not in {pid for pid, _ in found}:
            found[os.getpid(), 0] = own  # QSESSION_STATUS is off, or the file has no name
        return self._figures("sqlite", pool.write_queue.place, found, slow)

    def forget(self) -> None:
        """Nobody has looked for a while: the next rates begin anew."""
        self._samples.clear()

    def _figures(
        self, kind: str, place: str, told: dict[Any, dict[str, Any]], slow: SlowPlaces
    ) -> dict[str, Any]:
        now = time.monotonic()
        locks = tuple(lock_holders(place)) if kind == "sqlite" else ()
        self._samples.append(Sample(now, told, locks))
        while len(self._samples) > 2 and now - self._samples[1].at >= WINDOW:
            self._samples.popleft()
        return {
            "name": os.path.basename(place) if kind == "sqlite" else place,
            "place": place,
            "kind": kind,
            **figures(list(self._samples), program),
            "slow": slow.grouped(place, SLOW_SHOWN),
        }


def program(pid: int) -> str:
    """The program of a process and what it runs. The rest of its arguments may hold secrets."""
    words = command_line(pid).split()
    if not words:
        return ""
    shown = [os.path.basename(words[0])]
    if words[1:2] == ["-m"]:
        shown += words[1:3]
    elif words[1:] and not words[1].startswith("-"):
        shown.append(os.path.basename(words[1]))
    return " ".join(shown)


def _told_on(path: str) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (pid, number): {**_MISSING, **engine}
        for pid, engines in engines_on(path)
        for number, engine in enumerate(engines)
    }


_MISSING = {
    "line": [], "timeouts": 0, "taken_away": 0, "validations": 0, "size": 0, "in_use": 0,
}  # fmt: skip
"""What an engine of another version may not tell."""


def _told_by_server(engine: AnyEngine) -> dict[str, Any]:
    told = stats(engine)
    turn = {"turn": "idle", "readers": told.in_use, "draining": False, "line": []}
    return {**asdict(told), **turn}
