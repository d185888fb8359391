"""The processes that hold locks on a database file, as far as the system tells."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LOCKS = Path("/proc/locks")


def shorten(sql: str, limit: int = 200) -> str:
    """A statement on one line, cut to ``limit`` characters."""
    text = " ".join(sql.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def describe_process(pid: int) -> str:
    """A process in words: its id, and its command line if that can be read."""
    if pid == os.getpid():
        return f"this process (pid {pid}), but not by this engine"
    command = command_line(pid)
    return f"pid {pid} ({command})" if command else f"pid {pid}"


def command_line(pid: int) -> str:
    """The command line of a process; empty if it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        text = raw.replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        text = _ask_psutil(pid)
    return shorten(text)


def lock_holders(path: str) -> list[int]:
    """The processes that hold SQLite's write locks, from the kernel's lock table. Linux only.

    In WAL mode the write lock is byte 120 of the ``-shm`` file
    (https://sqlite.org/walformat.html#wal_locks). On the database file itself, a connection in WAL
    mode has a shared lock, which blocks no writer. An exclusive lock there blocks all others.
    """
    try:
        table = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    shared, database = _inode(f"{path}-shm"), _inode(path)
    found: dict[int, None] = {}
    for line in table:
        words = line.split()
        if "->" in words or len(words) < 8 or words[1] not in ("POSIX", "OFDLCK"):
            continue
        _, _, _, kind, pid, inode, start, end = words[:8]
        inode = inode.rpartition(":")[2]
        last = float("inf") if end == "EOF" else int(end)
        if kind != "WRITE" or int(pid) <= 0:
            continue
        if inode == database or (inode == shared and int(start) <= 120 <= last):
            found[int(pid)] = None
    return list(found)


def users(path: str) -> list[int]:
    """The processes that have a file open, as far as this user can see. Needs psutil."""
    import psutil

    wanted = os.stat(path)
    found = []
    for process in psutil.process_iter():
        try:
            names = [each.path for each in process.open_files()]
            same = [each for each in names if os.path.basename(each) == os.path.basename(path)]
            if any(os.path.samestat(os.stat(each), wanted) for each in same):
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


def user_names(path: str) -> str:
    """The other processes that have a file open, in words; empty if unknown."""
    with suppress(ImportError, OSError):
        others = [each for each in users(path) if each != os.getpid()]
        return ", ".join(map(describe_process, others))
    return ""


def lock_owner(path: str) -> str:
    """The process that blocks a writer, for a message.

    If the system has no table of locks, it names all processes that have the file open. Finding
    them may take a second, which is acceptable after a timeout.
    """
    holders = [describe_process(each) for each in lock_holders(path)]
    if holders:
        return " and ".join(holders)
    if not _LOCKS.exists() and (others := user_names(path)):
        return f"one of the processes that have it open: {others}"
    return "an unknown process"


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
