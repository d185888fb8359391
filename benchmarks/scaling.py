"""Does an operation cost the same when many more tasks wait? And what is the garbage collector's?

Python's collector looks at every object that lives, again and again, and a task that waits in a
session is many objects. So the inserts are measured once more with ``gc.set_threshold`` as an
application may set it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from .peers.peer import Peer, Work
from .peers.sqlalchemy_async import OursOrm, OursSession
from .setup import Setup
from .summary import Report, Row, Table, at_most, median, ratio, select, times, unique
from .throughput import cpu, one

TITLE = "CPU per operation, from 50 to 1,000 tasks"
TASKS = (50, 1_000)
OPERATIONS: dict[Work, int] = {"get": 3_000, "insert": 2_500, "change": 2_000}
PEERS: tuple[type[Peer], ...] = (OursSession, OursOrm)
THRESHOLD = (20_000, 20, 20)
USUAL, RARE = COLLECTORS = ("Python's own", str(THRESHOLD))
SECONDS = 5.0
GOAL = 1.1


def measure(setup: Setup) -> Iterator[Row]:
    """In each round, each work with each number of tasks, by each peer in turn."""
    for number in range(1, setup.rounds + 1):
        for work, operations in OPERATIONS.items():
            for collector in COLLECTORS if work == "insert" else (USUAL,):
                for peer in PEERS:
                    for tasks in TASKS:
                        with collects(collector):
                            row = one(
                                setup, number, peer, work, operations, SECONDS, setup.scaled(tasks)
                            )
                        yield {**row, "tasks": tasks, "collector": collector}


@contextmanager
def collects(collector: str) -> Iterator[None]:
    """With the thresholds that are meant; those of before are set back."""
    before = gc.get_threshold()
    if collector == RARE:
        gc.set_threshold(*THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def report(rows: list[Row]) -> Report:
    out = Report([Table("CPU µs per operation", ["", "work", "gc.set_threshold"])])
    out.tables[0].head += [*(f"{tasks:,} tasks" for tasks in TASKS), "1,000 to 50", "errors"]
    for work, collector, peer in unique(
        (row["work"], row["collector"], row["peer"]) for row in rows
    ):
        mine = select(rows, work=work, collector=collector, peer=peer)
        few, many = (select(mine, tasks=each) for each in TASKS)
        costs = (f"{median(map(cpu, each)) * 1e6:,.0f}" for each in (few, many))
        growth = ratio(many, few, cpu)
        errors = sum(row["errors"] for row in mine)
        out.tables[0].rows.append([peer, work, collector, *costs, times(growth), f"{errors}"])
        if collector == USUAL:
            out.goals.append(at_most(f"{work}, {peer}: CPU, 1,000 tasks to 50", GOAL, growth))
    return out
