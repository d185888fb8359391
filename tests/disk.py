"""A disk whose syncs begin and end when a test says so."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qsession.sqlite.durability import wal_file

PATIENCE = 60.0
"""Seconds after which a test has failed that waits for something that does not come."""


class Sync:
    """An fsync that has begun."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.fails = False
        self._over = threading.Event()

    def end(self) -> None:
        """Everything is on the disk."""
        self._over.set()

    def fail(self) -> None:
        """The disk is broken."""
        self.fails = True
        self._over.set()

    def last(self) -> None:
        """In the thread that syncs: wait for its end."""
        assert self._over.wait(PATIENCE)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Disk:
    """Takes the place of ``wal_file.fsync``."""

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[Sync] = queue.SimpleQueue()
        self.folders = 0
        self._is_open = False

    def fsync(self, file: int) -> None:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode):
            self.folders += 1
            return
        sync = Sync(found.st_ino)
        self.begun.put(sync)
        if self._is_open:  # open() has looked at those that had begun, and not at this one
            sync.end()
        sync.last()

    def sync(self) -> Sync:
        """The next one, once it has begun."""
        return self.begun.get(timeout=PATIENCE)

    async def next(self) -> Sync:
        """The same, while the loop goes on."""
        return await asyncio.to_thread(self.sync)

    @property
    def is_quiet(self) -> bool:
        """Whether no sync has begun that nobody has asked for."""
        return self.begun.empty()

    def open(self) -> None:
        """From now on each sync ends at once."""
        self._is_open = True
        while not self.begun.empty():
            self.begun.get().end()


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Nothing is synced by itself until the end."""
    disk = Disk()
    monkeypatch.setattr(wal_file, "fsync", disk.fsync)
    try:
        yield disk
    finally:
        disk.open()
