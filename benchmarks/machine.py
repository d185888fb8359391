"""What the figures were measured on, as far as it matters and without naming anyone."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = (
    "qsession", "SQLAlchemy", "aiosqlite", "greenlet",
    "peewee", "tortoise-orm", "piccolo", "aiosqlitepool",
)  # fmt: skip


def describe(directory: Path) -> dict[str, str]:
    """The machine, the disk under `directory`, and the versions."""
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "processors": f"{os.cpu_count()} virtual cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "disk": f"{_file_system(directory)}; {fsync_ms(directory):.2f} ms for a 4 KiB fdatasync",
        "load": f"{psutil.getloadavg()[0]:.1f} processes wanted to run when it began",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{name: _version(name) for name in PACKAGES},
    }


def fsync_ms(directory: Path, times: int = 50) -> float:
    """The median time in milliseconds of writing 4 KiB and waiting for the disk to have it."""
    with fsync_probe(directory) as probe:
        return statistics.median(probe() for _ in range(times)) * 1000


@contextmanager
def fsync_probe(directory: Path) -> Iterator[Callable[[], float]]:
    """Each call writes 4 KiB and says how many seconds the disk took to have them."""
    file = directory / "fsync.probe"
    handle = os.open(file, os.O_CREAT | os.O_WRONLY)
    sync = getattr(os, "fdatasync", os.fsync)

    def probe() -> float:
        os.write(handle, b"x" * 4096)
        began = time.perf_counter()
        sync(handle)
        return time.perf_counter() - began

    try:
        yield probe
    finally:
        os.close(handle)
        file.unlink()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _file_system(directory: Path) -> str:
    """The kind of the file system and of the device, as ``ext4 on a virtual disk``."""
    mounts = [
        each
        for each in psutil.disk_partitions(all=True)
        if directory.resolve().is_relative_to(each.mountpoint)
    ]
    if not mounts:
        return "unknown"
    mount = max(mounts, key=lambda each: len(each.mountpoint))
    device = Path(mount.device).name
    kind = "a virtual disk" if device.startswith(("vd", "xvd")) else "a disk"
    if device.startswith("nvme"):
        kind = "an NVMe disk"
    return f"{mount.fstype} on {kind}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
