"""For how long does the event loop stand still beside large scans and bulk inserts?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from sqlalchemy import func, insert, select

from .measure import settled
from .peers.model import item
from .peers.peer import NAME, prepare
from .peers.sqlalchemy_async import OrmPeer, OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import Bars, Goal, Report, Row, Table, median, quantile, ratio, times, unique
from .summary import select as pick
from .throughput import OURS

TITLE = "Stalls of the event loop"
TICK = 0.001
SECONDS = 2.0
ROWS = 50_000
BULK = 2_000
PEERS: tuple[type[OrmPeer], ...] = (OursSession, OursOrm, StockOrm, RecipeOrm)


def measure(setup: Setup) -> Iterator[Row]:
    """A sampler sleeps 1 ms at a time beside the load and notes by how much it overslept."""
    for number in range(1, setup.rounds + 1):
        for kind in PEERS:
            setup.say(f"round {number}: {kind.name}", passing=True)
            file = setup.directory / "stall.db"
            prepare(file, wal=kind.wal)
            late, done = asyncio.run(_measure(kind(file), setup))
            yield {
                "round": number,
                "peer": kind.name,
                "longest": max(late),
                "p999": quantile(late, 0.999),
                "p50": quantile(late, 0.5),
                **done,
            }


async def _measure(peer: OrmPeer, setup: Setup) -> tuple[list[float], dict[str, int]]:
    await peer.start()
    await _bulk(peer, setup.scaled(ROWS))
    kinds: dict[str, tuple[int, Callable[[int], Awaitable[object]]]] = {
        "gets": (8, peer.get),
        "lists": (4, peer.list),
        "inserts": (8, peer.insert),
        "changes": (8, peer.change),
        "scans": (2, lambda _: _scan(peer)),
        "bulks": (1, lambda _: _bulk(peer, BULK)),
    }
    for _, operation in kinds.values():
        for i in range(3):
            await operation(i)
    done = dict.fromkeys(kinds, 0)
    end = 0.0

    async def load(name: str, operation: Callable[[int], Awaitable[object]]) -> None:
        i = 0
        while time.perf_counter() < end:
            i += 1
            with suppress(Exception):  # "database is locked" is part of the stock engine's load
                await operation(i)
                done[name] += 1

    late = []

    async def sample() -> None:
        while (began := time.perf_counter()) < end:
            await asyncio.sleep(TICK)
            late.append(max(0.0, time.perf_counter() - began - TICK))

    with settled():
        end = time.perf_counter() + max(0.2, SECONDS * setup.scale)
        await asyncio.gather(
            sample(),
            *(load(name, each) for name, (number, each) in kinds.items() for _ in range(number)),
        )
    await peer.stop()
    return late, done


async def _scan(peer: OrmPeer) -> None:
    """Read the whole table in SQLite; one row comes back."""
    async with peer.reader() as session:
        await session.execute(select(func.count()).where(item.c.name.like("%xyx%")))


async def _bulk(peer: OrmPeer, number: int) -> None:
    async with peer.session() as session:
        await session.execute(insert(item), [{"n": 0, "name": NAME}] * number)
        await session.commit()


def report(rows: list[Row]) -> Report:
    names = ("gets", "lists", "inserts", "changes", "scans", "bulks")
    table = Table(
        "Milliseconds, and what was done meanwhile", ["", "longest", "p99.9", "p50", *names]
    )
    out = Report([table], [Bars("Longest stall of the event loop", "ms", [])])
    stock = pick(rows, peer="stock")
    for peer in unique(row["peer"] for row in rows):
        mine = pick(rows, peer=peer)
        ms = [median(row[name] for row in mine) * 1000 for name in ("longest", "p999", "p50")]
        counts = [f"{median(row[name] for row in mine):,.0f}" for name in names]
        table.rows.append([peer, *(f"{each:.1f}" for each in ms), *counts])
        out.bars[0].bars.append((peer, ms[0]))
        if peer in OURS:
            growth = ratio(mine, stock, lambda row: float(row["longest"]))
            out.goals.append(
                Goal(f"{peer}: longest stall to stock", "≤ 1 x", f"{times(growth)} x", growth <= 1)
            )
    return out
