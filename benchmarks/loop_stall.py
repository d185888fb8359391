"""For how long does the event loop stand still beside large scans and bulk inserts?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

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
SAME, MOST = "the same for all", "as much as each can"
LOADS = (SAME, MOST)


@dataclass(frozen=True)
class _Kind:
    """A number of tasks that do one kind of operation."""

    tasks: int
    rate: float
    """Of them all in a second, where the load is the same for all; the stock engine can do more."""
    operation: Callable[[int], Awaitable[object]]


def measure(setup: Setup) -> Iterator[Row]:
    """A sampler sleeps 1 ms at a time beside the load and notes by how much it overslept."""
    for number in range(1, setup.rounds + 1):
        for load in LOADS:
            for kind in PEERS:
                setup.say(f"round {number}: {kind.name}, load {load}", passing=True)
                file = setup.directory / "stall.db"
                prepare(file, wal=kind.wal)
                late, done = asyncio.run(_measure(kind(file), setup, load is SAME))
                yield {
                    "round": number,
                    "load": load,
                    "peer": kind.name,
                    "longest": max(late),
                    "p999": quantile(late, 0.999),
                    "p50": quantile(late, 0.5),
                    **done,
                }


async def _measure(peer: OrmPeer, setup: Setup, paced: bool) -> tuple[list[float], dict[str, int]]:
    await peer.start()
    await _bulk(peer, setup.scaled(ROWS))
    kinds = {
        "gets": _Kind(8, 80, peer.get),
        "lists": _Kind(4, 40, peer.list),
        "inserts": _Kind(8, 30, peer.insert),
        "changes": _Kind(8, 30, peer.change),
        "scans": _Kind(2, 16, lambda _: _scan(peer)),
        "bulks": _Kind(1, 4, lambda _: _bulk(peer, BULK)),
    }
    for kind in kinds.values():
        for i in range(3):
            await kind.operation(i)
    done = dict.fromkeys(kinds, 0)
    late: list[float] = []
    began = end = 0.0

    async def load(name: str, kind: _Kind, first: int) -> None:
        """Each ``kind.tasks``-th operation of its kind, the first of them being ``first``."""
        for i in count(first, kind.tasks):
            if paced:
                await asyncio.sleep(began + i / kind.rate - time.perf_counter())
            if time.perf_counter() >= end:
                return
            with suppress(Exception):  # "database is locked" is part of the stock engine's load
                await kind.operation(i)
                done[name] += 1

    async def sample() -> None:
        while (before := time.perf_counter()) < end:
            await asyncio.sleep(TICK)
            late.append(max(0.0, time.perf_counter() - before - TICK))

    with settled():
        began = time.perf_counter()
        end = began + max(0.2, SECONDS * setup.scale)
        await asyncio.gather(
            sample(),
            *(load(name, kind, i) for name, kind in kinds.items() for i in range(kind.tasks)),
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
    out = Report([])
    for load in unique(row["load"] for row in rows):
        header = ["", "longest", "p99.9", "p50", *names]
        table = Table(f"Load: {load}. Milliseconds, and what was done meanwhile", header)
        bars = Bars(f"Longest stall of the event loop, load: {load}", "ms", [])
        out.tables.append(table)
        out.bars.append(bars)
        stock = pick(rows, peer="stock", load=load)
        for peer in unique(row["peer"] for row in rows):
            mine = pick(rows, peer=peer, load=load)
            ms = [median(row[name] for row in mine) * 1000 for name in ("longest", "p999", "p50")]
            counts = [f"{median(row[name] for row in mine):,.0f}" for name in names]
            table.rows.append([peer, *(f"{each:.1f}" for each in ms), *counts])
            bars.bars.append((peer, ms[0]))
            if peer in OURS:
                growth = ratio(mine, stock, lambda row: float(row["longest"]))
                name = f"{peer}: longest stall to stock, load {load}"
                out.goals.append(Goal(name, "≤ 1 x", f"{times(growth)} x", growth <= 1))
    return out
