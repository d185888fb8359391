"""Backups of a database that is in use: complete or absent, checked, and without blocking it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import get_ident

from qsession.errors import (
    SQLITE_BUSY,
    SQLITE_CORRUPT,
    SQLITE_FULL,
    SQLITE_NOTADB,
    sqlite_code,
)
from qsession.sqlite.files.explain import explain
from qsession.sqlite.files.filesystem import hard_links
from qsession.sqlite.files.read_only import fingerprint, frozen_uri
from qsession.sqlite.processes.lock_file import all_names
from qsession.sqlite.processes.owners import lock_owner, user_names
from qsession.tools import integrity

PAGES = 256
"""The number of pages copied between two calls of ``progress``."""
BUSY_TIMEOUT = 30.0
"""Seconds to wait for a lock of another process, if the database is not in WAL mode."""
BESIDE = ("-journal", "-wal", "-shm")
"""The suffixes of the files that SQLite creates beside a database."""
PROBLEMS = 3
"""The number of problems reported for a damaged copy."""
NEW = "is to be replaced by a new file"

Progress = Callable[[int, int], object]
"""A function that gets the number of copied pages and the total."""


class BackupError(sqlite3.DatabaseError):
    """The copy would damage an existing database, or it was damaged and removed."""


def back_up(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Copy the committed content of ``source`` to the file ``target``.

    It uses SQLite's online backup (https://sqlite.org/backup.html) in one snapshot. Writers can
    continue; their later commits are not in the copy. Without the snapshot, each commit by another
    process would restart the copy. The copy is written to a new file beside ``target``, checked by
    ``PRAGMA integrity_check``, flushed to disk and renamed, so ``target`` is never incomplete. A
    database that is replaced must not be open in any program; it gets the copy in one transaction.
    Symbolic links are followed.

    Returns the tables whose content could not be checked, because their indexes or constraints use
    functions or collations that the application registers. Their structure was checked.

    Blocks the thread. Raises ``FileExistsError`` if ``target`` exists and ``replace`` is false, or
    if another program created it during the copy. Raises ``FileNotFoundError`` if ``source`` does
    not exist, and ``OSError`` or ``sqlite3.Error`` if a file cannot be read or written. Raises
    `BackupError` if a program has ``target`` open or ``source`` locked, if files of another
    database lie beside ``target``, or if the copy is damaged; then ``source`` may be damaged, too.
    After any error, also ``KeyboardInterrupt``, ``target`` is unchanged.
    """
    source, target = Path(source), Path(os.path.realpath(target))  # a symbolic link stays
    if not source.is_file():
        raise FileNotFoundError(f"the database {str(source)!r} does not exist")
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{str(target)!r} is the database itself: name a new file")
    if target.exists() and not replace:
        raise FileExistsError(f"{str(target)!r} already exists: name a new file")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"the folder {str(target.parent)!r} does not exist")
    if (owner := _owner(target)) is not None:
        raise BackupError(f"{str(target)!r} belongs to the database {owner!r}: name another file")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}-{get_ident()}.unfinished")
    with _taken(target, replace) as put:
        try:
            _create(unfinished, source.stat().st_mode)
            unchecked = _copy(source, unfinished, progress)
            _flush(unfinished)
            put(unfinished)
            _flush(target.parent)
        finally:
            _remove(unfinished)
    return unchecked


def _owner(target: Path) -> str | None:
    """The database to which a file belongs by its name, so that it must not be written."""
    for end in (*BESIDE, *all_names("")):
        whole = str(target)[: -len(end)]
        if target.name.lower().endswith(end) and os.path.isfile(whole):
            return whole
    return None


@contextmanager
def _taken(target: Path, replace: bool) -> Iterator[Callable[[Path], None]]:
    """A function that puts a copy at ``target``. An existing database there is locked first.

    Files beside a database belong to it: SQLite would play back its ``-wal`` or ``-journal`` into
    any later file of that name (https://sqlite.org/howtocorrupt.html, 1.4 and 2). An exclusive lock
    is refused while another connection is open in WAL mode, or in a transaction. An idle connection
    in another mode is not noticed; it sees the copy at its next transaction.
    """
    if not target.exists():
        _refuse_what_lies_beside(target, "does not exist")
        yield partial(_link, target, replace)
        return
    if not target.is_file():
        raise BackupError(f"{str(target)!r} is not a regular file: name another file")
    if os.path.lexists(f"{target}-wal"):
        with closing(_opened(target, "ro")) as raw:  # "rw" would drop a log that it cannot use
            _refuse_what_lies_beside_unreadable(raw, target)
    with closing(_opened(target, "rw")) as raw:
        is_database = _lock(raw, target)
        if is_database and not hard_links(str(target)):
            yield partial(_write_into, raw)
            return
    if is_database:
        yield partial(_take_name, target, _state(target))
        return
    _refuse_what_lies_beside(target, NEW, ("-journal", "-wal"))
    yield partial(_rename, target)


def _link(target: Path, replace: bool, unfinished: Path) -> None:
    """Link the copy. Unlike a rename, it fails if a new file exists, which may be in use."""
    if os.path.lexists(target):
        raise FileExistsError(f"another program created {str(target)!r} during the copy")
    _refuse_what_lies_beside(target, "does not exist")
    try:
        os.link(unfinished, target)
    except OSError:
        if not replace or os.path.lexists(target):
            raise
        unfinished.replace(target)  # a file system without hard links, such as FAT


def _rename(target: Path, unfinished: Path) -> None:
    # Some builds of SQLite leave such files
    # (https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html, SQLITE_FCNTL_PERSIST_WAL), and an
    # application may have begun to use the database.
    _refuse_what_lies_beside(target, NEW, ("-journal", "-wal"))
    _make_alike(unfinished, target)
    unfinished.replace(target)


def _take_name(target: Path, before: tuple[int, ...], unfinished: Path) -> None:
    """Give the copy the name of a database with hard links. The other names keep the old content.

    There was no lock during the copy: an application would have waited for it with this file open,
    and later written to it through the WAL of the copy. Instead, writes during the copy are
    detected here. The file leaves WAL mode, so that SQLite refuses to write to it without its name.
    """
    used = BackupError(
        f"another program wrote to {str(target)!r} during the copy, and its changes were kept: "
        "stop the programs that use it, then copy again"
    )
    if _state(target) != before:  # before SQLite opens it, which may drop a log
        raise used
    with closing(_opened(target, "rw")) as raw:
        if not _lock(raw, target) or _state(target) != before:
            raise used
        with _without_wal(raw):
            raw.execute("PRAGMA journal_mode=MEMORY").fetchone()  # closes the -journal
            Path(f"{target}-journal").unlink(missing_ok=True)  # it was already played back
            if os.name == "nt":
                raw.close()  # Windows cannot replace an open file
            _rename(target, unfinished)


def _state(target: Path) -> tuple[int, ...]:
    """A value that changes when a program writes to a database."""
    wal = Path(f"{target}-wal")
    found = target.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size, _size(wal)


def _opened(target: Path, mode: str) -> sqlite3.Connection:
    address = f"{target.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=0, isolation_level=None)


def _lock(raw: sqlite3.Connection, target: Path) -> bool:
    """Lock it until it is closed; False if it is not a database, or damaged."""
    try:
        raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
        raw.execute("BEGIN EXCLUSIVE")  # the lock outlives the transaction
        raw.execute("COMMIT")
    except sqlite3.Error as error:
        code = sqlite_code(error)
        if code in (SQLITE_NOTADB, SQLITE_CORRUPT):
            return False
        why = f"cannot be replaced: {error}"
        if code == SQLITE_BUSY:
            users = user_names(str(target))
            why = (
                f"is in use{users and f' by {users}'}, and was not changed: stop the programs that "
                "have it open, then copy again"
            )
        raise BackupError(f"{str(target)!r} {why}") from error
    Path(f"{target}-shm").unlink(missing_ok=True)  # left by a killed program
    return True


def _refuse_what_lies_beside_unreadable(raw: sqlite3.Connection, target: Path) -> None:
    try:
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        if sqlite_code(error) in (SQLITE_NOTADB, SQLITE_CORRUPT):
            _refuse_what_lies_beside(target, f"cannot be read ({error})")


def _refuse_what_lies_beside(target: Path, why: str, ends: tuple[str, ...] = BESIDE) -> None:
    beside = [f"{target}{end}" for end in ends if os.path.lexists(f"{target}{end}")]
    if beside:
        raise BackupError(
            f"{str(target)!r} {why}, and SQLite would treat {', '.join(map(repr, beside))} as "
            "part of the copy. They may hold the last commits of a database that had this name: "
            "when no program uses it, move them away together with it, then copy again"
        )


def _write_into(target: sqlite3.Connection, unfinished: Path) -> None:
    """Write the content of the copy into a locked database, in one transaction.

    The database leaves WAL mode, in which its page size could not change. The content of its
    ``-wal`` goes into the file first.
    """
    with _without_wal(target), closing(sqlite3.connect(unfinished)) as copy:
        copy.backup(target)


@contextmanager
def _without_wal(raw: sqlite3.Connection) -> Iterator[None]:
    """Leave WAL mode, keep the lock, and restore the journal mode if the copy fails."""
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    raw.execute("PRAGMA synchronous=EXTRA")
    raw.execute("PRAGMA journal_mode=DELETE").fetchone()
    try:
        yield
    except BaseException:
        with suppress(sqlite3.ProgrammingError):  # closed
            raw.execute(f"PRAGMA journal_mode={mode}").fetchone()
        raise


def _create(unfinished: Path, mode: int) -> None:
    """Create the file with the mode of the source, so that only its readers can read the copy."""
    _remove(unfinished)  # left by a killed process with this id
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        os.close(os.open(unfinished, flags, mode & 0o666 | 0o600))
    except OSError as error:  # name the folder: the user does not know this file name
        raise OSError(error.errno, error.strerror, str(unfinished.parent)) from error


def _remove(unfinished: Path) -> None:
    for end in ("", *BESIDE):
        Path(f"{unfinished}{end}").unlink(missing_ok=True)


def _make_alike(unfinished: Path, target: Path) -> None:
    """Copy owner and mode of the file that is replaced, if there is one."""
    if not target.exists():
        return
    replaced = target.stat()
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root may give a file away
            os.chown(unfinished, replaced.st_uid, replaced.st_gid)
    unfinished.chmod(replaced.st_mode & 0o777)


def _copy(source: Path, unfinished: Path, progress: Progress | None) -> tuple[str, ...]:
    def report(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    with closing(sqlite3.connect(unfinished)) as copy:
        try:
            with _reading(source) as reader:
                reader.backup(copy, pages=PAGES, progress=report)
        except BackupError:
            raise
        except sqlite3.Error as error:
            if sqlite_code(error) == SQLITE_FULL:
                why = os.strerror(errno.ENOSPC)
                raise OSError(errno.ENOSPC, why, str(unfinished.parent)) from error
            if sqlite_code(error) == SQLITE_BUSY:
                raise BackupError(
                    f"{str(source)!r} was locked for longer than {BUSY_TIMEOUT:g} s by "
                    f"{lock_owner(str(source))}: copy again when that has ended"
                ) from error
            raise explain(error, str(source)) from error
        found = integrity.check(copy, PROBLEMS)
        if found.problems:
            raise BackupError(
                f"the copy of {str(source)!r} is damaged and was removed; the database itself may "
                f"be damaged. Run `qsession doctor` for advice: {'; '.join(found.problems)}"
            )
        return found.unchecked


@contextmanager
def _reading(source: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads one snapshot of the source."""
    frozen = frozen_uri(str(source), uri=False)
    before = fingerprint(str(source))
    with closing(_opened_to_read(source, frozen)) as reader:
        if reader.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield reader
    if frozen is not None and fingerprint(str(source)) != before:
        raise BackupError(f"another user changed {str(source)!r} during the copy: copy again")


def _opened_to_read(source: Path, frozen: str | None) -> sqlite3.Connection:
    def opened(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)

    address = source.absolute().as_uri()
    if frozen is not None:
        return opened(frozen)
    if _size(Path(f"{source}-wal")):  # "rw" moves it into the file if it is the last to close
        with suppress(sqlite3.OperationalError):
            return opened(f"{address}?mode=ro")
    try:
        return opened(f"{address}?mode=rw")  # "ro" fails if no other connection is open
    except sqlite3.OperationalError:
        return opened(f"{address}?mode=ro")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no way to flush a folder
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
