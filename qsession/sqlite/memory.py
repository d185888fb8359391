"""Memory databases: a private file in memory-backed storage, so that they behave as files do.

SQLite's own ``:memory:`` belongs to one connection, and its shared cache lets a reader wait for a
writer or see what was never committed. A file in WAL mode has the semantics that sessions need. It
lies where the system keeps files in memory (``/dev/shm`` on Linux), else among the temporary
files, readable by this user only, and is deleted with its engine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref

from sqlalchemy.engine import URL

from .lockfiles import names

_IN_MEMORY = os.path.join(os.sep, "dev", "shm")
_named: weakref.WeakValueDictionary[str, MemoryDatabase] = weakref.WeakValueDictionary()


class MemoryDatabase:
    """The folder of one memory database; it is deleted when nobody refers to it any more."""

    def __init__(self) -> None:
        parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
        self._folder = tempfile.mkdtemp(prefix="qsession-", dir=parent)
        self.path = os.path.join(self._folder, "memory.db")
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._pid = os.getpid()
        weakref.finalize(self, _delete, self._folder, self._pid)

    def enter(self, user: object) -> None:
        """``user`` has connections to it from now on."""
        self._users.add(user)

    def leave(self, user: object) -> None:
        """``user`` has closed its connections. With the last one all data is forgotten."""
        self._users.discard(user)
        if self._users or os.getpid() != self._pid:
            return
        files = [self.path + suffix for suffix in ("", "-wal", "-shm", "-journal")]
        for each in (*files, *names(self.path)):
            try:
                os.unlink(each)
            except FileNotFoundError:
                continue


def _delete(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not delete its parent's database
        shutil.rmtree(folder, ignore_errors=True)


def memory_database(url: URL) -> MemoryDatabase | None:
    """The memory database a URL names; None if it names a file.

    A shared-cache URL (``file:name?mode=memory&cache=shared&uri=true``) is the same database for
    every engine of this process; any other is the engine's own.
    """
    name = url.database or ""
    if name in ("", ":memory:"):
        return MemoryDatabase()
    shared = url.query.get("cache") == "shared"
    if url.query.get("vfs") == "memdb":
        shared = name.startswith("file:/")  # https://sqlite.org/src/file/src/memdb.c
    elif url.query.get("mode") != "memory" and name != "file::memory:":
        return None
    if not shared:
        return MemoryDatabase()
    found = _named.get(name)
    if found is None:
        found = _named[name] = MemoryDatabase()
    return found
