"""Which processes hold locks on a database file, as far as the system tells."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process with a lock of SQLite's on a database."""

    pid: int
    lock: str
    """``write`` (the write lock of WAL mode) or ``file`` (a lock on the database file itself)."""

    def __str__(self) -> str:
        return describe_process(self.pid)


def describe_process(pid: int) -> str:
    """A process in words: its id, and its command line where that can be read."""
    if pid == os.getpid():
        return f"this process (pid {pid})"
    command = command_line(pid)
    return f"pid {pid} ({command})" if command else f"pid {pid}"


def command_line(pid: int, limit: int = 200) -> str:
    """The command line of a process; empty where it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        text = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        text = _ask_psutil(pid)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def lock_holders(path: str) -> list[LockHolder]:
    """Who holds SQLite's locks on a database, from the kernel's lock table; empty off Linux.

    In WAL mode the write lock is byte 120 of the ``-shm`` file
    (https://sqlite.org/walformat.html#wal_locks). In the database file itself, a reader of WAL mode
    has a shared lock, which is in nobody's way; an exclusive one locks everybody out.
    """
    try:
        table = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    shared, database = _inode(f"{path}-shm"), _inode(path)
    found = {}
    for line in table:
        words = line.split()
        if "->" in words or len(words) < 8 or words[1] not in ("POSIX", "OFDLCK"):
            continue
        _, _, _, kind, pid, inode, start, end = words[:8]
        inode = inode.rpartition(":")[2]
        last = float("inf") if end == "EOF" else int(end)
        if kind != "WRITE" or int(pid) <= 0:
            continue
        if inode == shared and int(start) <= 120 <= last:
            found[int(pid)] = LockHolder(int(pid), "write")
        elif inode == database:
            found.setdefault(int(pid), LockHolder(int(pid), "file"))
    return list(found.values())


def lock_owner(path: str) -> str:
    """Who is in the way of a writer, for a message."""
    holders = lock_holders(path)
    return " and ".join(map(str, holders)) or "a process that the system does not name"


def _inode(path: str) -> str | None:
    try:
        return str(os.stat(path).st_ino)
    except OSError:
        return None


def _ask_psutil(pid: int) -> str:
    try:
        import psutil

        return " ".join(psutil.Process(pid).cmdline())
    except Exception:
        return ""
