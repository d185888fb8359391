"""How long writers wait at the switch of `qsession copy --follow`, and how fast rows are copied.

``python -m benchmarks.follow TARGET_URL [ROWS] [WRITES_PER_SECOND]`` makes a file of one table with
six columns, and writes to it from another process while it is followed. The target must be empty.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from qsession.transfer.events import Progress, Stage
from qsession.transfer.following.run import follow
from qsession.transfer.options import Options, url_of

_TABLES = """
PRAGMA journal_mode=WAL;
CREATE TABLE customers (id INTEGER PRIMARY KEY, name VARCHAR(40));
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers, price FLOAT,
    placed DATETIME, paid BOOLEAN, note VARCHAR(100)
);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
INSERT INTO customers SELECT i, 'customer ' || i FROM n;
"""
_ORDERS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO orders
SELECT i, i % 1000 + 1, i / 7.0, '2024-01-01 12:00:00', i % 2, 'note ' || i FROM n
"""
_INSERT = "INSERT INTO orders VALUES (NULL, ?, 1.5, '2024-01-01 12:00:00', 1, 'new')"
_UPDATE = "UPDATE orders SET paid = NOT paid, note = 'changed' WHERE id = ?"


def write(file: str, each_second: float) -> None:
    """Write in time, an insert and an update in turn, until the file refuses it."""
    raw = sqlite3.connect(file, timeout=60, isolation_level=None)
    start, n = time.monotonic(), 0
    while True:
        n += 1
        time.sleep(max(0.0, start + n / each_second - time.monotonic()))
        try:
            raw.execute(*((_INSERT, (n % 1000 + 1,)) if n % 2 else (_UPDATE, (n * 37 % 900_000,))))
        except sqlite3.IntegrityError:
            break
    seconds = time.monotonic() - start
    print(f"{n:,} writes in {seconds:.1f} s, {n / seconds:.0f} a second")


def measure(target: str, rows: int, each_second: float) -> None:
    """Print the figures of one move."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.db"
        with closing(sqlite3.connect(file)) as raw:
            raw.executescript(_TABLES)
            raw.execute(_ORDERS, (rows,))
            raw.commit()
        command = [
            sys.executable,
            "-m",
            "benchmarks.follow",
            "--write",
            str(file),
            str(each_second),
        ]
        with subprocess.Popen(command) as writer:
            began: dict[Stage, float] = {}

            def progress(step: Progress) -> None:
                began.setdefault(step.stage, time.monotonic())

            options = Options(None, False, False, False, False, "UTC", progress)
            source = url_of(f"sqlite:///{file}")
            try:
                move = asyncio.run(follow(source, url_of(target), options, switch=True))
            except BaseException:
                writer.kill()
                raise
        copied = began[Stage.FOLLOWING] - began[Stage.COPYING]
        compared = began[Stage.SWITCHING] - began[Stage.COMPARING]
        print(f"copied {rows / copied:,.0f} rows/s, compared {rows / compared:,.0f} rows/s")
        print(f"{move.changes:,} changes followed; writers waited for {move.waited:.2f} s")


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(sys.argv[2], float(sys.argv[3]))
    else:
        count, rate = [*sys.argv[2:], *("1000000", "200")[len(sys.argv) - 2 :]]
        measure(sys.argv[1], int(count), float(rate))
