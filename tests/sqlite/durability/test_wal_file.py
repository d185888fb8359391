"""The descriptor with which a WAL is synced, where the process has none left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from qsession.sqlite.durability import wal_file
from qsession.sqlite.durability.wal_file import WalFile
from qsession.sqlite.files.filesystem import file_identity
from qsession.testing import slow_disk


@pytest.fixture
def wal(tmp_path: Path) -> Any:
    """The WAL of a database."""
    (tmp_path / "a.db").write_bytes(b"pages")
    (tmp_path / "a.db-wal").write_bytes(b"frames")
    identity = file_identity(str(tmp_path / "a.db"))
    assert identity is not None
    made = WalFile(str(tmp_path / "a.db"), identity)
    yield made
    made.close()


class Descriptors:
    """None is left until as many have asked as it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: float) -> None:
        self.refused = refused
        self.asked: list[str] = []
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(wal_file, "RETRY", 0)

    def open(self, path: str, flags: int, *args: int) -> int:
        self.asked.append(os.path.basename(path))
        if len(self.asked) <= self.refused:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._open(path, flags, *args)


def test_a_sync_waits_for_a_descriptor(wal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has not failed, so the commit is confirmed as soon as there is one."""
    descriptors = Descriptors(monkeypatch, refused=2)
    with slow_disk() as disk:
        assert wal.sync()
    assert descriptors.asked[:3] == ["a.db-wal"] * 3
    assert disk.syncs == 1


def test_there_is_an_end_to_it(wal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for a descriptor that does not come."""
    Descriptors(monkeypatch, refused=float("inf"))
    monkeypatch.setattr(wal_file, "PATIENCE", 0)
    with pytest.raises(OSError, match="Too many open files"):
        wal.sync()
