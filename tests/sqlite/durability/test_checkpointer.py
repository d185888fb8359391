"""The checkpointer: what it is set to, when one is due, who runs it, and who keeps out."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from contextlib import closing

import pytest

from qsession.sqlite.durability import checkpoint
from qsession.sqlite.durability.checkpoint import Checkpointer, When, _again, _is_worth_it, _when
from qsession.sqlite.processes.checkpoint_lock import Mark, mark_of, right_to_checkpoint
from qsession.sqlite.processes.lock_file import NOTE, checkpoint_name
from qsession.sqlite.processes.locking import system

PAGES = 20
LIMIT = PAGES * 4096


class Noted(Checkpointer):
    """One that counts its checkpoints."""

    def __init__(self, warn=None):
        super().__init__(warn)
        self.checkpoints = 0

    def _checkpoint(self, raw):
        self.checkpoints += 1
        super()._checkpoint(raw)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "a.db"
    with closing(connect(made)) as raw:
        raw.execute("CREATE TABLE t (x)")
    return str(made)


@pytest.fixture
def raw(path):
    with closing(connect(path)) as made:
        made.execute(f"PRAGMA wal_autocheckpoint={PAGES}")
        yield made


@pytest.fixture
def checkpointer(raw, path):
    made = Noted()
    made.set_up(raw, path)
    return made


def connect(path):
    raw = sqlite3.connect(path, isolation_level=None, timeout=0)
    raw.execute("PRAGMA journal_mode=WAL")
    return raw


def write(raw, pages):
    """One commit that adds so many pages to the WAL, and some."""
    raw.execute("INSERT INTO t VALUES (zeroblob(?))", (4096 * pages,))


def pragma(raw, name):
    return raw.execute(f"PRAGMA {name}").fetchone()[0]


def wal(path):
    return os.stat(f"{path}-wal").st_size


@pytest.mark.parametrize(
    ("size", "due_at", "when"),
    [
        (100, 0, When.NOT),
        (101, 0, When.AFTER),
        (150, 151, When.NOT),
        (400, 0, When.AFTER),
        (401, 0, When.HOLDING),
        (401, 402, When.NOT),
    ],
)
def test_when(size, due_at, when):
    """Past the limit beside writers; past a multiple of it with writers kept out."""
    assert _when(size, 100, due_at) is when


@pytest.mark.parametrize(
    ("size", "again"), [(101, 201), (290, 390), (350, 401), (399, 405), (500, 506), (4000, 4006)]
)
def test_again(size, again):
    """When it has grown by the limit once more; past the multiple much sooner."""
    assert _again(size, 100) == again


@pytest.mark.parametrize(
    ("last", "now", "worth"),
    [
        (None, Mark("a", 101), True),
        (None, Mark("a", 100), False),
        (Mark("a", 150), Mark("a", 150), False),
        (Mark("a", 150), Mark("a", 249), False),
        (Mark("a", 150), Mark("a", 250), True),
        (Mark("a", 150), Mark("b", 150), True),
        (Mark("a", 150), Mark("b", 100), False),
    ],
)
def test_whether_it_is_worth_it(last, now, worth):
    """Not where somebody has just emptied it: it has not begun anew, and holds nothing new."""
    assert _is_worth_it(last, now, 100) is worth


@pytest.mark.parametrize(
    ("set_to", "limit", "journal"),
    [
        (None, 4_000 * 4096, 4_000 * 4096),
        (1_000, 4_000 * 4096, 4_000 * 4096),
        (50, 50 * 4096, 50 * 4096),
        (0, 0, -1),
        (-1, 0, -1),
    ],
)
def test_set_up(path, set_to, limit, journal):
    """SQLite's default is replaced, another number respected, and 0 leaves all to others."""
    checkpointer = Checkpointer()
    with closing(connect(path)) as raw:
        if set_to is not None:
            raw.execute(f"PRAGMA wal_autocheckpoint={set_to}")
        raw.row_factory = lambda cursor, row: {}
        raw.text_factory = bytes
        checkpointer.set_up(raw, path)
        assert raw.execute("SELECT 'x'").fetchone() == {}
        raw.row_factory = None
        assert raw.execute("SELECT 'x'").fetchone() == (b"x",)
        assert pragma(raw, "wal_autocheckpoint") == 0
        assert pragma(raw, "journal_size_limit") == journal
    assert checkpointer._limit == limit


def test_a_shorter_wal_is_respected(path):
    """Who wants the WAL cut to less than the limit gets that; who wants it longer does not."""
    for wanted, found in [(0, 0), (5, 5), (10**9, LIMIT)]:
        with closing(connect(path)) as raw:
            raw.execute(f"PRAGMA wal_autocheckpoint={PAGES}")
            raw.execute(f"PRAGMA journal_size_limit={wanted}")
            Checkpointer().set_up(raw, path)
            assert pragma(raw, "journal_size_limit") == found


def test_attached_databases(raw, path, tmp_path, checkpointer):
    """The automatic one is on as it was for as long as another database needs it."""
    raw.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
    checkpointer.share(raw)
    assert pragma(raw, "wal_autocheckpoint") == PAGES
    raw.execute("DETACH other")
    checkpointer.share(raw)
    assert pragma(raw, "wal_autocheckpoint") == 0


def test_a_checkpoint_of_ours_is_of_our_file(raw, path, tmp_path, checkpointer):
    """Without a name SQLite checkpoints all databases that are attached."""
    with closing(connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE far (x)")
        raw.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
        write(raw, PAGES)
        checkpointer.run(raw)
        assert checkpointer.checkpoints == 1
        frames, done = raw.execute("PRAGMA other.wal_checkpoint(PASSIVE)").fetchone()[1:]
        assert frames == done > 0  # all of it by this one
        assert (tmp_path / "other.db").stat().st_size > 0


def test_due(raw, path, checkpointer):
    """One look in so many commits; none is due while the WAL is within its limit."""
    looks = [checkpointer.due() for _ in range(checkpoint.LOOK_EVERY)]
    assert set(looks) == {When.NOT}
    write(raw, PAGES)
    looks = [checkpointer.due() for _ in range(checkpoint.LOOK_EVERY)]
    assert looks == [When.NOT] * (checkpoint.LOOK_EVERY - 1) + [When.AFTER]
    write(raw, checkpoint.GROWN * PAGES)
    assert next(iter({checkpointer.due() for _ in range(checkpoint.LOOK_EVERY)} - {When.NOT})) is (
        When.HOLDING
    )


def test_nothing_is_due_where_there_is_no_file(path):
    """A database in memory has no WAL."""
    checkpointer = Checkpointer()
    with closing(sqlite3.connect(":memory:")) as raw:
        checkpointer.set_up(raw, "")
    assert {checkpointer.due() for _ in range(2 * checkpoint.LOOK_EVERY)} == {When.NOT}


def test_the_wal_is_begun_anew(raw, path, checkpointer):
    """A checkpoint empties it; the next writer begins at its start, and cuts it to the limit."""
    write(raw, 3 * PAGES)
    before = mark_of(path)
    checkpointer.run(raw)
    assert mark_of(path) == before
    write(raw, 1)
    after = mark_of(path)
    assert after.salt != before.salt
    assert after.size <= LIMIT
    looks = {checkpointer.due() for _ in range(checkpoint.LOOK_EVERY)}
    assert looks == {When.NOT}


def test_no_second_checkpoint_of_a_wal_that_another_one_has_emptied(raw, path, checkpointer):
    """Two processes found it due; the second one comes when the first is done."""
    with closing(connect(path)) as other:
        other.execute(f"PRAGMA wal_autocheckpoint={PAGES}")
        second = Noted()
        second.set_up(other, path)
        write(raw, PAGES)
        write(other, 1)
        checkpointer.run(raw)
        second.run(other)
        checkpointer.run(raw)
        assert (checkpointer.checkpoints, second.checkpoints) == (1, 0)
        looks = {second.due() for _ in range(checkpoint.LOOK_EVERY)}
        assert looks == {When.NOT}
        write(raw, 2 * PAGES)
        second.run(other)
        assert second.checkpoints == 1


def test_it_is_checkpointed_again_when_it_has_grown(raw, path, checkpointer):
    """A reader keeps it from being begun anew, so it grows on."""
    with closing(connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchone()
        for number in range(1, 4):
            write(raw, PAGES)
            checkpointer.run(raw)
            checkpointer.run(raw)
            assert checkpointer.checkpoints == number


def test_somebody_else_checkpoints(raw, path, checkpointer):
    """Another thread of this process, and another process: neither is waited for."""
    write(raw, PAGES)
    with right_to_checkpoint(path) as right:
        assert right is not None
        checkpointer.run(raw)
    assert checkpointer.checkpoints == 0
    file = os.open(checkpoint_name(path), os.O_RDWR)
    assert system.try_lock(file)
    checkpointer.run(raw)
    assert checkpointer.checkpoints == 0
    os.close(file)
    checkpointer.run(raw)
    assert checkpointer.checkpoints == 1


def test_no_lock_file(raw, path, checkpointer):
    """Where it cannot be made nothing would be checkpointed at all: so it is, without."""
    os.mkdir(checkpoint_name(path))
    write(raw, PAGES)
    checkpointer.run(raw)
    assert checkpointer.checkpoints == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_no_note_is_written_to_the_file_of_somebody(raw, path, checkpointer, tmp_path):
    """A link in the place of the lock file leads elsewhere."""
    for content in ("", "12345 1.5"):
        victim = tmp_path / f"victim{len(content)}"
        victim.write_text(content)
        os.link(victim, checkpoint_name(path))
        write(raw, 2 * PAGES)
        checkpointer.run(raw)
        assert victim.read_text() == content
        os.unlink(checkpoint_name(path))
    assert checkpointer.checkpoints == 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_backup_that_links(raw, path, checkpointer, tmp_path):
    """The lock file is known for what it is, and so is the note in it."""
    write(raw, PAGES)
    checkpointer.run(raw)
    os.link(checkpoint_name(path), tmp_path / "backup")
    assert os.stat(checkpoint_name(path)).st_size == system.note_at + NOTE
    with right_to_checkpoint(path) as right:
        assert right.last() == mark_of(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_during_a_checkpoint(path):
    """It can checkpoint when its parent has ended that, and not before."""
    with right_to_checkpoint(path):
        child = os.fork()
        if child == 0:
            with right_to_checkpoint(path) as right:
                os._exit(0 if right is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with right_to_checkpoint(path) as right:
        assert right is not None


@pytest.mark.parametrize("mark", [LIMIT, None])
def test_a_reader_that_pins_the_wal(raw, path, mark):
    """It is told once for each time; not of a WAL that is short enough, nor without a mark."""
    told = []
    checkpointer = Noted(told.append)
    checkpointer.set_up(raw, path)
    checkpointer.wal_warn = mark
    with closing(connect(path)) as reader:
        for times in (1, 2):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            write(raw, PAGES)
            checkpointer.run(raw)
            write(raw, PAGES)
            checkpointer.run(raw)
            reader.execute("COMMIT")
            write(raw, PAGES)
            checkpointer.run(raw)
            assert len(told) == (times if mark else 0)
    assert all(each > LIMIT for each in told)


def test_it_fails(raw, path, checkpointer, caplog):
    """Whoever has committed is not told; a later commit tries again."""
    write(raw, PAGES)
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("INSERT INTO t VALUES (1)")
    with caplog.at_level(logging.INFO, "qsession"):
        checkpointer.run(raw)
    raw.execute("COMMIT")
    assert "A checkpoint of" in caplog.text
    checkpointer.run(raw)
    assert checkpointer.checkpoints == 2
    assert mark_of(path) is not None
    write(raw, 1)
    assert wal(path) <= LIMIT


def test_a_checkpoint_syncs_whatever_its_connection_is_set_to(raw, checkpointer):
    """A session that sets OFF gives up its own durability, not that of the others."""
    raw.execute("PRAGMA synchronous=OFF")
    write(raw, PAGES)
    sent = []
    raw.set_trace_callback(sent.append)
    checkpointer.run(raw)
    raw.set_trace_callback(None)
    told = [sql for sql in sent if "wal_checkpoint" in sql or "synchronous=" in sql]
    assert told == ["PRAGMA main.synchronous=1", checkpoint.PASSIVE, "PRAGMA main.synchronous=0"]
    assert pragma(raw, "synchronous") == 0
