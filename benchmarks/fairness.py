"""Does each task get its share? Fifty that read, and 25 that read beside 25 that write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from .measure import settled
from .peers.peer import Work, prepare
from .peers.sqlalchemy_async import OrmPeer, OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import Bars, Report, Row, Table, at_least, at_most, median, quantile, select, unique
from .throughput import OURS

TITLE = "Shares of the tasks"
PEERS: tuple[type[OrmPeer], ...] = (OursOrm, OursSession, StockOrm, RecipeOrm)
SECONDS = 5.0
READ, BOTH = MIXES = ("all read", "half of them write")
SLOWEST, BUSIEST, LATENCY = 0.5, 2.0, 3.0


def measure(setup: Setup) -> Iterator[Row]:
    """Each engine with each mixture, in turn; a row for each kind of task."""
    for number in range(1, setup.rounds + 1):
        for mix in MIXES:
            for kind in PEERS:
                setup.say(f"round {number}: {kind.name}, {mix}", passing=True)
                file = setup.directory / "fairness.db"
                prepare(file, wal=kind.wal)
                for row in asyncio.run(_measure(kind(file), setup, mix)):
                    yield {"round": number, "mix": mix, "peer": kind.name, **row}


async def _measure(peer: OrmPeer, setup: Setup, mix: str) -> list[Row]:
    await peer.start()
    writers = setup.tasks // 2 if mix == BOTH else 0
    kinds: tuple[Work, Work] = ("insert", "get")
    works = [kinds[number >= writers] for number in range(setup.tasks)]
    counts = [0] * len(works)
    waits: dict[Work, list[float]] = {"get": [], "insert": []}
    errors: dict[Work, int] = {"get": 0, "insert": 0}
    began = end = 0.0

    async def task(number: int, work: Work) -> None:
        operation = peer.get if work == "get" else peer.insert
        i = number
        while (before := time.perf_counter()) < end:
            i += len(works)
            try:
                await operation(i)
            except Exception:
                errors[work] += 1
                continue
            now = time.perf_counter()
            waits[work].append(now - before)
            counts[number] += now < end

    async def all_tasks(seconds: float) -> None:
        nonlocal began, end
        began = time.perf_counter()
        end = began + seconds
        await asyncio.gather(*(task(number, work) for number, work in enumerate(works)))

    await all_tasks(0.1 * SECONDS * setup.scale)
    for each in waits.values():
        each.clear()
    counts[:] = [0] * len(works)
    with settled():
        await all_tasks(SECONDS * setup.scale)
    await peer.stop()
    return [
        {
            "work": work,
            "seconds": end - began,
            "counts": [count for count, each in zip(counts, works, strict=True) if each == work],
            "p50": quantile(waits[work] or [0.0], 0.5),
            "p99": quantile(waits[work] or [0.0], 0.99),
            "errors": errors[work],
        }
        for work in unique(works)
    ]


def slowest(row: Row) -> float:
    """The share of the task that got least, to the mean."""
    return float(min(row["counts"]) / _mean(row))


def busiest(row: Row) -> float:
    """The share of the task that got most, to the mean."""
    return float(max(row["counts"]) / _mean(row))


def _mean(row: Row) -> float:
    return max(sum(row["counts"]), 1) / len(row["counts"])


def latency(row: Row) -> float:
    """p99 to p50."""
    return float(row["p99"] / row["p50"]) if row["p50"] else 0.0


def report(rows: list[Row]) -> Report:
    out = Report([])
    for mix in unique(row["mix"] for row in rows):
        table = Table(f"{mix}; the counts of tasks to their mean", ["", "work", "ops/s"])
        table.head += ["least", "most", "p50 ms", "p99 ms", "p99 to p50", "errors"]
        bars = Bars(f"{mix}: p99 of an operation", "ms", [])
        here = select(rows, mix=mix)
        for peer, work in unique((row["peer"], row["work"]) for row in here):
            mine = select(here, peer=peer, work=work)
            least, most, spread = (median(map(each, mine)) for each in (slowest, busiest, latency))
            rate = median(sum(row["counts"]) / row["seconds"] for row in mine)
            p50, p99 = (median(row[each] for row in mine) * 1000 for each in ("p50", "p99"))
            table.rows.append(
                [
                    peer,
                    work,
                    f"{rate:,.0f}",
                    f"{least:.2f}",
                    f"{most:.2f}",
                    f"{p50:,.1f}",
                    f"{p99:,.1f}",
                    f"{spread:.1f}",
                    str(sum(row["errors"] for row in mine)),
                ]
            )
            bars.bars.append((f"{peer}, {work}", p99))
            if peer in OURS:
                what = f"{mix}, {work}, {peer}"
                out.goals += [
                    at_least(f"{what}: slowest task to the mean", SLOWEST, least),
                    at_most(f"{what}: busiest task to the mean", BUSIEST, most),
                    at_most(f"{what}: p99 to p50", LATENCY, spread),
                ]
        out.tables.append(table)
        out.bars.append(bars)
    return out
