"""What a statement needs, given the state of its transaction: one pure function.

`decide` does no I/O and does not wait. The transaction does what it returns.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from qsession.config import Access
from qsession.sqlite.queue.want import Want
from qsession.sqlite.transaction.statement import ONLY_OUTSIDE, Kind, Words, leaves_wal


class State(Enum):
    """The states of a transaction. After each end it is IDLE again."""

    IDLE = "nothing was sent"
    READING = "has read without BEGIN: each statement saw the latest commit"
    SNAPSHOT = "BEGIN was sent: everything is read from one snapshot"
    LOCKED = "has SQLite's write lock and the ticket"
    FAILED = "lost: every statement raises the reason, until it is rolled back"

    __hash__ = object.__hash__  # by identity; Enum's own is written in Python


class Begin(Enum):
    """What is sent before a statement."""

    NOTHING = "nothing"
    SNAPSHOT = "BEGIN"
    WRITE = "BEGIN IMMEDIATE, then the log is validated"
    END = "COMMIT of a transaction that has only read"


class Instead(Enum):
    """What happens instead of sending a statement."""

    REMEMBER = "it is sent after BEGIN IMMEDIATE, if that is sent"
    BEGIN = "the next statement begins"
    COMMIT = "the transaction is committed"
    ROLLBACK = "the transaction is rolled back"
    REFUSE_WRITE = "ReadOnlyError"
    REFUSE_SETTING = "an error: SQLite silently ignores it after a write"
    REFUSE_SNAPSHOT = "an error: it would end the snapshot of the transaction"


class Situation(NamedTuple):
    """The facts about a transaction on which a decision depends."""

    state: State = State.IDLE
    access: Access = "auto"
    snapshot: bool = False
    """Whether its reads share one snapshot in access ``auto``."""
    by_hand: bool = False
    """Whether the application has sent BEGIN itself."""
    alone: bool = False
    """AUTOCOMMIT: the statement is its own transaction."""
    writes_mostly: bool = False
    """Whether it probably writes, as its call site did before."""
    locks: bool = False
    """Whether it takes the write lock with its first statement, as FOR UPDATE does."""
    savepoints: tuple[str, ...] = ()
    """Savepoints that were remembered, and not sent."""


class Action(NamedTuple):
    """What a statement needs."""

    want: Want = Want.NO
    begin: Begin = Begin.NOTHING
    claims: bool = False
    """Whether the ticket can no longer be taken away after this."""
    query_only: bool | None = None
    """The value of ``PRAGMA query_only``; None if it does not matter."""
    logs: bool = False
    """Whether the result is logged, to be validated at the first write."""
    keeps: bool = False
    """Whether it sets something on the connection, which then stays with its user."""
    only_begins: bool = False
    """Whether the statement is itself the BEGIN."""
    instead: Instead | None = None


_SEND = Action()


@lru_cache(maxsize=1_000)
def decide_for(kind: Kind, words: Words | None, nowait: bool, *facts: Any) -> Action:
    """As :func:`decide`, with the fields of a :class:`Situation`. Most are known from before."""
    return decide(Situation(*facts), kind, words, nowait)


def decide(now: Situation, kind: Kind, words: Words | None = None, nowait: bool = False) -> Action:
    """What a statement of ``kind`` needs in a transaction in the situation ``now``."""
    if kind is Kind.COMMIT or kind is Kind.ROLLBACK:
        return Action(instead=Instead.COMMIT if kind is Kind.COMMIT else Instead.ROLLBACK)
    if now.access == "read" and (kind in _WRITES or leaves_wal(words)):
        return Action(instead=Instead.REFUSE_WRITE)
    if now.state is State.LOCKED:
        return _after_a_write(kind, words)
    if kind is Kind.READ or kind is Kind.UNKNOWN:
        return _read(now, kind)
    if kind in _LOCKS:
        by_hand = kind is Kind.BEGIN_WRITE
        if by_hand and now.by_hand:
            return _begin_again(now)
        return Action(
            Want.AT_ONCE if nowait else Want.WAIT,
            Begin.NOTHING if now.alone and not by_hand else Begin.WRITE,
            claims=True,
            query_only=False,
            keeps=kind is Kind.SET_IN_FILE,
            only_begins=by_hand,
        )
    if kind is Kind.OUTSIDE:
        begin = Begin.END if now.state is State.SNAPSHOT else Begin.NOTHING
        return Action(Want.WAIT, begin, claims=True, query_only=False)
    if kind is Kind.SET:
        return _set(now, words)
    if kind is Kind.BEGIN:
        return _begin_again(now) if now.by_hand else Action(instead=Instead.BEGIN)
    if kind is Kind.DEFER or kind is Kind.SAVEPOINT:
        return Action(instead=Instead.REMEMBER)
    if kind is Kind.RELEASE or kind is Kind.ROLLBACK_TO:
        known = words is not None and words.name in now.savepoints
        return Action(instead=Instead.REMEMBER) if known else _SEND
    if kind is Kind.COPY:
        ends = now.state is State.SNAPSHOT and now.access != "read"
        return Action(begin=Begin.END if ends else Begin.NOTHING, query_only=False)
    return Action(keeps=kind is Kind.WATCH)  # TELL, WATCH


_LOCKS = frozenset((Kind.WRITE, Kind.LOCK, Kind.SET_IN_FILE, Kind.BEGIN_WRITE))
_WRITES = _LOCKS | {Kind.OUTSIDE}


def _read(now: Situation, kind: Kind) -> Action:
    if now.locks and now.access != "read" and not now.alone:
        return Action(Want.WAIT, Begin.WRITE, claims=True, query_only=False)
    query_only = True if kind is Kind.UNKNOWN or now.access == "read" else None
    if now.alone:
        return Action(query_only=query_only)
    want, begin = Want.NO, Begin.NOTHING
    if now.state is State.IDLE and now.access == "write":
        want = Want.WAIT
    elif now.state is State.IDLE and now.access == "auto" and now.writes_mostly:
        want = Want.WHILE_IT_MOVES
    if now.state is not State.SNAPSHOT and (now.access != "auto" or now.snapshot):
        begin = Begin.SNAPSHOT
    return Action(want, begin, query_only=query_only, logs=now.access != "read")


def _begin_again(now: Situation) -> Action:
    """A second BEGIN: SQLite raises the error, after the first BEGIN has been sent."""
    return _SEND if now.state is State.SNAPSHOT else Action(begin=Begin.SNAPSHOT)


def _after_a_write(kind: Kind, words: Words | None) -> Action:
    """SQLite checks the statement itself, except for PRAGMAs that it silently ignores."""
    if kind is Kind.SET:
        silent = words is not None and words.name == "foreign_keys"
        return Action(instead=Instead.REFUSE_SETTING) if silent else Action(keeps=True)
    return Action(keeps=kind in (Kind.SET_IN_FILE, Kind.WATCH))


def _set(now: Situation, words: Words | None) -> Action:
    """A statement that works only outside a transaction ends one that has only read."""
    outside = words is None or words.name in ONLY_OUTSIDE or words.name in ("attach", "detach")
    if now.state is State.SNAPSHOT and outside:
        if now.access == "read":
            return Action(instead=Instead.REFUSE_SNAPSHOT)
        return Action(begin=Begin.END, keeps=True)
    return Action(keeps=True)
