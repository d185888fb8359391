"""A process that writes to a file by plain sqlite3 and prints each row that is committed.

``python follow_writer.py FILE``. It ends when its standard input ends, or the file has moved.
"""

from __future__ import annotations

import select
import sqlite3
import sys
from itertools import count


def main(file: str) -> None:
    """Rows that come, change and go, in one transaction each."""
    raw = sqlite3.connect(file, timeout=60, isolation_level=None)
    for n in count(1000):
        if select.select([sys.stdin], [], [], 0.02)[0]:
            return
        try:
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("INSERT INTO words VALUES (?, ?)", (f"w{n}", n))
            raw.execute("INSERT OR REPLACE INTO words VALUES (?, 7)", (f"r{n}",))
            raw.execute("INSERT OR REPLACE INTO places VALUES (?, 0, ?)", (n % 5, str(n)))
            raw.execute("DELETE FROM entries WHERE x = ?", (n - 10,))
            raw.execute("INSERT INTO entries VALUES (?, 'w')", (n,))
            raw.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            if "has moved to" not in str(error):
                raise
            return
        print(n, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
