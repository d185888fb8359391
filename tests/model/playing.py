"""Playing a drawn cast in a simulation, and judging it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import invariants
from checker import JOURNAL, Judge, Wrong
from recorder import Recorder
from script import FINAL, SCHEMA, Actor, Play, Stage
from simulation import Simulation, SteppingConnection, is_wal
from sqlalchemy import event

from qsession import UncommittedChangesWarning, create_async_engine
from qsession.sqlite.durability.syncer import Syncer
from qsession.sqlite.queue.prediction import Guess

GUESSES = {
    "ticket": Guess.TICKET_FIRST,
    "reads": Guess.READS,
    "validates": Guess.VALIDATES,
}


class Disk:
    """How many commits were in the WAL when each of its fsyncs began."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        self._path = path
        self._recorder = recorder
        self.synced: list[tuple[int, int]] = []
        self.fails: Callable[[], bool] = lambda: False

    def on_sync(self, file: int) -> None:
        if is_wal(file):
            if self.fails():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.synced.append((self._recorder.tick(), self._count()))

    def _count(self) -> int:
        with closing(sqlite3.connect(self._path)) as outside:
            (last,) = outside.execute("SELECT max(id) FROM journal").fetchone()
        return last or 0

    def recover(self, original: Any) -> Any:
        """A checkpoint that makes up for failed syncs has synced all that was there before."""

        def recover(syncer: Any, raw: Any) -> None:
            before, was = self._count(), syncer.failed
            original(syncer, raw)
            if was and not syncer.failed:
                self.synced.append((self._recorder.tick(), before))

        return recover

    def safe(self, tick: int) -> int:
        """How many commits were on the disk for certain."""
        return max((count for at, count in self.synced if at < tick), default=0)


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as outside:
        outside.execute("PRAGMA journal_mode=WAL")
        outside.executescript(SCHEMA)


@contextmanager
def faulty_writes(sim: Simulation, stage: Stage, path: Path) -> Iterator[None]:
    """Now and then the WAL cannot grow any more, for some steps.

    The limit of the process for the size of files makes write() fail with EFBIG, which SQLite takes
    for an I/O error; it is never lower than what the other files need.
    """
    if stage.fault != "write":
        yield
        return
    import resource  # not there on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def toggle(limited: bool) -> None:
        wal = f"{path}-wal"
        size = os.stat(wal).st_size if limited and os.path.exists(wal) else 0
        limit = max(size, 64 * 1024) + sim.chance.randrange(3) * 2000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if limited else soft, hard))

    sim.toggle_fault = toggle
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def foreign_keys(raw: Any, _: object) -> None:
    raw.execute("PRAGMA foreign_keys=ON")


def few_pages(raw: Any, _: object) -> None:
    raw.execute("PRAGMA max_page_count=14")


def play(stage: Stage, cast: list[list[Play]], seed: int) -> dict[str, Any]:
    """Play it and judge it: what happened, in numbers. Raises :class:`Wrong`."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", UncommittedChangesWarning)
        path = Path(directory, "app.db")
        make_database(path)
        sim, recorder = Simulation(random.Random(seed)), Recorder()
        disk = Disk(path, recorder)
        sim.on_sync = disk.on_sync
        if stage.fault == "sync":
            disk.fails = lambda: sim.chance.random() < 0.2
        mended = mock.patch.object(Syncer, "recover", disk.recover(Syncer.recover))
        with recorder.installed(), mended, faulty_writes(sim, stage, path):
            told = sim.run(lambda: _play(sim, recorder, path, stage, cast))
        with closing(sqlite3.connect(path)) as outside:
            final = {sql: outside.execute(sql).fetchall() for sql in FINAL}
            journal = outside.execute(JOURNAL).fetchall()
        try:
            judge = Judge(SCHEMA, recorder.records, journal)
            with closing(judge):
                judge.check(final)
            if stage.options["durability"] != "normal":
                check_durable(recorder, disk, journal)
        except Wrong as wrong:
            history = "\n".join(map(repr, recorder.records))
            raise Wrong(f"{wrong}\n\nstage={stage} seed={seed}\n{history}\n{journal}") from None
    told["commits"] = len(journal)
    return told


def check_durable(recorder: Recorder, disk: Disk, journal: list[tuple[int, str]]) -> None:
    """Nobody was told that a commit has happened before an fsync that began behind it.

    On a connection that is lent, SQLite syncs at each COMMIT, which is not seen here.
    """
    position = {name: number for number, name in journal}
    for each in recorder.records:
        number = position.get(each.name)
        if number is None or each.outcome != "committed" or each.lent:
            continue
        if disk.safe(each.ended) < number:
            raise Wrong(f"acknowledged before it was on the disk: {each}\n{disk.synced}")


async def _play(
    sim: Simulation, recorder: Recorder, path: Path, stage: Stage, cast: list[list[Play]]
) -> dict[str, Any]:
    engines: list[Any] = []
    for _ in range(stage.engines):
        engine: Any = create_async_engine(
            f"sqlite+aiosqlite:///{path}",
            connect_args={"factory": SteppingConnection},
            **stage.options,
        )
        event.listen(engine.sync_engine, "connect", foreign_keys)
        if stage.fault == "full":
            event.listen(engine.sync_engine, "connect", few_pages)
        prediction: Any = engine.pool.write_queue.prediction
        if stage.guesses == "drawn":
            prediction.guess = lambda site: sim.chance.choice(list(Guess))
        elif stage.guesses in GUESSES:
            prediction.guess = lambda site: GUESSES[stage.guesses]
        engines.append(engine)

    def check_all() -> None:
        for engine in engines:
            invariants.check(engine)

    sim.on_step = check_all
    actors = [
        Actor(sim, recorder, engines[number % len(engines)], f"A{number}")
        for number in range(len(cast))
    ]
    await asyncio.gather(*(actor.play(plays) for actor, plays in zip(actors, cast, strict=True)))
    for engine in engines:  # what was cancelled is undone in the background
        while engine.pool.admission.inside or engine.stats().holder or engine.stats().in_use:
            await sim.gate()
    told: dict[str, Any] = {"conflicts": 0, "taken": 0, "validations": 0, "steps": sim.steps}
    for engine in engines:
        stats = engine.stats()
        if stats.waiting:
            raise Wrong(f"somebody still waits: {stats}")
        told["conflicts"] += stats.conflicts
        told["taken"] += stats.taken_away
        told["validations"] += stats.validations
        await engine.dispose()
    while sim.threads:
        sim.now += 0.01
        await sim.gate()
    return told
