"""Inserts on a disk whose fsync takes longer: 2 ms more for all, as a cloud machine's does.

With 5 ms more, the pool alone: how near does it come to what the disk allows? Each fsync may serve
all tasks once, so the ceiling is the number of fsyncs in a second times that of the tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from .disks import DELAY_MS, SLOW, SLOWER, build, change_to, rows_of_child, setup_of_child
from .machine import fsync_ms
from .peers.all import installed
from .peers.qsession_pool import OursPool
from .peers.sqlalchemy_async import OursOrm, OursSession
from .setup import Setup
from .summary import Report, Row, Table, at_least, median, select
from .throughput import Ratios, one, speed, summarise

TITLE = f"Inserts with fsync {DELAY_MS:g} ms slower"
OPERATIONS = 800
SECONDS = 0.5
GOALS: Ratios = {(OursSession.name, "insert"): (27, 7), (OursOrm.name, "insert"): (25, 6.5)}
OF_CEILING = 0.6


def measure(setup: Setup) -> Iterator[Row]:
    """The inserts of `throughput` in a child process that has the slow fsync."""
    shim = build(setup.directory)
    if shim is None:
        setup.say("left out: a slower fsync needs Linux and a C compiler called cc")
        return
    yield from rows_of_child(setup, __name__, shim)


def main(text: str) -> None:
    """What the child does: print a row as JSON for each run."""
    setup, _ = setup_of_child(text)
    peers, _ = installed()
    for number in range(1, setup.rounds + 1):
        for disk, measured in ((SLOW, peers), (SLOWER, [OursPool])):
            change_to(disk)
            fsync = fsync_ms(setup.directory)
            for peer in measured:
                row = one(setup, number, peer, "insert", OPERATIONS, SECONDS)
                print(json.dumps({**row, "disk": disk, "fsync": fsync}), flush=True)


def report(rows: list[Row]) -> Report:
    out = summarise(select(rows, disk=SLOW), GOALS)
    out.bars = []
    for goal in out.goals:
        goal.what = f"{SLOW}: {goal.what}"
    if slower := select(rows, disk=SLOWER):
        table = Table(
            f"The pool with {SLOWER}", ["", "ops/s", "fsync ms", "tasks", "of the ceiling"]
        )
        share = median(speed(row) / _ceiling(row) for row in slower)
        shown = (f"{median(row[each] for row in slower):,.1f}" for each in ("fsync", "tasks"))
        rate = f"{median(map(speed, slower)):,.0f}"
        table.rows.append([OursPool.name, rate, *shown, f"{share:.2f}"])
        out.tables.append(table)
        out.goals.append(at_least(f"{SLOWER}: pool, of the ceiling", OF_CEILING, share))
    return out


def _ceiling(row: Row) -> float:
    """Operations per second if each fsync served every task."""
    return float(row["tasks"] * 1000 / row["fsync"])


if __name__ == "__main__":
    main(sys.argv[1])
