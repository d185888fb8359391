"""Programs that know nothing of qsession, as processes of their own, and what they do to a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qsession.testing import Program

PRELUDE = """
import sqlite3, sys, threading
path = sys.argv[1]

def connect(timeout=0):
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)

def until_busy():
    "Return when somebody holds the write lock."
    with_lock = connect()
    while True:
        try:
            with_lock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            with_lock.close()
            return
        with_lock.execute("ROLLBACK")

raw = connect()
"""

PROGRAMS = {
    "BEGIN IMMEDIATE": """
raw.execute("BEGIN IMMEDIATE")
raw.execute("INSERT INTO t VALUES (0)")
held()
raw.execute("COMMIT")
""",
    "BEGIN EXCLUSIVE": """
raw.execute("BEGIN EXCLUSIVE")
raw.execute("INSERT INTO t VALUES (0)")
held()
raw.execute("COMMIT")
""",
    "VACUUM": """
raw.execute("INSERT INTO t VALUES (0)")
raw.execute("CREATE TABLE filler AS WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) SELECT i FROM n")
asked = []
def in_the_middle():
    if not asked:
        asked.append(until_busy())
        held()
raw.set_progress_handler(in_the_middle, 5000)
raw.execute("VACUUM")
""",
    "wal_checkpoint(TRUNCATE)": """
reader, writer = connect(), connect()
reader.execute("BEGIN")
reader.execute("SELECT * FROM t").fetchall()
writer.execute("INSERT INTO t VALUES (0)")  # so that the checkpoint has to wait for the reader
patient = connect(timeout=600)
checkpoint = threading.Thread(
    target=lambda: patient.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
)
checkpoint.start()
until_busy()
held()
reader.execute("COMMIT")
checkpoint.join()
""",
}
"""What holds the write lock of a file in WAL mode; each also adds a row to ``t``."""

LOCKED_FOR_GOOD = """
raw.execute("PRAGMA locking_mode=EXCLUSIVE")
raw.execute("INSERT INTO t VALUES (0)")
held()
raw.close()
"""

IN_ROLLBACK_MODE = """
raw.execute("BEGIN EXCLUSIVE")
raw.execute("INSERT INTO t VALUES (0)")
held()
raw.execute("COMMIT")
raw.close()
"""

LEAVES_HOT_JOURNAL = """
raw.execute("PRAGMA cache_size=1")
raw.execute("BEGIN")
raw.execute("DELETE FROM t")
raw.execute("INSERT INTO t SELECT randomblob(5000) FROM (VALUES (1), (2), (3), (4), (5))")
held()
"""

CHANGES_JOURNAL_MODE = """
print(raw.execute("PRAGMA journal_mode=DELETE").fetchone()[0], flush=True)
"""


def program(path: Path, code: str) -> Program:
    """A program on a file, with what the prelude defines, up to its ``held()``."""
    return Program(PRELUDE + code, path)


def run(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
