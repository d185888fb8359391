"""A program that copies the WAL of a database as Litestream does, and runs the checkpoints."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

HEADER, FRAME = 32, 24
"""Bytes of the header of a WAL, and of a frame (https://sqlite.org/fileformat2.html#walformat)."""


def wal_of(path: Path) -> tuple[bytes, int]:
    """The salts and the size of the WAL of a database."""
    data = Path(f"{path}-wal").read_bytes()
    return data[16:24], len(data)


class Copier:
    """Copies each frame of the WAL to a replica. It reads its own table all the time, so that
    nobody restarts the WAL before it has copied it.

    It raises ``AssertionError`` if somebody else has restarted or cut the WAL.
    """

    def __init__(self, path: Path, replica: Path, checkpoint_at: int) -> None:
        self.path, self.replica = path, replica
        self.checkpoint_at = checkpoint_at
        """The number of frames after which it runs a checkpoint."""
        self.checkpoints = 0
        self.compared = 0
        self._writer, self._reader = _connect(path), _connect(path)
        self._writer.execute("CREATE TABLE IF NOT EXISTS _litestream_seq (id PRIMARY KEY, seq)")
        (self._page,) = self._writer.execute("PRAGMA page_size").fetchone()
        self._salt, self._size = b"", 0
        self._position = HEADER
        self._may_restart = True
        replica.write_bytes(path.read_bytes())
        self._read()

    def sync(self) -> None:
        """Copy what is new, compare both, and run a checkpoint if one is due."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._copy()
            self._compare()
            if self._position >= HEADER + self.checkpoint_at * (FRAME + self._page):
                self._checkpoint()
            self._writer.execute(
                "INSERT INTO _litestream_seq VALUES (1, 1) ON CONFLICT DO UPDATE SET seq = seq + 1"
            )
        finally:
            self._writer.execute("COMMIT")
        self._reader.execute("ROLLBACK")
        self._read()

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def _read(self) -> None:
        self._reader.execute("BEGIN")
        self._reader.execute("SELECT count(*) FROM _litestream_seq").fetchone()

    def _copy(self) -> None:
        """While it holds the write lock, so what is in the WAL is committed."""
        wal = Path(f"{self.path}-wal").read_bytes()
        salt = wal[16:24]
        if salt != self._salt:
            assert self._may_restart, "somebody else restarted the WAL"
            self._salt, self._position, self._may_restart = salt, HEADER, False
        else:
            assert len(wal) >= self._size, "somebody cut the WAL"
        self._size = len(wal)
        pages: list[tuple[int, bytes]] = []
        step = FRAME + self._page
        with self.replica.open("r+b") as replica:
            for at in range(self._position, len(wal) - step + 1, step):
                if wal[at + 8 : at + 16] != salt:  # left by the WAL before it was restarted
                    break
                number, pages_after = (int.from_bytes(wal[i : i + 4], "big") for i in (at, at + 4))
                pages.append((number, wal[at + FRAME : at + step]))
                if pages_after:  # the last frame of a transaction
                    for each, content in pages:
                        replica.seek((each - 1) * self._page)
                        replica.write(content)
                    replica.truncate(pages_after * self._page)
                    pages, self._position = [], at + step

    def _compare(self) -> None:
        with closing(_connect(self.path)) as source:
            assert content_of(self.replica) == list(source.iterdump())
        self.compared += 1

    def _checkpoint(self) -> None:
        """Nobody writes now. Its own read transaction ends, or it would be in the way."""
        self._reader.execute("ROLLBACK")
        busy, frames, done = self._reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._may_restart = not busy and frames == done
        self.checkpoints += self._may_restart
        self._read()


def content_of(file: Path) -> list[str]:
    """The schema and the rows of a file that nobody writes, after an integrity check."""
    address = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(raw.iterdump())


def _connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    raw = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
    raw.execute("PRAGMA wal_autocheckpoint=0")
    return raw
