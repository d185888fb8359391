"""Reads while other programs want the processors too.

The system shares its processors among threads. One event loop is one thread; the stock engine has
one more for each connection.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .peers.peer import Peer
from .peers.sqlalchemy_async import OursOrm, OursSession, StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Report, Row, Table, median, ratio, select, times, unique
from .throughput import one, speed

TITLE = "Reads on a busy machine"
PEERS: tuple[type[Peer], ...] = (OursSession, OursOrm, StockOrm, SyncOrm)
OPERATIONS = 4_000
SECONDS = 1.0
EACH = 2
"""Programs that never wait, for each processor."""


def measure(setup: Setup) -> Iterator[Row]:
    """Gets by each peer, first alone, then beside programs that only compute."""
    for number in range(1, setup.rounds + 1):
        for others in (0, EACH * (os.cpu_count() or 1)):
            with _computing(others):
                for peer in PEERS:
                    row = one(setup, number, peer, "get", OPERATIONS, SECONDS)
                    yield {**row, "others": others}


@contextmanager
def _computing(number: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def report(rows: list[Row]) -> Report:
    table = Table("get: operations per second", ["", "alone", "to stock", "beside", "to stock"])
    table.head.append("kept")
    most = max(row["others"] for row in rows)
    table.title += f", alone and beside {most} programs that compute"
    for peer in unique(row["peer"] for row in rows):
        alone, beside = (select(rows, peer=peer, others=each) for each in (0, most))
        shown = []
        for mine, others in ((alone, 0), (beside, most)):
            stock = select(rows, peer=StockOrm.name, others=others)
            shown += [f"{median(map(speed, mine)):,.0f}", times(ratio(mine, stock, speed))]
        table.rows.append([peer, *shown, times(ratio(beside, alone, speed))])
    return Report([table])
