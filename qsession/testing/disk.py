"""Disks that are slow, fail, or sync when a test says so.

They stand between qsession and the system in this process: each fsync of a WAL that qsession makes
goes through them. What SQLite syncs itself, at a checkpoint for one, does not. With
``durability="normal"`` there is no fsync to wait for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from qsession.sqlite.durability import wal_file


@dataclass
class Disk:
    """What `slow_disk` does to each fsync. It may be changed at any time."""

    seconds: float = 0.0
    """How much longer it takes."""
    error: int | None = None
    """The `errno` of its failure, such as `errno.EIO` or `errno.ENOSPC`; None: it succeeds."""
    syncs: int = 0
    """How many have begun."""

    def _sync(self, sync: Callable[[], None], inode: int) -> None:
        self.syncs += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        sync()


@contextmanager
def slow_disk(
    seconds: float = 0.0,
    *,
    error: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Iterator[Disk]:
    """A ``with`` block in which each fsync of a WAL takes ``seconds`` more, and may fail.

    ``error``: it fails with this `errno`, and the commits that it covers raise `DurabilityError`.
    ``path`` limits this to one database; without it, all of this process.
    """
    disk = Disk(seconds, error)
    with _each_fsync(disk._sync, path):
        yield disk


class HeldSync:
    """An fsync that has begun. It ends when `end` or `fail` is called."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        """The inode of the WAL."""
        self._error: int | None = None
        self._over = threading.Event()

    def end(self) -> None:
        """Let it succeed."""
        self._over.set()

    def fail(self, error: int = errno.EIO) -> None:
        """Let it fail with this `errno`."""
        self._error = error
        self._over.set()

    def _last(self) -> None:
        self._over.wait()
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))


class HeldDisk:
    """What `held_disk` gives: the fsyncs, one after the other, in the order in which they begin."""

    def __init__(self) -> None:
        self._begun: queue.SimpleQueue[HeldSync | None] = queue.SimpleQueue()
        self._held: list[HeldSync] = []
        self._is_open = False

    def _sync(self, sync: Callable[[], None], inode: int) -> None:
        held = HeldSync(inode)
        self._held.append(held)
        self._begun.put(held)
        if self._is_open:  # open() has looked at those that had begun, and not at this one
            held.end()
        held._last()
        sync()

    def next(self, timeout: float = 60.0) -> HeldSync:
        """The next fsync. Stops this thread until it has begun.

        Raises `TimeoutError` after ``timeout`` seconds, and at the end of the block.
        """
        try:
            held = self._begun.get(timeout=timeout)
        except queue.Empty:
            held = None
        if held is None:
            raise TimeoutError(f"no fsync of a WAL has begun within {timeout:g} s")
        return held

    async def begun(self, timeout: float = 60.0) -> HeldSync:
        """`next`, while the loop goes on. If cancelled, the next fsync may be missed."""
        return await asyncio.to_thread(self.next, timeout)

    @property
    def is_quiet(self) -> bool:
        """Whether no fsync has begun that nobody has asked for."""
        return self._begun.empty()

    def open(self) -> None:
        """From now on each fsync ends by itself, also those that have begun."""
        self._is_open = True
        for held in self._held:
            held.end()


@contextmanager
def held_disk(*, path: str | os.PathLike[str] | None = None) -> Iterator[HeldDisk]:
    """A ``with`` block in which an fsync of a WAL ends when the test says so.

    So a test can look at what happens while a commit waits for the disk, without a sleep. ``path``
    limits this to one database. At the end of the block all go on.
    """
    disk = HeldDisk()
    try:
        with _each_fsync(disk._sync, path):
            yield disk
    finally:
        disk.open()
        disk._begun.put(None)  # for a thread that still waits in next()


@contextmanager
def _each_fsync(
    act: Callable[[Callable[[], None], int], None], path: str | os.PathLike[str] | None
) -> Iterator[None]:
    real = wal_file.fsync

    def fsync(file: int) -> None:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode) or not _is_wal_of(path, found):
            real(file)
        else:
            act(lambda: real(file), found.st_ino)

    with patch.object(wal_file, "fsync", fsync):
        yield


def _is_wal_of(path: str | os.PathLike[str] | None, found: os.stat_result) -> bool:
    if path is None:
        return True
    try:
        return os.path.samestat(found, os.stat(f"{os.fspath(path)}-wal"))
    except FileNotFoundError:
        return False
