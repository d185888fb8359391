"""Group commit: transactions that one COMMIT makes durable.

The first member began with BEGIN IMMEDIATE; each one after it ran under a savepoint, on top of
what the finished ones had written. None of them is told that it is committed before the COMMIT is.
The functions at the end run in the connection's thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.util import await_only

from qsession.errors import SQLITE_BUSY, SQLITE_CONSTRAINT, GroupAborted, sqlite_code
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.log import Log, same_again
from qsession.sqlite.pace import turns
from qsession.sqlite.processes.turn import FileTurn
from qsession.waiting.handoff import to_end

MAX_AGE = 0.02
"""Seconds after the turn to write to the file came when a group closes at the latest."""
SHARED_AGE = 0.1
"""The same for the first group of a turn while another process, or engine, waits for it.

Whoever is left behind then waits until all of those had their turn.
"""
SLOW = 0.002
"""Seconds after which a member that has not finished is taken out."""
JOIN = "SAVEPOINT qsession_member"
_RETRY = 0.005


class _Undecided(sqlite3.OperationalError):
    """What a member is told if the connection was closed before anybody could decide."""


@dataclass(eq=False, slots=True)
class Member:
    """A finished transaction whose COMMIT is still to come."""

    log: Log
    wrote: bool
    error: Exception | None = field(
        default_factory=lambda: _Undecided("the COMMIT of its group was not made")
    )


@dataclass(eq=False)
class Group:
    """Finished members, in the order they finished."""

    driver: DriverConnection
    members: list[Member] = field(default_factory=list)
    _waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = field(
        default_factory=dict
    )
    _settled: bool = False

    def closes(self, waiting: int, size: int, turn: FileTurn) -> bool:
        """Whether it closes now that a member has finished: nobody follows, full, or old.

        The age is the turn's: groups that follow each other at once share one.
        """
        age = turn.age
        if not waiting or len(self.members) >= size or age >= SHARED_AGE:
            return True
        return age >= MAX_AGE and (turn.groups > 1 or not turn.wanted())

    def concerns(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a task of ``loop`` waits for it."""
        return loop in self._waiting

    def add(self, log: Log, wrote: bool) -> Member:
        """Put a transaction of the running loop into it; call ``wait`` for its fate."""
        member = Member(log, wrote)
        self.members.append(member)
        self._waiting.setdefault(asyncio.get_running_loop(), [])
        return member

    def wait(self, member: Member) -> None:
        """Wait for the COMMIT, through any cancellation; raise what became of ``member``."""
        self.wait_for_commit()
        if member.error is not None:
            raise member.error

    def wait_for_commit(self) -> None:
        """Wait until it is known what became of all members, through any cancellation."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, [])
        try:
            if not self._settled:
                await_only(_one_more(loop, waiting))
        except asyncio.CancelledError:
            if not self._settled:  # AnyIO cancels once more in each turn of the loop
                await_only(to_end(_one_more(loop, waiting)))
            raise
        finally:
            turns.of(loop).begin()

    def read(self) -> Read:
        """What one has read who leaves it now: the rows of those who have finished."""
        return Read(self, list(self.members))

    def settle(self) -> None:
        """Tell all members. In the connection's thread."""
        self._settled = True
        for loop, waiting in self._waiting.copy().items():  # in one step: other threads add
            try:
                loop.call_soon_threadsafe(_tell, loop, waiting)
            except RuntimeError:  # the loop is closed: nobody of it waits any more
                continue

    def commit(self, raw: sqlite3.Connection, timeout: float) -> None:
        """Make all members durable, or say of each why not. In the connection's thread."""
        if not raw.in_transaction:  # SQLite has dropped it, and nobody has noticed
            self.replay(raw, timeout)
            return
        error = _commit(raw, timeout)
        if error is None:
            self.decide(None)
            return
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        if sqlite_code(error) == SQLITE_CONSTRAINT and len(self.members) > 1:
            self.replay(raw, timeout)  # a deferred foreign key: only its owner is to fail
            return
        self.decide(error)

    def decide(self, error: Exception | None) -> None:
        """The same for all members: committed (None), or why not."""
        for member in self.members:
            member.error = error

    def fail(self, error: Exception) -> None:
        """Something broke in between: this is for those of whom nothing was decided yet."""
        for member in self.members:
            if isinstance(member.error, _Undecided):
                member.error = error

    def give_up(self, raw: sqlite3.Connection, timeout: float) -> None:
        """Undo all members, who have been told why."""
        if raw.in_transaction:
            raw.execute("ROLLBACK")

    def leave_and_commit(self, raw: sqlite3.Connection, timeout: float) -> None:
        """Take the member that is still at work out, then commit the finished ones."""
        leave(raw)
        self.commit(raw, timeout)

    def start_again(self, raw: sqlite3.Connection, timeout: float) -> None:
        """Undo all members, then run them again."""
        self.give_up(raw, timeout)
        self.replay(raw, timeout)

    def replay(self, raw: sqlite3.Connection, timeout: float) -> None:
        """Run each member again, each with its own COMMIT. In the connection's thread."""
        for member in self.members:
            try:
                member.error = _replay(raw, member, timeout)
            except Exception as error:
                member.error = error
            if raw.in_transaction:
                raw.execute("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Read:
    """What was read in a group by somebody who is no longer in it."""

    group: Group
    members: Sequence[Member]

    def confirm(self) -> None:
        """Wait until it is durable; raises :class:`GroupAborted` if it has been undone instead."""
        self.group.wait_for_commit()
        for member in self.members:
            if member.error is not None:
                raise GroupAborted(
                    "What this transaction had read was written by others in the same commit "
                    f"group, and has been rolled back since: {member.error}"
                )


def _one_more(
    loop: asyncio.AbstractEventLoop, waiting: list[asyncio.Future[None]]
) -> asyncio.Future[None]:
    """What is told once the group is settled: its thread does so after ``_settled`` is true."""
    future = loop.create_future()
    waiting.append(future)
    return future


def _tell(loop: asyncio.AbstractEventLoop, waiting: list[asyncio.Future[None]]) -> None:
    """Let them go on one by one, or all at once would keep the loop from everything else."""
    turns.of(loop).let_in(waiting)


def _replay(raw: sqlite3.Connection, member: Member, timeout: float) -> Exception | None:
    if not member.log.complete:
        return GroupAborted(
            "SQLite rolled back the transactions of a commit group, and this one was too long to "
            "be run again. Nothing of it was written."
        )
    error = _patiently(raw, "BEGIN IMMEDIATE", timeout)
    if error is not None:
        return error
    for entry in member.log.entries:
        if not same_again(raw, entry) or not raw.in_transaction:
            return GroupAborted(
                "SQLite rolled back the transactions of a commit group, and this one did not "
                f"come out the same when it was run again: {entry.statement.sql!r}. Nothing of it "
                "was written."
            )
    return _commit(raw, timeout)


def _commit(raw: sqlite3.Connection, timeout: float) -> sqlite3.Error | None:
    return _patiently(raw, "COMMIT", timeout) if raw.in_transaction else None


def _patiently(raw: sqlite3.Connection, sql: str, timeout: float) -> sqlite3.Error | None:
    """Run it, again while another process holds a lock, for ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            raw.execute(sql)
        except sqlite3.Error as error:
            if sqlite_code(error) != SQLITE_BUSY or time.monotonic() >= deadline:
                return error
            time.sleep(_RETRY)
        else:
            return None


def leave(raw: sqlite3.Connection, cursors: Sequence[sqlite3.Cursor] = ()) -> None:
    """Undo one member, and nothing else."""
    for cursor in cursors:
        cursor.close()
    if raw.in_transaction:
        raw.execute("ROLLBACK TO qsession_member")
        raw.execute("RELEASE qsession_member")


def finish(raw: sqlite3.Connection) -> None:
    """Keep what one member has written, for the COMMIT of the group."""
    raw.execute("RELEASE qsession_member")
