"""A disk that is full, and room again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from odd_ground import run


def make(path: Path) -> None:
    """An empty table in WAL mode."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        connection.commit()


def rows_of(path: Path) -> int:
    """What another program counts, after it has looked whether the file is sound."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


def test_files_may_not_grow(tmp_path: Path) -> None:
    """At a limit on the size of files writes fail with advice, reads go on, nothing is lost."""
    path = tmp_path / "a.db"
    make(path)
    seen = run("limited", path)
    assert 0 < seen["written"] < 20
    assert seen["full"] == seen["written"]
    assert seen["later"] == "written"
    assert seen["rows"] == seen["written"] + 1 == rows_of(path)
    assert seen["holder"] is None
    for error in seen["errors"]:
        assert "check the disk, quotas and limits on file sizes" in error
        assert "database is locked" not in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(small_disk: Path) -> None:
    """On a full disk writes say so and reads go on; once there is room, everything works again."""
    path = small_disk / "a.db"
    make(path)
    seen = run("small_disk", path)
    assert 0 < seen["written"] < 100
    assert f"the disk has no space left for '{path}', or the limit of " in seen["error"]
    assert "the transaction was not written" in seen["error"]
    assert seen["full"] == seen["written"]
    assert seen["later"] == "written"
    assert seen["rows"] == seen["written"] + 1 == rows_of(path)
