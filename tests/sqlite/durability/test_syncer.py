"""The syncer: who is answered by which sync, and what becomes of its thread and descriptor.

The disk of these tests ends a sync when it is told to. That a commit is not answered by one is seen
when the next sync has begun: the thread answers before it begins another one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import threading
import weakref
from collections import deque
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from threads import PATIENCE

from qsession.errors import DurabilityError
from qsession.sqlite.durability import syncer as module
from qsession.sqlite.durability import wal_file
from qsession.sqlite.durability.syncer import recover, syncer_of
from qsession.sqlite.files.filesystem import file_identity
from qsession.sqlite.processes.checkpoint_lock import right_to_checkpoint
from qsession.testing import held_disk
from qsession.waiting.pacing import LoopTurn

NEVER = 3600.0


@pytest.fixture
def disk():
    with held_disk() as made:
        yield made


@pytest.fixture
def path(tmp_path):
    """A database in WAL mode; the syncer sees nothing of it but its name and that of its WAL."""
    (tmp_path / "a.db").write_bytes(b"pages")
    (tmp_path / "a.db-wal").write_bytes(b"frames")
    return str(tmp_path / "a.db")


@pytest.fixture
async def syncer(disk, path):
    made = syncer_of(path, file_identity(path))
    yield made
    disk.open()
    made.close()
    await ended()


async def ended():
    """Wait until no syncer has a thread."""
    gc.collect()  # engines that earlier tests have left
    for thread in threads():
        await asyncio.to_thread(thread.join, PATIENCE)
    assert not threads()


def replace(name):
    """Put another file in the place of one."""
    other = Path(f"{name}-new")
    other.write_bytes(b"others")
    other.replace(name)


class Checkpointed:
    """A connection whose checkpoints are complete."""

    row_factory = None

    def execute(self, sql):
        return self

    def fetchone(self):
        return 0, 0, 0


def threads():
    return [each for each in threading.enumerate() if each.name == "qsession syncer"]


async def waiting(syncer, *, now=True, number=None):
    """A task that waits for a commit of its own; it has arrived."""
    number = syncer.committed() if number is None else number
    task = asyncio.create_task(syncer.wait(number, now=now))
    await asyncio.sleep(0)
    return task


async def test_a_commit_while_a_sync_runs_is_answered_by_the_next_one(syncer, disk):
    """The sync that was running may have passed its pages already."""
    first = await waiting(syncer)
    running = await disk.begun()
    second, third = await waiting(syncer), await waiting(syncer)
    running.end()
    following = await disk.begun()
    await first
    assert not second.done()
    assert not third.done()
    following.end()
    await asyncio.gather(second, third)
    assert syncer.syncs == 2
    assert disk.is_quiet


async def test_a_commit_that_waits_late_is_answered_by_the_sync_that_it_was_before(syncer, disk):
    """It counts when the COMMIT returned, not when somebody began to wait for it."""
    number = syncer.committed()
    first = await waiting(syncer)
    running = await disk.begun()
    late = await waiting(syncer, number=number)
    running.end()
    await asyncio.gather(first, late)
    await syncer.wait(number, now=True)
    assert syncer.syncs == 1


async def test_gathered_until_the_queue_is_empty(syncer, disk, monkeypatch):
    """A sync has just begun and others go on committing: they wait for one sync together."""
    monkeypatch.setattr(module, "GATHER", NEVER)
    first = await waiting(syncer)
    running = await disk.begun()
    gathered = [await waiting(syncer, now=False) for _ in range(5)]
    running.end()
    await first
    gathered += [await waiting(syncer, now=False) for _ in range(5)]
    assert disk.is_quiet
    syncer.hurry()
    last = await disk.begun()
    last.end()
    await asyncio.gather(*gathered)
    assert syncer.syncs == 2


async def test_who_was_answered_commits_again_in_time(syncer, disk, monkeypatch):
    """The next sync is for them as well, though others wait for it already."""
    monkeypatch.setattr(module, "GATHER", NEVER)

    async def twice(number):
        await syncer.wait(number, now=True)
        await syncer.wait(syncer.committed(), now=True)

    numbers = [syncer.committed() for _ in range(5)]
    tasks = [asyncio.create_task(twice(number)) for number in numbers]
    await asyncio.sleep(0)
    first = await disk.begun()
    others = [await waiting(syncer) for _ in range(5)]
    first.end()
    (await disk.begun()).end()
    await asyncio.gather(*tasks, *others)
    assert syncer.syncs == 2


async def test_who_was_answered_does_not_come_back(syncer, disk, monkeypatch):
    """Those who wait do so for two turns of the loop, and not for ever."""
    monkeypatch.setattr(module, "GATHER", NEVER)
    first = await waiting(syncer)
    sync = await disk.begun()
    second = await waiting(syncer)
    sync.end()
    await first
    (await disk.begun()).end()
    await second


async def test_the_loop_of_those_who_were_answered_stands_still(syncer, disk):
    """Others are not kept waiting by it for longer than GATHER."""
    numbers, answered = syncer.committed(), threading.Event()

    def elsewhere():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(syncer.wait(numbers, now=True))
        answered.set()
        loop.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    sync = await disk.begun()
    second = await waiting(syncer)
    sync.end()
    await asyncio.to_thread(answered.wait, PATIENCE)
    (await disk.begun()).end()
    await second
    await asyncio.to_thread(thread.join, PATIENCE)


async def test_hurry_before_the_wait_counts(syncer, disk, monkeypatch):
    """The queue became empty between the COMMIT and the wait of the one who committed."""
    monkeypatch.setattr(module, "GATHER", NEVER)
    first = await waiting(syncer)
    (await disk.begun()).end()
    await first
    number = syncer.committed()
    syncer.hurry()
    second = await waiting(syncer, now=False, number=number)
    (await disk.begun()).end()
    await second


async def test_hurry_before_the_wait_counts_while_the_thread_dozes(syncer, disk, monkeypatch):
    """The last sync answered a gathered commit, so the thread expects more of them."""
    first = await waiting(syncer, now=False)
    (await disk.begun()).end()
    await first
    monkeypatch.setattr(module, "GATHER", NEVER)
    second = await waiting(syncer, now=False)
    syncer.hurry()
    (await disk.begun()).end()
    await second
    number = syncer.committed()
    syncer.hurry()
    third = await waiting(syncer, now=False, number=number)
    (await disk.begun()).end()
    await third


async def test_hurry_is_not_for_later_commits(syncer, disk, monkeypatch):
    """Nobody waited when the queue was empty; who commits later is gathered all the same."""
    monkeypatch.setattr(module, "GATHER", NEVER)
    first = await waiting(syncer)
    (await disk.begun()).end()
    await first
    syncer.hurry()
    gathered = await waiting(syncer, now=False)
    alone = await waiting(syncer, now=True)
    sync = await disk.begun()
    assert not gathered.done()
    sync.end()
    await asyncio.gather(gathered, alone)
    assert syncer.syncs == 2


async def test_gathered_for_no_longer_than_that(syncer, disk):
    """Without hurry the time alone begins the next sync, and the one behind it."""
    for _ in range(3):
        gathered = await waiting(syncer, now=False)
        (await disk.begun()).end()
        await gathered
    assert syncer.syncs == 3


async def test_cancelled_while_it_waits(syncer, disk):
    """It is raised at once, and the sync goes on: for others, and for the commit itself."""
    numbers = syncer.committed(), syncer.committed()
    first, second = [await waiting(syncer, number=each) for each in numbers]
    running = await disk.begun()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    running.end()
    await second
    third = await waiting(syncer, now=False)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    syncer.hurry()
    (await disk.begun()).end()


async def test_a_failed_sync_answers_everybody(syncer, disk):
    """Those it covers and those behind it: what they have written may be behind a gap."""
    tasks = [await waiting(syncer), await waiting(syncer)]
    running = await disk.begun()
    tasks += [await waiting(syncer), await waiting(syncer, now=False)]
    running.fail()
    for each in tasks:
        with pytest.raises(DurabilityError, match=r"(?s)a\.db.*Input/output error.*checkpoint"):
            await each
    assert syncer.failed
    with pytest.raises(OperationalError):
        await syncer.wait(syncer.committed(), now=True)
    assert syncer.syncs == 0
    assert disk.is_quiet


async def test_what_was_on_disk_before_a_failure_is_acknowledged(syncer, disk):
    """An fsync that ended well has not become less true."""
    number = syncer.committed()
    first = await waiting(syncer)
    (await disk.begun()).end()
    await first
    second = await waiting(syncer)
    (await disk.begun()).fail()
    with pytest.raises(DurabilityError):
        await second
    await syncer.wait(number, now=True)


async def test_a_checkpoint_makes_up_for_a_failure(disk, tmp_path):
    """It syncs both files, so what was committed before it is on disk; then syncs go on."""
    path = tmp_path / "real.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (x)")
        syncer = syncer_of(str(path), file_identity(str(path)))
        task = await waiting(syncer)
        (await disk.begun()).fail()
        with pytest.raises(DurabilityError):
            await task
        raw.row_factory = lambda cursor, row: {}
        number = syncer.committed()
        recover(raw, syncer)
        assert not syncer.failed
        assert os.stat(f"{path}-wal").st_size == 0
        await syncer.wait(number, now=True)
        raw.execute("INSERT INTO t VALUES (1)")
        task = await waiting(syncer)
        (await disk.begun()).end()
        await task
        assert syncer.syncs == 1
        syncer.close()
    await ended()


def restart(path, salt):
    """As the first frame after a complete checkpoint does."""
    with open(f"{path}-wal", "r+b") as wal:
        wal.write(bytes(16) + salt)


@pytest.mark.parametrize("known", [True, False])
async def test_another_program_s_restart_makes_up_for_a_failure(syncer, disk, path, known):
    """The WAL has another salt. If it could not be read when the sync failed, it is the one that is
    found first. No statement is run.
    """
    restart(path, b"salt one")
    task = await waiting(syncer)
    if not known:
        os.truncate(f"{path}-wal", 0)
    (await disk.begun()).fail()
    with pytest.raises(DurabilityError):
        await task
    if not known:
        recover(None, syncer, external=True)  # still empty
        restart(path, b"salt one")
        recover(None, syncer, external=True)
    recover(None, syncer, external=True)
    assert syncer.failed
    restart(path, b"salt two")
    os.rename(path, f"{path}-away")
    recover(None, syncer, external=True)
    assert syncer.failed  # whose WAL it is by now is not known
    os.rename(f"{path}-away", path)
    recover(None, syncer, external=True)
    assert not syncer.failed
    task = await waiting(syncer)
    (await disk.begun()).end()
    await task


async def test_a_checkpoint_that_is_not_complete_makes_up_for_nothing(disk, tmp_path):
    """Somebody reads what is in the WAL, or the disk fails there as well."""
    path = tmp_path / "real.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as raw,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
    ):
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (x)")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        syncer = syncer_of(str(path), file_identity(str(path)))
        task = await waiting(syncer)
        (await disk.begun()).fail()
        with pytest.raises(DurabilityError):
            await task
        recover(raw, syncer)
        assert syncer.failed
        reader.execute("COMMIT")
        raw.execute("BEGIN IMMEDIATE")  # in a transaction there is no checkpoint: it raises
        raw.execute("INSERT INTO t VALUES (1)")
        recover(raw, syncer)
        assert syncer.failed
        raw.execute("COMMIT")
        recover(raw, syncer)
        assert not syncer.failed
        syncer.close()
    await ended()


async def test_one_process_at_a_time_makes_up_for_a_failure(syncer, disk, path):
    """Two checkpoints at once can damage a file: while another one runs, none is made here."""
    task = await waiting(syncer)
    (await disk.begun()).fail()
    with pytest.raises(DurabilityError):
        await task
    with right_to_checkpoint(path) as right:
        assert right is not None
        recover(Checkpointed(), syncer)
        assert syncer.failed
    recover(Checkpointed(), syncer)
    assert not syncer.failed


async def test_a_failure_during_the_checkpoint_is_not_made_up_for(syncer, disk, path):
    """Two connections recover, where there can be no lock file; the slower one began before a sync
    that failed after the faster.
    """
    os.mkdir(f"{path}-qsession-checkpoint")

    class Slow(Checkpointed):
        def fetchone(self):
            recover(Checkpointed(), syncer)
            assert not syncer.failed
            done = asyncio.run_coroutine_threadsafe(syncer.wait(syncer.committed(), now=True), loop)
            disk.next().fail()
            with pytest.raises(DurabilityError):
                done.result(PATIENCE)
            return 0, 0, 0

    loop = asyncio.get_running_loop()
    task = await waiting(syncer)
    (await disk.begun()).fail()
    with pytest.raises(DurabilityError):
        await task
    await asyncio.to_thread(recover, Slow(), syncer)
    assert syncer.failed
    recover(Checkpointed(), syncer)
    assert not syncer.failed


def test_two_loops_and_one_that_is_closed(disk, path):
    """Each loop hears of its own; one that was closed meanwhile is in nobody's way."""
    syncer = syncer_of(path, file_identity(path))
    alive = []

    async def wait():
        await syncer.wait(syncer.committed(), now=True)
        alive.append(threading.current_thread())

    async def leave():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        left.append(task)

    left = []
    closed = asyncio.new_event_loop()
    closed.run_until_complete(leave())
    closed.close()
    running = disk.next()
    others = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
    for each in others:
        each.start()
    running.end()
    while any(each.is_alive() for each in others):
        with suppress(Exception):
            disk.next(0.01).end()
    assert set(alive) == set(others)
    syncer.close()
    left[0]._log_destroy_pending = False
    left[0].get_coro().close()


async def test_one_call_for_each_loop_and_sync(syncer, disk, monkeypatch):
    """Each call of ``call_soon_threadsafe`` is a system call."""
    loop = asyncio.get_running_loop()
    first = await waiting(syncer)
    running = await disk.begun()
    gathered = [await waiting(syncer) for _ in range(20)]
    running.end()
    await first
    sync = await disk.begun()
    calls = []
    plain = loop.call_soon_threadsafe

    def noted(callback, *args, **kw):
        if callback == syncer._resolve:
            calls.append(callback)
        return plain(callback, *args, **kw)

    monkeypatch.setattr(loop, "call_soon_threadsafe", noted)
    sync.end()
    await asyncio.gather(*gathered)
    assert len(calls) == 1


async def test_one_look_for_each_turn_of_the_loop(syncer, disk, monkeypatch):
    """While tasks wait for their turn, answer after answer, the loop is not asked more often."""
    loop = asyncio.get_running_loop()
    plain, looks = loop.call_soon, []
    busy = True

    def noted(callback, *args, **kw):
        if callback == syncer._go_on:
            looks.append(callback)
        return plain(callback, *args, **kw)

    async def turn(number):
        looks.clear()
        for _ in range(number):
            await asyncio.sleep(0)
        return len(looks)

    monkeypatch.setattr(LoopTurn, "busy", property(lambda _: busy))
    for _ in range(5):
        answered = await waiting(syncer)
        (await disk.begun()).end()
        await answered
    await turn(3)
    monkeypatch.setattr(loop, "call_soon", noted)
    assert await turn(20) == 20
    busy = False
    await turn(2)
    assert await turn(20) == 0


@pytest.fixture
def folders(monkeypatch):
    """The folders that were synced."""
    synced = []
    monkeypatch.setattr(wal_file, "_sync_folder", synced.append)
    return synced


async def test_the_folder_is_synced_once_for_each_wal(syncer, disk, folders, path):
    """The name of a new file is on disk when its folder was synced."""
    for _ in range(2):
        task = await waiting(syncer)
        (await disk.begun()).end()
        await task
    assert folders == [os.path.dirname(path)]


async def test_a_wal_that_was_replaced(syncer, disk, folders, path):
    """The last connection deleted it and the next one made another: that one is synced."""
    for turn in (1, 2):
        inode = os.stat(f"{path}-wal").st_ino
        task = await waiting(syncer)
        sync = await disk.begun()
        assert sync.inode == inode
        sync.end()
        await task
        assert len(folders) == turn
        replace(f"{path}-wal")


async def test_no_wal_any_more(syncer, disk, path):
    """Whoever closed last has checkpointed, which syncs the database: nothing is left to do."""
    os.unlink(f"{path}-wal")
    await syncer.wait(syncer.committed(), now=True)
    assert syncer.syncs == 0
    assert disk.is_quiet


@pytest.mark.parametrize("wal", ["stays", "goes", "is replaced"])
@pytest.mark.parametrize("how", ["deleted", "replaced by another file"])
async def test_the_database_has_gone(syncer, disk, path, how, wal):
    """The commit went to a file that nobody finds by its name: that is said, and to all later ones.

    Whatever lies at the name of the WAL; a checkpoint of the old file makes up for nothing.
    """
    task = await waiting(syncer)
    (await disk.begun()).end()
    await task
    os.unlink(path) if how == "deleted" else replace(path)
    if wal != "stays":
        os.unlink(f"{path}-wal") if wal == "goes" else replace(f"{path}-wal")
    for _ in range(2):
        with pytest.raises(DurabilityError, match=rf"(?s){how}.*committed to the old file"):
            await syncer.wait(syncer.committed(), now=True)
        recover(Checkpointed(), syncer)
    assert syncer.syncs == 1
    assert disk.is_quiet


async def test_the_database_comes_back(syncer, disk, path):
    """It was moved away for a moment: a checkpoint that finds it there again makes up for that."""
    os.rename(path, f"{path}-away")
    with pytest.raises(DurabilityError, match="deleted"):
        await syncer.wait(syncer.committed(), now=True)
    os.rename(f"{path}-away", path)
    recover(Checkpointed(), syncer)
    task = await waiting(syncer)
    (await disk.begun()).end()
    await task


async def test_close_and_reuse(syncer, disk, path):
    """Closed, it has neither thread nor descriptor; whoever comes later is served as before."""
    for _ in range(2):
        task = await waiting(syncer)
        (await disk.begun()).end()
        await task
        syncer.close()
        await ended()
        assert syncer._wal._file is None


async def test_close_while_somebody_waits(syncer, disk, monkeypatch):
    """Another engine on the same file still waits; its sync is made, then the thread ends."""
    monkeypatch.setattr(module, "GATHER", NEVER)
    first = await waiting(syncer)
    running = await disk.begun()
    second = await waiting(syncer, now=False)
    syncer.close()
    running.end()
    await first
    syncer.hurry()
    (await disk.begun()).end()
    await second
    await ended()
    assert syncer._wal._file is None


async def test_a_forgotten_one_leaves_nothing(disk, path):
    """No thread and no descriptor pile up where engines are never closed."""
    syncer = syncer_of(path, file_identity(path))
    assert syncer_of(path, file_identity(path)) is syncer
    assert syncer_of(path, (1, 2)) is not syncer
    task = await waiting(syncer)
    (await disk.begun()).end()
    await task
    wal, gone = syncer._wal, weakref.ref(syncer)
    del syncer, task
    gc.collect()
    await ended()
    assert gone() is None
    assert wal._file is None


async def test_no_more_threads(syncer, monkeypatch):
    """The commit is in the file, and nobody can sync it: that is said, and nothing is stuck."""

    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Refused)
        with pytest.raises(DurabilityError, match="can't start new thread"):
            await syncer.wait(syncer.committed(), now=True)
    assert not syncer.failed


async def test_a_wal_that_cannot_be_opened(syncer, path):
    """Whatever is in the way, nothing is acknowledged."""
    os.unlink(f"{path}-wal")
    os.mkdir(f"{path}-wal")
    with pytest.raises(DurabilityError, match="directory"):
        await syncer.wait(syncer.committed(), now=True)
    assert syncer.failed
    os.rmdir(f"{path}-wal")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_a_forked_child_begins_anew(syncer, disk):
    """A sync runs in the parent; the child has a thread and a descriptor of its own."""
    first = await waiting(syncer)
    running = await disk.begun()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.events._set_running_loop(None)
            wal_file.fsync = os.fsync
            assert syncer._wal._file is None
            asyncio.run(syncer.wait(syncer.committed(), now=True))
            code = 0 if syncer.syncs == 1 else 2
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    running.end()
    await first
    second = await waiting(syncer)
    (await disk.begun()).end()
    await second


@pytest.mark.skipif(sys.platform == "win32", reason="os.fsync needs no such help there")
def test_fsync_is_the_strongest_there_is(tmp_path, monkeypatch):
    """macOS has one that reaches the disk; where that is refused, and elsewhere, the usual one."""
    import fcntl

    commands, syncs = [], []
    monkeypatch.setattr(wal_file, "_sync_data", syncs.append)
    wal_file.fsync(7)
    assert syncs == [7]
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda *args: commands.append(args))
    wal_file.fsync(8)
    assert (commands, syncs) == ([(8, 51)], [7])

    def refused(*args):
        raise OSError

    monkeypatch.setattr(fcntl, "fcntl", refused)
    wal_file.fsync(9)
    assert syncs == [7, 9]


async def test_no_second_sync_behind_a_failed_one(syncer, disk):
    """Who comes just behind the answers gets the error: a second fsync would end well."""
    late = module._Waiter(syncer.committed(), asyncio.get_running_loop().create_future())
    syncer.hurry()

    coming = [late]

    class Waiters(deque):
        def __iter__(self):  # the thread has answered everybody, and looks who is left
            if syncer.failed and coming:
                self.append(coming.pop())
            return super().__iter__()

    syncer._waiters = Waiters()
    first = await waiting(syncer)
    (await disk.begun()).fail()
    with pytest.raises(DurabilityError):
        await first
    while not late.future.done() and disk.is_quiet:
        await asyncio.sleep(0)
    assert disk.is_quiet
    assert isinstance(await late.future, OSError)
    assert syncer.failed
    assert syncer.syncs == 0
