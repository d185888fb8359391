"""On which kind of file system a database lies; WAL needs memory that all its users share."""

from __future__ import annotations

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
"""The names by which Linux mounts file systems that several machines may use at once."""
_MOUNTS = Path("/proc/self/mountinfo")


def file_system(path: str) -> str | None:
    """The kind of file system a file lies on, as Linux names it; None elsewhere."""
    try:
        return _of_device(os.stat(path).st_dev)
    except OSError:
        return None


def refuse_network(path: str) -> None:
    """Raise ``sqlite3.OperationalError`` for a file that other machines may use as well.

    Each would have its own memory-mapped index of the WAL, and overwrite what the others committed
    (https://sqlite.org/wal.html, "Overview", 2).
    """
    kind = file_system(path) if path else None
    if kind in NETWORK:
        raise sqlite3.OperationalError(
            f"{path!r} lies on a network file system ({kind}), where SQLite's WAL mode can damage "
            "it. Put the file on a local disk, or use a server: the same code runs on PostgreSQL "
            "with another URL"
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
