"""Does each task get its share? Fifty that read, and 25 that read beside 25 that write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from .load import Kind, load
from .measure import settled
from .peers.peer import prepare
from .peers.sqlalchemy_async import OrmPeer, OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import Report, Row, Table, at_least, at_most, median, quantile, select, unique

TITLE = "Shares of the tasks"
PEERS: tuple[type[OrmPeer], ...] = (OursOrm, OursSession, StockOrm, RecipeOrm)
SECONDS = 2.5
READ, BOTH = MIXES = ("all read", "half of them write")
SLOWEST, BUSIEST, LATENCY = 0.5, 2.0, 3.0
READS = {OursSession.name: 1.5, OursOrm.name: 2.0}
"""p99 to p50 of a get where all read."""


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
    kinds = {"get": Kind(setup.tasks - writers, peer.get)}
    if writers:
        kinds["insert"] = Kind(writers, peer.insert)
    seconds = SECONDS * setup.scale
    await load(kinds, 0.1 * seconds)
    with settled():
        found = await load(kinds, seconds)
    await peer.stop()
    return [
        {
            "work": work,
            "seconds": seconds,
            "counts": done.counts,
            "p50": quantile(done.waits or [0.0], 0.5),
            "p99": quantile(done.waits or [0.0], 0.99),
            "errors": done.errors,
        }
        for work, done in found.items()
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
    table = Table("The counts of tasks to their mean, and the times of operations", [""])
    table.head += ["tasks", "work", "ops/s", "least", "most", "p50 ms", "p99 ms", "p99 to p50"]
    table.head.append("errors")
    out = Report([table])
    for mix, peer, work in unique((row["mix"], row["peer"], row["work"]) for row in rows):
        mine = select(rows, mix=mix, peer=peer, work=work)
        least, most, spread = (median(map(each, mine)) for each in (slowest, busiest, latency))
        rate = median(sum(row["counts"]) / row["seconds"] for row in mine)
        p50, p99 = (median(row[each] for row in mine) * 1000 for each in ("p50", "p99"))
        table.rows.append(
            [
                peer,
                mix,
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
    for peer, wanted in READS.items():
        mine = select(rows, peer=peer)
        alone, mixed = (select(mine, mix=mix) for mix in MIXES)
        out.goals += [
            at_least(f"{peer}: slowest task to the mean", SLOWEST, _worst(mine, slowest, min)),
            at_most(f"{peer}: busiest task to the mean", BUSIEST, _worst(mine, busiest, max)),
            at_most(f"{peer}, {READ}: p99 to p50", wanted, _worst(alone, latency, max)),
            at_most(f"{peer}, {BOTH}: p99 to p50", LATENCY, _worst(mixed, latency, max)),
        ]
    return out


def _worst(
    rows: list[Row], value: Callable[[Row], float], pick: Callable[[list[float]], float]
) -> float:
    """The median of the rounds, of the mixture and work where that is worst."""
    kinds = unique((row["mix"], row["work"]) for row in rows)
    return pick([median(map(value, select(rows, mix=mix, work=work))) for mix, work in kinds])
