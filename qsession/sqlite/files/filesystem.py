"""The file system on which a database lies, and its other names.

WAL mode needs memory that all programs with the file share, and a single name of the file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from functools import lru_cache
from pathlib import Path

NETWORK = frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "ceph", "lustre"),
        *("glusterfs", "beegfs", "gpfs", "ocfs2", "gfs2", "davfs", "fuse.sshfs", "fuse.rclone"),
        *("fuse.glusterfs", "fuse.s3fs", "fuse.davfs", "fuse.cephfs"),
    }
)
"""The Linux names of file systems that several machines may use at once."""
_MOUNTS = Path("/proc/self/mountinfo")
_warned: set[str] = set()

logger = logging.getLogger("qsession")


def file_system(path: str) -> str | None:
    """The Linux name of the file system of a file; None on other systems."""
    try:
        return _of_device(os.stat(path).st_dev)
    except OSError:
        return None


def refuse_network(path: str) -> None:
    """Raise ``sqlite3.OperationalError`` for a file on a network file system.

    Each machine would have its own memory-mapped index of the WAL, and overwrite commits of the
    others (https://sqlite.org/wal.html, "Overview", 2).
    """
    kind = file_system(path) if path else None
    if kind in NETWORK:
        raise sqlite3.OperationalError(
            f"{path!r} is on a network file system ({kind}), where SQLite's WAL mode can damage "
            "it. Move the file to a local disk, or use a server: the same code runs on PostgreSQL "
            "with a different URL"
        )


def file_identity(path: str) -> tuple[int, ...] | None:
    """Device and inode of a file; None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def hard_links(path: str) -> int:
    """The number of other hard links to the file."""
    try:
        return os.stat(path).st_nlink - 1
    except OSError:
        return 0


def warn_of_links(path: str) -> None:
    """Log a warning, once for each file, that it has other hard links.

    Symbolic links are resolved to one name. A hard link is another name, and SQLite keeps the WAL
    and its locks by name (https://sqlite.org/howtocorrupt.html, 2.5). It is not an error, because a
    hard link made by a backup program is harmless.
    """
    if path and path not in _warned and hard_links(path) > 0:
        _warned.add(path)
        logger.warning(
            "%r has another name, a hard link. Never open the file by both names: each name has "
            "its own WAL, and commits are lost. Use symbolic links or copies instead.",
            path,
        )


@lru_cache(maxsize=64)
def _of_device(device: int) -> str | None:
    """See proc_pid_mountinfo(5): the third field is the device, the kind follows a dash."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    except (OSError, IndexError):
        pass
    return None
