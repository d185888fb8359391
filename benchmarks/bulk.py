"""Many rows in one transaction, in each way in which applications write and read them.

The same code runs on a synchronous session and, by ``run_sync``, on those of asyncio. There a
sampler notes for how long the event loop stood still.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from .load import lateness
from .measure import settled
from .peers.model import Item, item
from .peers.peer import NAME, ROWS, Peer, prepare
from .peers.sqlalchemy_async import EnginePeer, OursOrm, StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Report, Row, Table, at_most, median, ratio, times, unique
from .summary import select as pick

TITLE = "Many rows at once"
PEERS: tuple[type[Peer], ...] = (SyncOrm, OursOrm, StockOrm)
BATCH = 1_000
GOAL, LONGEST = 1.15, 1.1
"""Of the time of synchronous SQLAlchemy; of the longest stop of the stock engine's loop."""
INSERT = text("INSERT INTO item (n, name) VALUES (:n, :name)")
Rows = list[dict[str, Any]]


def values(session: Session, rows: Rows) -> None:
    for start in range(0, len(rows), BATCH):
        session.execute(insert(item).values(rows[start : start + BATCH]))


def add_all(session: Session, rows: Rows) -> None:
    session.add_all([Item(**row) for row in rows])
    session.flush()


def core(session: Session, rows: Rows) -> None:
    session.connection().execute(insert(item), rows)


def plain_text(session: Session, rows: Rows) -> None:
    session.execute(INSERT, rows)


def fetch(session: Session, rows: Rows) -> None:
    found = session.connection().execute(select(item)).all()
    assert len(found) == ROWS + len(rows), len(found)


WORKS: dict[str, tuple[Callable[[Session, Rows], None], int]] = {
    f"insert().values() of {BATCH:,}": (values, 50_000),
    "add_all()": (add_all, 50_000),
    "execute(insert(), rows)": (core, 100_000),
    "execute(text(), rows)": (plain_text, 100_000),
    "select().all()": (fetch, 100_000),
}
"""What is done, and with how many rows where the scale is 1."""


def measure(setup: Setup) -> Iterator[Row]:
    """Each work by each engine in turn, on a new file, in one transaction with its commit."""
    for number in range(1, setup.rounds + 1):
        for work, (function, size) in WORKS.items():
            rows = [{"n": n, "name": NAME} for n in range(setup.scaled(size))]
            for kind in PEERS:
                setup.say(f"round {number}: {work}, {kind.name}", passing=True)
                file = setup.directory / "bulk.db"
                _prepare(file, kind.wal, len(rows) if function is fetch else 0)
                peer = kind(file)
                if isinstance(peer, EnginePeer):
                    found = asyncio.run(_in_task(peer, function, rows))
                else:
                    assert isinstance(peer, SyncOrm)
                    found = _in_thread(peer, function, rows)
                _check(file, len(rows))
                yield {
                    "round": number, "work": work, "peer": kind.name, "rows": len(rows), **found
                }  # fmt: skip


def _prepare(file: Path, wal: bool, rows: int) -> None:
    prepare(file, wal=wal)
    with closing(sqlite3.connect(file)) as db, db:
        db.executemany("INSERT INTO item (n, name) VALUES (?, ?)", ((n, NAME) for n in range(rows)))


def _check(file: Path, rows: int) -> None:
    with closing(sqlite3.connect(file)) as db:
        (found,) = db.execute("SELECT count(*) FROM item").fetchone()
    assert found == ROWS + rows, (found, rows)


def _in_thread(peer: SyncOrm, function: Callable[[Session, Rows], None], rows: Rows) -> Row:
    peer.start()
    peer.get(0)
    with settled():
        began, cpu = time.perf_counter(), time.process_time()
        with Session(peer.engine) as session:
            function(session, rows)
            session.commit()
        found = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    peer.stop()
    return {**found, "longest": None}


async def _in_task(peer: EnginePeer, function: Callable[[Session, Rows], None], rows: Rows) -> Row:
    await peer.start()
    await peer.get(0)
    with settled():
        async with lateness() as late:
            began, cpu = time.perf_counter(), time.process_time()
            async with AsyncSession(peer.engine) as session:
                await session.run_sync(function, rows)
                await session.commit()
            found = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    await peer.stop()
    return {**found, "longest": max(late)}


def _seconds(row: Row) -> float:
    return float(row["seconds"])


def _cpu(row: Row) -> float:
    return float(row["cpu"])


def _longest(row: Row) -> float:
    return float(row["longest"])


def report(rows: list[Row]) -> Report:
    table = Table("Many rows in one transaction", ["", "", "rows", "seconds", "to sync."])
    table.head += ["CPU s", "CPU to sync.", "longest stop ms"]
    out = Report([table])
    for work, peer in unique((row["work"], row["peer"]) for row in rows):
        mine = pick(rows, work=work, peer=peer)
        alone, stock = (pick(rows, work=work, peer=each.name) for each in (SyncOrm, StockOrm))
        wall, spent = ratio(mine, alone, _seconds), ratio(mine, alone, _cpu)
        stops = [_longest(row) * 1000 for row in mine if row["longest"] is not None]
        table.rows.append(
            [
                work,
                peer,
                f"{mine[0]['rows']:,}",
                f"{median(map(_seconds, mine)):.2f}",
                times(wall),
                f"{median(map(_cpu, mine)):.2f}",
                times(spent),
                f"{median(stops):,.0f}" if stops else "",
            ]
        )
        if peer == OursOrm.name:
            out.goals += [
                at_most(f"{work}: time to synchronous", GOAL, wall),
                at_most(f"{work}: CPU to synchronous", GOAL, spent),
                at_most(f"{work}: longest stop to stock", LONGEST, ratio(mine, stock, _longest)),
            ]
    return out
