"""For how long does the event loop stand still beside large scans and bulk inserts?

So many operations of each kind in a second, spread evenly, as the stock engine can well do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from sqlalchemy import func, insert, select

from .load import Kind, lateness, load
from .measure import settled
from .peers.model import item
from .peers.peer import NAME, prepare
from .peers.sqlalchemy_async import OrmPeer, OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import Report, Row, Table, median, quantile, unique
from .summary import select as pick

TITLE = "Stalls of the event loop"
SECONDS = 3.0
ROWS = 50_000
BULK = 2_000
PEERS: tuple[type[OrmPeer], ...] = (OursSession, OursOrm, StockOrm, RecipeOrm)
WORKS = ("gets", "lists", "inserts", "changes", "scans", "bulks")


def measure(setup: Setup) -> Iterator[Row]:
    """A sampler sleeps 1 ms at a time beside the load and notes by how much it overslept."""
    for number in range(1, setup.rounds + 1):
        for kind in PEERS:
            setup.say(f"round {number}: {kind.name}", passing=True)
            file = setup.directory / "stall.db"
            prepare(file, wal=kind.wal)
            yield {"round": number, "peer": kind.name, **asyncio.run(_measure(kind(file), setup))}


async def _measure(peer: OrmPeer, setup: Setup) -> Row:
    await peer.start()
    await _bulk(peer, setup.scaled(ROWS))
    kinds = {
        "gets": Kind(8, peer.get, 80),
        "lists": Kind(4, peer.list, 40),
        "inserts": Kind(8, peer.insert, 30),
        "changes": Kind(8, peer.change, 30),
        "scans": Kind(2, lambda _: _scan(peer), 16),
        "bulks": Kind(1, lambda _: _bulk(peer, BULK), 4),
    }
    for kind in kinds.values():
        for i in range(3):
            await kind.operation(i)
    with settled():
        async with lateness() as late:
            found = await load(kinds, max(0.2, SECONDS * setup.scale))
    await peer.stop()
    return {
        "longest": max(late),
        "p999": quantile(late, 0.999),
        "p50": quantile(late, 0.5),
        **{name: sum(done.counts) for name, done in found.items()},
    }


async def _scan(peer: OrmPeer) -> None:
    """Read the whole table in SQLite; one row comes back."""
    async with peer.reader() as session:
        await session.execute(select(func.count()).where(item.c.name.like("%xyx%")))


async def _bulk(peer: OrmPeer, number: int) -> None:
    async with peer.session() as session:
        await session.execute(insert(item), [{"n": 0, "name": NAME}] * number)
        await session.commit()


def report(rows: list[Row]) -> Report:
    table = Table("Milliseconds, and what was done meanwhile", ["", "longest", "p99.9", "p50"])
    table.head += WORKS
    for peer in unique(row["peer"] for row in rows):
        mine = pick(rows, peer=peer)
        ms = (median(row[name] for row in mine) * 1000 for name in ("longest", "p999", "p50"))
        counts = (f"{median(row[name] for row in mine):,.0f}" for name in WORKS)
        table.rows.append([peer, *(f"{each:.1f}" for each in ms), *counts])
    return Report([table])
