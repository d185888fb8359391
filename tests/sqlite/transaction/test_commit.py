"""What has to follow a commit, by how it reaches the disk and what is due."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from qsession.sqlite.driver.setup import Sync
from qsession.sqlite.durability.checkpoint import When
from qsession.sqlite.transaction.commit import Commit

CASES = [
    # sync, has a file, a sync has failed, due -> numbered, waits for the disk, keeps the ticket
    (Sync.SHARED, True, False, When.NOT, True, True, False),
    (Sync.SHARED, True, False, When.AFTER, True, True, False),
    (Sync.SHARED, True, False, When.HOLDING, True, True, True),
    (Sync.SHARED, True, True, When.NOT, True, True, True),
    (Sync.SQLITE, True, False, When.NOT, True, False, False),
    (Sync.SQLITE, True, True, When.NOT, True, True, True),
    (Sync.SQLITE, False, False, When.NOT, False, False, False),
    (Sync.NOBODY, True, True, When.NOT, False, False, False),
    (Sync.NOBODY, True, False, When.HOLDING, False, False, True),
]


@pytest.mark.parametrize(
    ("sync", "has_file", "failed", "due", "numbered", "waits", "keeps_ticket"), CASES
)
def test_what_follows_a_commit(
    sync: Sync,
    has_file: bool,
    failed: bool,
    due: When,
    numbered: bool,
    waits: bool,
    keeps_ticket: bool,
) -> None:
    """Where the disk has lost earlier frames, a commit that SQLite has synced is lost as well."""
    pool: Any = Mock()
    pool.syncer.return_value.failed = failed
    pool.syncer.return_value.committed.return_value = 7
    pool.checkpointer.due.return_value = due
    driver: Any = Mock(sync=sync, identity=(1, 2) if has_file else None)
    pool.write_queue.counters.commits = 0
    commit = Commit(pool, driver)
    assert commit.number == (7 if numbered else 0)
    assert commit.waits == waits
    assert commit.keeps_ticket == keeps_ticket
    assert pool.write_queue.counters.commits == 1


def test_the_disk_fails_after_sqlite_has_synced() -> None:
    """What SQLite has synced is behind frames that another sync has lost."""
    pool: Any = Mock()
    pool.syncer.return_value.failed = False
    pool.checkpointer.due.return_value = When.NOT
    pool.write_queue.counters.commits = 0
    commit = Commit(pool, Mock(sync=Sync.SQLITE, identity=(1, 2)))
    assert not commit.waits
    pool.syncer.return_value.failed = True
    assert commit.waits
    assert commit.keeps_ticket
