"""Disks of the kit: slower, failing, or held; only for the file that they are meant for."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
from cancelling import Bench, assert_free, rows
from queueing import write

from qsession import DurabilityError
from qsession.sqlite.durability import wal_file
from qsession.testing import held_disk, slow_disk


@pytest.fixture
async def bench(tmp_path: Path):
    """An engine with tables."""
    made = await Bench.ready(tmp_path / "app.db")
    yield made
    await made.engine.dispose()


async def test_each_sync_takes_longer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that was asked for, in another thread than the loop's; then it is as before."""
    slept = []
    monkeypatch.setattr(
        "qsession.testing.disk.time.sleep", lambda s: slept.append((s, threading.current_thread()))
    )
    real = wal_file.fsync
    with slow_disk(0.25) as disk:
        await write(bench, 1)
        disk.seconds = 0.5
        await write(bench, 2)
    assert [seconds for seconds, _ in slept] == [0.25, 0.5]
    assert threading.current_thread() not in {thread for _, thread in slept}
    assert disk.syncs == 2
    await write(bench, 3)
    assert disk.syncs == 2
    assert wal_file.fsync is real


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_each_sync_fails(bench: Bench, number: int) -> None:
    """The commit is in the file and not confirmed; when the disk is well again, all goes on."""
    with slow_disk(error=number) as disk:
        with pytest.raises(DurabilityError, match=os.strerror(number)):
            await write(bench, 1)
        assert disk.syncs == 1
    await write(bench, 2)
    bench.acknowledged.add(1)
    await bench.check()


async def test_only_the_file_that_is_named(bench: Bench, tmp_path: Path) -> None:
    """Another database of the process syncs as ever."""
    other = await Bench.ready(tmp_path / "other.db")
    with slow_disk(error=errno.EIO, path=other.path) as disk:
        await write(bench, 1)
        assert disk.syncs == 0
        with pytest.raises(DurabilityError):
            await write(other, 1)
    with held_disk(path=tmp_path / "nothing.db") as held:
        await write(bench, 2)
        assert held.is_quiet
    await other.engine.dispose()


async def test_held_until_told(bench: Bench) -> None:
    """A commit is in the file while its sync is held, and is answered by the end of it."""
    with held_disk(path=bench.path) as disk:
        committing = asyncio.create_task(write(bench, 1))
        sync = await disk.begun()
        assert rows(bench.path, "SELECT count(*) FROM marks") == [(3,)]
        assert not committing.done()
        sync.end()
        await committing
        failing = asyncio.create_task(write(bench, 2))
        (await disk.begun()).fail(errno.ENOSPC)
        with pytest.raises(DurabilityError, match="space"):
            await failing


async def test_the_end_of_the_block_lets_all_go_on(bench: Bench) -> None:
    """The commits that wait, and who waits for a sync that does not come."""
    with held_disk() as disk:
        committing = asyncio.create_task(write(bench, 1))
        await disk.begun()
        waiting = asyncio.create_task(disk.begun())
        await asyncio.sleep(0)
    await committing
    with pytest.raises(TimeoutError):
        await waiting
    assert_free(bench.path)


def test_no_sync_in_time() -> None:
    """That is an error, and no endless wait."""
    with held_disk() as disk, pytest.raises(TimeoutError, match=r"within 0 s"):
        disk.next(0)
