"""The writes again, on a disk whose fsync takes 2 ms more: the disk of a cloud machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from .disks import DELAY_MS, DISKS, HERE, SLOW, build, change_to, rows_of_child, setup_of_child
from .peers.all import OURS, installed
from .peers.peer import Work
from .peers.sqlalchemy_async import StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Report, Row, Table, at_least, ratio, select, times, unique
from .throughput import OURS as NAMES
from .throughput import one, speed, summarise

TITLE = f"Writes with fsync {DELAY_MS:g} ms slower"
OPERATIONS: dict[Work, int] = {"insert": 800, "change": 800}
GOALS: dict[str, tuple[float, float]] = {"insert": (25, 6), "change": (25, 6)}
SECONDS = 0.5
ON_BOTH = (*OURS, StockOrm, SyncOrm)
"""Those that are measured on the disk as it is as well, each time just before."""
KEPT = 0.9
"""How much of the throughput on the faster disk is wanted."""


def measure(setup: Setup) -> Iterator[Row]:
    """The writes of `throughput` in a child process that has the slow fsync."""
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
        for work, operations in OPERATIONS.items():
            for peer in (each for each in peers if work in each.works):
                for disk in DISKS if peer in ON_BOTH else (SLOW,):
                    change_to(disk)
                    row = one(setup, number, peer, work, operations, SECONDS)
                    print(json.dumps({**row, "disk": disk}), flush=True)


def report(rows: list[Row]) -> Report:
    slow = select(rows, disk=SLOW)
    out = summarise(slow, GOALS)
    for goal in out.goals:
        goal.what = f"{SLOW}: {goal.what}"
    works = unique(row["work"] for row in rows)
    table = Table(f"Throughput with fsync {DELAY_MS:g} ms slower, to this disk", ["", *works])
    for peer in unique(row["peer"] for row in select(rows, disk=HERE)):
        line = [peer]
        for work in works:
            fast, later = (select(rows, peer=peer, work=work, disk=disk) for disk in DISKS)
            kept = ratio([each for each in later if each["way"] == fast[0]["way"]], fast, speed)
            line.append(times(kept))
            if peer in NAMES:
                out.goals.append(at_least(f"{work}, {peer}: slower disk to this", KEPT, kept))
        table.rows.append(line)
    out.tables.append(table)
    return out


if __name__ == "__main__":
    main(sys.argv[1])
