"""What a peer is: the four operations of every comparison, on one small table.

An operation is a unit of work as a web request does it: it opens its own session, transaction
or connection, whatever the library calls it, and closes it. What it returns is checked once
before the clock starts, so that a peer that does less work does not win by it.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Literal

ROWS = 1_000
PAGE = 20
NAME = "x" * 20

Way = Literal["orm", "core", "driver"]
Work = Literal["get", "list", "insert", "change"]
WORKS: tuple[Work, ...] = ("get", "list", "insert", "change")
WRITES: tuple[Work, ...] = ("insert", "change")


class Peer(ABC):
    """One library in one set-up. `start` and `stop` are outside the measured time."""

    name: ClassVar[str]
    way: ClassVar[Way]
    works: ClassVar[tuple[Work, ...]] = WORKS
    wal: ClassVar[bool] = True
    """Whether the file is in WAL mode when the peer gets it. WAL mode is a property of the file."""

    def __init__(self, file: Path) -> None:
        self.file = file


class TaskPeer(Peer):
    """A peer for asyncio: its operations are coroutines, run in many tasks."""

    @abstractmethod
    async def start(self) -> None: ...
    @abstractmethod
    async def stop(self) -> None: ...
    @abstractmethod
    async def get(self, i: int) -> str: ...
    @abstractmethod
    async def list(self, i: int) -> int: ...
    @abstractmethod
    async def insert(self, i: int) -> None: ...
    @abstractmethod
    async def change(self, i: int) -> None: ...


class ThreadPeer(Peer):
    """A peer without asyncio. `threads` is false for one that runs alone in one thread."""

    threads: ClassVar[bool] = False

    @abstractmethod
    def start(self) -> None: ...
    @abstractmethod
    def stop(self) -> None: ...
    @abstractmethod
    def get(self, i: int) -> str: ...
    @abstractmethod
    def list(self, i: int) -> int: ...
    @abstractmethod
    def insert(self, i: int) -> None: ...
    @abstractmethod
    def change(self, i: int) -> None: ...


def row(i: int) -> int:
    """The row that the i-th get reads, or the i-th read-modify-write changes."""
    return 1 + i * 7919 % ROWS


def start_of_page(i: int) -> int:
    """The row after which the i-th page begins."""
    return i * 7919 % (ROWS - PAGE)


def prepare(file: Path, *, wal: bool) -> None:
    """Make the file anew, with `ROWS` rows in it."""
    for each in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))):
        each.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as db, db:
        if wal:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE item (id INTEGER PRIMARY KEY, n INTEGER NOT NULL,"
            " name VARCHAR(40) NOT NULL)"
        )
        db.executemany("INSERT INTO item VALUES (?, 0, ?)", ((i, NAME) for i in range(1, ROWS + 1)))


def written(file: Path, work: Work) -> int:
    """How many of the inserts, or of the changes, are in the file."""
    question = f"SELECT count(*) - {ROWS} FROM item"
    if work == "change":
        question = "SELECT sum(n) FROM item"
    with closing(sqlite3.connect(file)) as db:
        return int(db.execute(question).fetchone()[0])
