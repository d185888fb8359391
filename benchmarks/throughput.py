"""Throughput and CPU per operation: every peer does the same work, at the same durability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from .measure import run
from .peers.all import installed
from .peers.peer import WORKS, Peer, Work
from .peers.qsession_pool import OursPool
from .peers.sqlalchemy_async import OursCore, OursOrm, OursSession, StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Bars, Goal, Report, Row, Table, at_least, median, ratio, select, unique

TITLE = "Throughput"
OPERATIONS: dict[Work, int] = {"get": 800, "list": 600, "insert": 500, "change": 400}
SECONDS = 0.6
PLOTTED = ("get", "insert")
STOCK, ALONE = StockOrm.name, SyncOrm.name
OURS = (OursSession.name, OursOrm.name, OursCore.name, OursPool.name)
Ratios = dict[tuple[str, str], tuple[float, float]]
GOALS: Ratios = {
    (OursSession.name, "get"): (3.5, 0.88),
    (OursSession.name, "list"): (3.0, 0.88),
    (OursSession.name, "insert"): (4.8, 1.3),
    (OursSession.name, "change"): (5.0, 1.35),
    (OursOrm.name, "get"): (3.1, 0.77),
    (OursOrm.name, "list"): (2.6, 0.76),
    (OursOrm.name, "insert"): (4.4, 1.2),
    (OursOrm.name, "change"): (4.4, 1.15),
}
"""Of a peer and a work: throughput to the stock engine, and to synchronous SQLAlchemy."""
CPU_GOALS = {"get": 45, "insert": 60}
"""Microseconds for one call of the pool."""


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
    setup: Setup,
    number: int,
    peer: type[Peer],
    work: Work,
    operations: int,
    seconds: float,
    tasks: int | None = None,
) -> Row:
    """One run of a round, of as many tasks as the set-up says unless told otherwise."""
    setup.say(f"round {number}: {work}, {peer.name}", passing=True)
    sample = run(
        peer,
        work,
        setup.directory / "throughput.db",
        operations=setup.scaled(operations),
        tasks=setup.tasks if tasks is None else tasks,
        seconds=seconds,
    )
    return {"round": number, **asdict(sample)}


def report(rows: list[Row]) -> Report:
    out = summarise(rows, GOALS)
    for work, wanted in CPU_GOALS.items():
        if pool := select(rows, peer=OursPool.name, work=work):
            spent = median(map(cpu, pool)) * 1e6
            what = f"{work}, {OursPool.name}: CPU"
            out.goals.append(Goal(what, f"≤ {wanted} µs", f"{spent:.0f} µs", spent <= wanted))
    return out


def summarise(rows: list[Row], wanted: Ratios) -> Report:
    """One table, a chart for each work of `PLOTTED`, and goals by the ratios.

    A peer is compared with the stock engine and the synchronous one of its own kind: with Core
    where it uses Core, else with the ORM.
    """
    works = unique(row["work"] for row in rows)
    table = Table("Operations per second, and processor time of one, of all threads", [""])
    for work in works:
        table.head += [f"{work} /s", "CPU µs"]
    table.head += ["errors", "lost"]
    out = Report([table], [Bars(work, "operations per second", []) for work in PLOTTED])
    for way, peer in unique((row["way"], row["peer"]) for row in rows):
        all_of_it = select(rows, way=way, peer=peer)
        name = peer if peer in OURS else f"{peer} ({way})"
        line = [name]
        for work in works:
            mine = select(all_of_it, work=work)
            if not mine:
                line += ["", ""]
                continue
            line += [f"{median(map(speed, mine)):,.0f}", f"{median(map(cpu, mine)) * 1e6:,.0f}"]
            for chart in out.bars:
                if chart.title == work:
                    chart.bars.append((name, median(map(speed, mine))))
            if (peer, work) in wanted:
                beside = select(rows, way="core" if way == "core" else "orm", work=work)
                ratios = (
                    ratio(mine, select(beside, peer=other), speed) for other in (STOCK, ALONE)
                )
                out.goals += _goals(f"{work}, {name}", wanted[peer, work], *ratios)
        line += [str(sum(row[what] for row in all_of_it)) for what in ("errors", "lost")]
        table.rows.append(line)
    out.bars = [chart for chart in out.bars if chart.bars]
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
