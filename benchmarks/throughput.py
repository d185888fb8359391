"""Throughput and CPU per operation: every peer does the same work, at the same durability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from .measure import run
from .peers.all import installed
from .peers.peer import WORKS, Peer, Work
from .setup import Setup
from .summary import Bars, Goal, Report, Row, Table, at_least, median, ratio, select, times, unique

TITLE = "Throughput"
OPERATIONS: dict[Work, int] = {"get": 800, "list": 600, "insert": 500, "change": 400}
SECONDS = 0.8
MEANING = {
    "get": "get one row by its key",
    "list": "list 20 rows",
    "insert": "insert one row and commit",
    "change": "read, modify, write one of 10 rows, commit",
}
OURS = ("qsession()", "qsession, AsyncSession(engine)", "qsession, engine.begin()")
GOALS: dict[str, tuple[float, float]] = {
    "get": (2, 1), "list": (2, 1), "insert": (6, 1.8), "change": (6, 1.8),
}  # fmt: skip


def measure(setup: Setup) -> Iterator[Row]:
    """`setup.rounds` rounds of all peers, in turn."""
    peers, missing = installed()
    if missing:
        setup.say(f"left out, not installed: {', '.join(missing)}")
    yield from rounds(setup, peers, OPERATIONS, SECONDS)


def rounds(
    setup: Setup, peers: Sequence[type[Peer]], operations: dict[Work, int], seconds: float
) -> Iterator[Row]:
    """Each round does each work once with each peer, one after the other."""
    for number in range(1, setup.rounds + 1):
        for work in (each for each in WORKS if each in operations):
            for peer in (each for each in peers if work in each.works):
                yield one(setup, number, peer, work, operations[work], seconds)


def one(
    setup: Setup, number: int, peer: type[Peer], work: Work, operations: int, seconds: float
) -> Row:
    """One run of a round."""
    setup.say(f"round {number}: {work}, {peer.name}", passing=True)
    sample = run(
        peer,
        work,
        setup.directory / "throughput.db",
        operations=setup.scaled(operations),
        tasks=setup.tasks,
        seconds=seconds,
    )
    return {"round": number, **asdict(sample)}


def report(rows: list[Row]) -> Report:
    return summarise(rows, GOALS)


def summarise(rows: list[Row], wanted: dict[str, tuple[float, float]]) -> Report:
    """A table and a chart for each work; goals by the ratios to stock and to synchronous."""
    out = Report([])
    for work in unique(row["work"] for row in rows):
        table = Table(
            f"{work}: {MEANING[work]}",
            ["", "ops/s", "to stock", "to sync.", "CPU µs", "CPU to stock",
             "CPU to sync.", "errors", "lost"],
        )  # fmt: skip
        bars = Bars(table.title, "operations per second", [])
        here = select(rows, work=work)
        for way, peer in unique((row["way"], row["peer"]) for row in here):
            mine = select(here, way=way, peer=peer)
            beside = "core" if way == "core" else "orm"
            stock = select(here, way=beside, peer="stock")
            alone = select(here, way=beside, peer="synchronous SQLAlchemy")
            name = peer if peer in OURS else f"{peer} ({way})"
            to_stock, to_alone = ratio(mine, stock, speed), ratio(mine, alone, speed)
            table.rows.append(
                [
                    name,
                    f"{median(map(speed, mine)):,.0f}",
                    times(to_stock),
                    times(to_alone),
                    f"{median(map(cpu, mine)) * 1e6:,.0f}",
                    times(ratio(mine, stock, cpu)),
                    times(ratio(mine, alone, cpu)),
                    str(sum(row["errors"] for row in mine)),
                    str(sum(row["lost"] for row in mine)),
                ]
            )
            bars.bars.append((name, median(map(speed, mine))))
            if peer in OURS and work in wanted:
                out.goals += _goals(f"{work}, {name}", wanted[work], to_stock, to_alone)
        out.tables.append(table)
        out.bars.append(bars)
    return out


def _goals(what: str, wanted: tuple[float, float], to_stock: float, to_alone: float) -> list[Goal]:
    return [
        at_least(f"{what}: throughput to stock", wanted[0], to_stock),
        at_least(f"{what}: throughput to synchronous", wanted[1], to_alone),
    ]


def speed(row: Row) -> float:
    """Operations per second."""
    return float(row["operations"] / row["seconds"])


def cpu(row: Row) -> float:
    """Seconds of processor time for one operation."""
    return float(row["cpu"] / max(1, row["operations"]))
