"""What a transaction tells in words: the errors that it raises, and the warning of lost changes."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from qsession import errors
from qsession.errors import QSessionError
from qsession.sqlite.processes.owners import lock_owner
from qsession.sqlite.transaction.decide import Instead
from qsession.waiting.callers import current_call


def refusal(instead: Instead, sql: str) -> QSessionError:
    """The error for a statement that is refused."""
    if instead is Instead.REFUSE_WRITE:
        return errors.ReadOnlyError(
            f"A transaction with access='read' cannot write: {sql!r}. Use qsession() or "
            "access='auto' for a transaction that writes."
        )
    if instead is Instead.REFUSE_SNAPSHOT:
        return QSessionError(
            f"{sql!r} works only outside a transaction, but this one has access='read' and already "
            "has a snapshot. Send it as the first statement."
        )
    return QSessionError(
        f"{sql!r} was not run: SQLite ignores it inside a transaction, and this transaction has "
        "written. Commit first, or send it as the first statement. In an Alembic migration, send "
        "it in `with op.get_context().autocommit_block():`, or call qsession.migrate.run() in "
        "env.py, which handles foreign keys."
    )


def ended_elsewhere(sql: str) -> QSessionError:
    """The error for a statement whose transaction was ended while it waited."""
    return QSessionError(
        f"{sql!r} was not run: another task ended the transaction while the statement waited."
    )


def closed(sql: str) -> QSessionError:
    """The error for a statement that waited while its connection was closed."""
    return QSessionError(
        f"{sql!r} was not run: while it waited, the connection was closed, or another statement on "
        "it was cancelled."
    )


def cancelled() -> QSessionError:
    """The error for what follows a cancelled statement."""
    return QSessionError("The transaction was rolled back because a statement in it was cancelled.")


def dropped(sql: str, error: Exception) -> QSessionError:
    """The error for what follows a statement after which SQLite itself has rolled back."""
    return QSessionError(
        f"SQLite rolled back the transaction after {sql!r} failed ({error}); nothing was written. "
        "Roll back and begin again."
    )


def settings_lost(sql: str, error: Exception) -> str:
    """Why a connection that was kept is gone."""
    return (
        f"The connection was closed after {sql!r} failed ({error}). Everything set on it is gone: "
        "PRAGMAs, temporary tables and attached databases. Close this connection or session, and "
        "set them again on a new one."
    )


def no_driver() -> QSessionError:
    """The error for ``driver_connection`` where there is none, and code cannot wait for one."""
    return QSessionError(
        "driver_connection is not available: this connection has no physical connection yet, and "
        "cannot wait for one here. Send a statement first, or use 'await "
        "connection.run_sync(lambda c: c.connection.driver_connection)', or 'await "
        "connection.get_raw_connection()' on a connection from an engine of "
        "qsession.create_async_engine() or from 'qsession().connection()'."
    )


def lock_timeout(
    sql: str, database: str, path: str, seconds: float, writers: str
) -> errors.QueueTimeout:
    """The error for a statement that has met the lock of another connection for too long.

    ``writers``: sentences about the writers of other engines of this process.
    """
    return errors.QueueTimeout(
        f"Another connection held a lock on {database!r} for longer than queue_timeout="
        f"{seconds:g} s; {sql!r} was not run. The lock is held by {lock_owner(path)}."
        f"{writers}"
    )


def in_its_own_way(error: Any) -> Exception:
    """SQLite's error for a lock that the connection itself holds, with advice."""
    return _busy(
        error,
        "this connection has attached its own database file, so it waits for its own lock. "
        "DETACH the file, and use one name for it.",
    )


def stays_in_wal(error: Any, sql: str) -> Exception:
    """SQLite's error for a change of the journal mode while others have the file open, with advice.

    The others are most likely idle connections of the engine. Nobody would close them meanwhile.
    """
    return _busy(
        error,
        f"{sql!r} takes the file out of WAL mode, and SQLite allows that only if no other "
        "connection is open. The engine keeps some, so the file stays in WAL mode until the "
        "engine is disposed of. Then send it with sqlite3. To copy a file that is in use, run "
        "'qsession backup'.",
    )


def _busy(error: Any, advice: str) -> Exception:
    told: Any = type(error)(f"{error}: {advice}")
    told.sqlite_errorcode = errors.SQLITE_BUSY
    return told  # type: ignore[no-any-return]


def tell_of_lost_changes(sql: str) -> None:
    """Warn of a statement that is lost as its connection is closed, not by an explicit rollback.

    SQLAlchemy calls the same hook in both cases; they differ in the calling function.
    """
    call = current_call()
    frame: Any = sys._getframe(2) if call is None else call.frame
    for _ in range(12):
        if frame is None:
            return
        if frame.f_code.co_name in ("_do_close", "_close_special", "_finalize_fairy"):
            warnings.warn(
                f"A connection was closed without a commit, and {sql!r} is lost. Unlike sqlite3, "
                "qsession does not commit such a statement at once: call commit() before the "
                "connection is closed, use engine.begin(), or call rollback() to discard it",
                errors.UncommittedChangesWarning,
                stacklevel=3,
            )
            return
        frame = frame.f_back
