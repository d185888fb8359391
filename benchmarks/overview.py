"""The short table and the chart of the README: a few peers."""

from __future__ import annotations

from pathlib import Path

from .comparisons import plot
from .disks import HERE, SLOW
from .summary import Bars, Row, Table, median, select
from .throughput import speed

PEERS = (
    "qsession, AsyncSession(engine)",
    "stock",
    "stock, recipe",
    "aiosqlitepool",
    "peewee SqliteQueueDatabase",
    "Tortoise ORM",
)
WAYS = ("orm", "driver")
HEADS = {
    "overview": ["", "reads/s", "changes/s", f"inserts/s, {SLOW}"],
    "overview_ru": ["", "чтений", "изменений", "вставок, fsync дольше на 2 мс"],
}


def tables(throughput: list[Row], slow_fsync: list[Row]) -> dict[str, str]:
    """The table in each language."""
    slow = select(slow_fsync, disk=SLOW)
    lines = [_line(peer, throughput, slow) for peer in PEERS]
    return {name: Table("", head, lines).markdown() for name, head in HEADS.items()}


def capacity(throughput: list[Row], slow_fsync: list[Row], processes: list[Row]) -> str:
    """What one file carries, for the page that says when it is enough."""
    session = "qsession()"
    slow = select(slow_fsync, disk=SLOW)
    ours = [each for each in processes if each.get("peer") == PEERS[0] and "operations" in each]
    four = select(ours, disk=HERE, processes=4)
    figures = {
        f"`{session}`: get one row": _speed(session, "get", throughput),
        f"`{session}`: read, change, write one row": _speed(session, "change", throughput),
        f"`{session}`: insert one row": _speed(session, "insert", throughput),
        f"the same, {SLOW}": _speed(session, "insert", slow),
        "four processes of 50 tasks: commits of all together": median(map(speed, four)),
    }
    rows = [[name, f"{each:,.0f}"] for name, each in figures.items()]
    return Table("", ["", "a second"], rows).markdown()


def draw(throughput: list[Row], slow_fsync: list[Row], out: Path) -> bool:
    """Write ``overview.svg``; false where matplotlib is missing."""
    slow = select(slow_fsync, disk=SLOW)
    changes = [(each, _speed(each, "change", throughput)) for each in PEERS]
    inserts = [(each, _speed(each, "insert", slow)) for each in PEERS]
    charts = [
        Bars("Read, modify, write, commit", "a second", changes),
        Bars(f"Insert one row and commit, {SLOW}", "a second", inserts),
    ]
    return plot(charts, out, "overview")


def _line(peer: str, here: list[Row], slow: list[Row]) -> list[str]:
    reads, changes = (_speed(peer, work, here) for work in ("get", "change"))
    inserts = _speed(peer, "insert", slow)
    return [peer, f"{reads:,.0f}", f"{changes:,.0f}", f"{inserts:,.0f}"]


def _of(peer: str, work: str, rows: list[Row]) -> list[Row]:
    return [each for each in select(rows, peer=peer, work=work) if each["way"] in WAYS]


def _speed(peer: str, work: str, rows: list[Row]) -> float:
    """Operations in a second; 0 for a peer that was not installed."""
    found = _of(peer, work, rows)
    return median(map(speed, found)) if found else 0.0
