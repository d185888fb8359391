"""How long a read takes while nobody writes, and while the writer is saturated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from .measure import settled
from .peers.drivers import AiosqliteLocked
from .peers.peer import TaskPeer, prepare
from .peers.sqlalchemy_async import OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import (
    Bars,
    Report,
    Row,
    Table,
    at_most,
    median,
    quantile,
    ratio,
    select,
    times,
    unique,
)
from .throughput import OURS

TITLE = "Read latency, idle and while others insert"
READS = 300
WARM = 60
PAUSE = 0.002
"""Seconds between two reads."""
LONGEST = 2.0
GOAL = 2.0


def measure(setup: Setup) -> Iterator[Row]:
    """One task reads a row again and again; first alone, then beside tasks that insert."""
    peers: list[type[TaskPeer]] = [OursSession, OursOrm, StockOrm, RecipeOrm, AiosqliteLocked]
    with suppress(ModuleNotFoundError):
        module = import_module(".peers.tortoise_orm", __package__)
        peers.append(module.TortoiseOrm)
    for number in range(1, setup.rounds + 1):
        for kind in peers:
            setup.say(f"round {number}: {kind.name}", passing=True)
            file = setup.directory / "latency.db"
            prepare(file, wal=kind.wal)
            idle, busy, writes = asyncio.run(_measure(kind(file), setup))
            for state, seconds in (("idle", idle), ("busy", busy)):
                yield {
                    "round": number,
                    "peer": kind.name,
                    "state": state,
                    "p50": quantile(seconds, 0.5),
                    "p99": quantile(seconds, 0.99),
                    "writes": writes,
                }


async def _measure(peer: TaskPeer, setup: Setup) -> tuple[list[float], list[float], float]:
    await peer.start()
    reads = setup.scaled(READS)
    await _read(peer, WARM)
    with settled():
        idle = await _read(peer, reads)
    done, end = 0, False

    async def write() -> None:
        nonlocal done
        while not end:
            with suppress(Exception):  # a peer whose writers fail does not escape the comparison
                await peer.insert(0)
                done += 1

    writers = [asyncio.create_task(write()) for _ in range(setup.tasks)]
    await asyncio.sleep(0.2)
    with settled():
        before, began = done, time.perf_counter()
        busy = await _read(peer, reads)
        writes = (done - before) / (time.perf_counter() - began)
    end = True
    await asyncio.gather(*writers)
    await peer.stop()
    return idle, busy, writes


async def _read(peer: TaskPeer, number: int) -> list[float]:
    taken: list[float] = []
    end = time.perf_counter() + LONGEST
    for i in range(number):
        began = time.perf_counter()
        if began > end and taken:
            break
        await peer.get(i)
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE)
    return taken


def report(rows: list[Row]) -> Report:
    table = Table(
        "Milliseconds for a get",
        [
            "",
            "idle p50",
            "idle p99",
            "busy p50",
            "busy p99",
            "busy to idle p99",
            "inserts/s beside",
        ],
    )
    out = Report([table], [Bars("p99 of a get while others insert", "ms", [])])
    for peer in unique(row["peer"] for row in rows):
        idle, busy = (select(rows, peer=peer, state=state) for state in ("idle", "busy"))
        ms = [
            median(row[q] for row in part) * 1000 for part in (idle, busy) for q in ("p50", "p99")
        ]
        growth = ratio(busy, idle, lambda row: float(row["p99"]))
        writes = median(row["writes"] for row in busy)
        table.rows.append([peer, *(f"{each:.2f}" for each in ms), times(growth), f"{writes:,.0f}"])
        out.bars[0].bars.append((peer, ms[3]))
        if peer in OURS:
            out.goals.append(at_most(f"{peer}: p99 of a get, busy to idle", GOAL, growth))
    return out
