"""How long does one who writes alone wait for the disk, and how many fsyncs is that?

The same inserts with and without waiting for the disk; the difference, to an fsync of the same
file system, is what durability costs. The processor's part falls out. Inserts and fsyncs of a file
beside it take turns, as a disk is now fast and now slow.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from qsession import create_async_engine as queued_engine
from qsession import stats

from .disks import DISKS, build, change_to, rows_of_child, setup_of_child
from .machine import fsync_probe
from .measure import settled
from .peers.peer import Peer, TaskPeer, ThreadPeer, prepare
from .peers.sqlalchemy_async import OursOrm, StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Report, Row, Table, median, quantile, select, unique

TITLE = "A lone writer"
INSERTS = 150
WARM = 30
"""Prediction and statistics of statements know by then what an insert is."""
FULL, NONE = WAITS = ("waits for the disk", "does not")


def _without_waiting(url: str) -> AsyncEngine:
    return queued_engine(url, durability="normal")


class _OursNormal(OursOrm):
    """Not durable: only a measure of what is not the disk's."""

    make = _without_waiting


def _off(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


def _stock_off(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _off)
    return engine


class _StockOff(StockOrm):
    """As above."""

    make = _stock_off


class _SyncOff(SyncOrm):
    """As above."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        event.listen(self.engine, "connect", _off)


PAIRS: dict[str, tuple[type[Peer], type[Peer]]] = {
    OursOrm.name: (OursOrm, _OursNormal),
    StockOrm.name: (StockOrm, _StockOff),
    SyncOrm.name: (SyncOrm, _SyncOff),
}


def measure(setup: Setup) -> Iterator[Row]:
    """In a child process, on the disk as it is and, where it can be made, on the slower one."""
    yield from rows_of_child(setup, __name__, build(setup.directory))


def main(text: str) -> None:
    """What the child does: print a row as JSON for each run."""
    setup, disks = setup_of_child(text)
    for number in range(1, setup.rounds + 1):
        for disk in disks:
            change_to(disk)
            for peer, pair in PAIRS.items():
                for kind, waits in zip(pair, WAITS, strict=True):
                    row = {"round": number, "disk": disk, "peer": peer, "waits": waits}
                    print(json.dumps({**row, **_run(kind, setup)}), flush=True)


def _run(kind: type[Peer], setup: Setup) -> Row:
    file = setup.directory / "lone.db"
    prepare(file, wal=kind.wal)
    peer = kind(file)
    times = _Times()
    with fsync_probe(setup.directory) as probe:
        if isinstance(peer, TaskPeer):
            syncs = asyncio.run(_in_task(peer, setup.scaled(INSERTS), times, probe))
        else:
            assert isinstance(peer, ThreadPeer)
            syncs = None
            _in_thread(peer, setup.scaled(INSERTS), times, probe)
    return {
        "p50": quantile(times.inserts, 0.5),
        "p99": quantile(times.inserts, 0.99),
        "fsync": quantile(times.fsyncs, 0.5),
        "syncs": syncs,
    }


@dataclass
class _Times:
    """Seconds of each."""

    inserts: list[float] = field(default_factory=list)
    fsyncs: list[float] = field(default_factory=list)


async def _in_task(
    peer: TaskPeer, inserts: int, times: _Times, probe: Callable[[], float]
) -> float | None:
    """How many fsyncs there were for a commit, if the engine tells."""
    await peer.start()
    for i in range(WARM):
        await peer.insert(i)
    engine = peer.engine if isinstance(peer, OursOrm) else None
    before = 0 if engine is None else stats(engine).syncs
    with settled():
        for i in range(inserts):
            began = time.perf_counter()
            await peer.insert(i)
            times.inserts.append(time.perf_counter() - began)
            times.fsyncs.append(probe())
    syncs = None if engine is None else (stats(engine).syncs - before) / inserts
    await peer.stop()
    return syncs


def _in_thread(peer: ThreadPeer, inserts: int, times: _Times, probe: Callable[[], float]) -> None:
    peer.start()
    for i in range(WARM):
        peer.insert(i)
    with settled():
        for i in range(inserts):
            began = time.perf_counter()
            peer.insert(i)
            times.inserts.append(time.perf_counter() - began)
            times.fsyncs.append(probe())
    peer.stop()


def _fsyncs(full: list[Row], none: list[Row]) -> float:
    """What waiting for the disk takes, in fsyncs: the median of the rounds."""
    return median(
        (waits["p50"] - other["p50"]) / waits["fsync"]
        for waits, other in zip(full, none, strict=True)
    )


def report(rows: list[Row]) -> Report:
    out = Report([])
    for disk in (each for each in DISKS if select(rows, disk=each)):
        here = select(rows, disk=disk)
        fsync = median(row["fsync"] for row in here) * 1000
        table = Table(
            f"Insert and commit by one task, {disk}: an fsync takes {fsync:.2f} ms",
            ["", "p50 ms", "p99 ms", "p50 ms without waiting", "waits for the disk, in fsyncs"],
        )
        table.head.append("fsyncs a commit")
        for peer in unique(row["peer"] for row in here):
            full, none = (select(here, peer=peer, waits=each) for each in WAITS)
            cost = _fsyncs(full, none)
            syncs = [row["syncs"] for row in full if row["syncs"] is not None]
            ms = [median(row[name] for row in full) * 1000 for name in ("p50", "p99")]
            table.rows.append(
                [
                    peer,
                    *(f"{each:.2f}" for each in ms),
                    f"{median(row['p50'] for row in none) * 1000:.2f}",
                    f"{cost:.2f}",
                    f"{median(syncs):.2f}" if syncs else "",
                ]
            )
        out.tables.append(table)
    return out


if __name__ == "__main__":
    main(sys.argv[1])
