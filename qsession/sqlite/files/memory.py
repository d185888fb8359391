"""Memory databases: private files in memory-backed storage, which behave like other files.

SQLite's own ``:memory:`` belongs to one connection. With its shared cache a reader waits for a
writer, or sees uncommitted data. A file in WAL mode has the semantics that sessions need. The file
is in memory (``/dev/shm`` on Linux) or in the folder for temporary files. Only this user can read
it, and it is deleted with its engine. The process holds a lock on its folder, so that later
processes can recognize and delete the folder of a killed process.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import warnings
import weakref
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from qsession.sqlite.processes import locking

_PREFIX = "qsession-memory-"
_FILE = "memory.db"
_IN_MEMORY = os.path.join(os.sep, "dev", "shm")
_named: weakref.WeakValueDictionary[str, MemoryDatabase] = weakref.WeakValueDictionary()


class MemoryDatabase:
    """The folder of one memory database.

    It is created with the first connection, and deleted when the last engine has closed its
    connections, even if SQLAlchemy keeps the dialect alive.
    """

    def __init__(self) -> None:
        self._path = ""
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._delete: weakref.finalize[Any, Any] | None = None

    def enter(self, user: object) -> str:
        """Note that ``user`` begins to use it. Returns the path of the file."""
        self._users.add(user)
        if self._delete is None:
            roomy = os.access(_IN_MEMORY, os.W_OK | os.X_OK)
            parent = _IN_MEMORY if roomy else tempfile.gettempdir()
            sweep(parent)
            folder, lock = _make_folder(parent)
            self._path = os.path.join(folder, _FILE)
            self._delete = weakref.finalize(self, _delete, folder, os.getpid(), lock)
        return self._path

    def leave(self, user: object) -> None:
        """Note that ``user`` has closed its connections. The last one deletes all data."""
        self._users.discard(user)
        if not self._users and self._delete is not None:
            self._delete()
            self._delete = None


def _delete(folder: str, pid: int, lock: int | None) -> None:
    if os.getpid() == pid:  # a forked child must not delete its parent's database
        shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _make_folder(parent: str) -> tuple[str, int | None]:
    """A new folder, which is locked while the file descriptor is open."""
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        if sys.platform == "win32":
            return folder, None  # Windows cannot open a folder
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: str) -> int | None:
    """Lock a new folder; None if another process has already swept it as abandoned."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks, on which no process can sweep it
        locking.system.lock(opened)
    if os.path.exists(folder):
        return opened
    os.close(opened)
    return None


@lru_cache(maxsize=4)
def sweep(parent: str) -> None:
    """Delete the folders of dead processes, once in each process.

    A live process holds a lock on its folder, and after locking it checks that the folder still
    exists. So a folder that can be locked is abandoned. A process id would not tell, because the
    process may be alive in another container.
    """
    if sys.platform == "win32":
        return
    for folder in Path(parent).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or another process has deleted it
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if locking.system.try_lock(opened):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(opened)


def memory_database(url: URL) -> MemoryDatabase | None:
    """The memory database that a URL names; None if it names a file.

    A shared-cache URL (``file:name?mode=memory&cache=shared&uri=true``) is the same database for
    all engines of this process. Any other URL is a separate database for each engine.
    """
    name = url.database or ""
    if url.host is not None:
        return None  # SQLAlchemy refuses it, and shows the URL as it was given
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
        _warn_of_another(name, url)
        found = _named[name] = MemoryDatabase()
    return found


def _warn_of_another(name: str, url: URL) -> None:
    """Warn if SQLite itself has a memory database of this name, made through another driver."""
    options = "&".join(f"{key}={value}" for key, value in url.query.items() if key in _PLACES)
    address = name if name.startswith("file:") else f"file:{name}"
    with closing(sqlite3.connect(f"{address}?{options}", uri=True)) as raw:
        if raw.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            warnings.warn(
                f"An engine that is not qsession's has a memory database {name!r} with tables. "
                "Engines of qsession do not see it: they use a separate database of this name. "
                "Create all engines with qsession, or use a file.",
                UserWarning,
                stacklevel=2,
            )


_PLACES = ("mode", "cache", "vfs")
