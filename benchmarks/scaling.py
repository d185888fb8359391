"""Does the cost of an operation stay the same when many more tasks are waiting?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from .measure import run
from .peers.peer import Peer, Work
from .peers.sqlalchemy_async import OursOrm, OursSession
from .setup import Setup
from .summary import Bars, Report, Row, Table, at_most, median, ratio, select, times, unique
from .throughput import OURS, cpu

TITLE = "CPU per operation, from 50 to 1,000 tasks"
TASKS = (50, 200, 1_000)
OPERATIONS: dict[Work, int] = {"get": 4_000, "insert": 3_000, "change": 3_000}
PEERS: tuple[type[Peer], ...] = (OursSession, OursOrm)
SECONDS = 5.0
GOAL = 1.1


def measure(setup: Setup) -> Iterator[Row]:
    """In each round, each work with each number of tasks, by each peer in turn."""
    for number in range(1, setup.rounds + 1):
        for work, operations in OPERATIONS.items():
            for peer in PEERS:
                for tasks in TASKS:
                    setup.say(f"round {number}: {work}, {peer.name}, {tasks}", passing=True)
                    sample = run(
                        peer,
                        work,
                        setup.directory / "scaling.db",
                        operations=setup.scaled(operations),
                        tasks=setup.scaled(tasks),
                        seconds=SECONDS,
                    )
                    yield {"round": number, **asdict(sample), "tasks": tasks}


def report(rows: list[Row]) -> Report:
    out = Report([])
    for work in unique(row["work"] for row in rows):
        table = Table(
            f"{work}: CPU µs per operation",
            ["", *(f"{tasks:,} tasks" for tasks in TASKS), "1,000 to 50", "errors"],
        )
        bars = Bars(table.title, "µs", [])
        for peer in unique(row["peer"] for row in rows):
            mine = select(rows, work=work, peer=peer)
            few, many = select(mine, tasks=TASKS[0]), select(mine, tasks=TASKS[-1])
            costs = [median(map(cpu, select(mine, tasks=each))) * 1e6 for each in TASKS]
            growth = ratio(many, few, cpu)
            errors = sum(row["errors"] for row in mine)
            table.rows.append(
                [peer, *(f"{each:,.0f}" for each in costs), times(growth), f"{errors}"]
            )
            bars.bars += [
                (f"{peer}, {tasks:,}", cost) for tasks, cost in zip(TASKS, costs, strict=True)
            ]
            if peer in OURS:
                out.goals.append(at_most(f"{work}, {peer}: CPU, 1,000 tasks to 50", GOAL, growth))
        out.tables.append(table)
        out.bars.append(bars)
    return out
