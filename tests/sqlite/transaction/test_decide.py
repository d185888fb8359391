"""What a statement needs, by the state of its transaction: each row of the table is a sentence."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from qsession.config import ACCESSES
from qsession.sqlite.queue.want import Want
from qsession.sqlite.transaction.decide import (
    Action,
    Begin,
    Instead,
    Situation,
    State,
    decide,
)
from qsession.sqlite.transaction.statement import Kind, Words

IDLE, READING, SNAPSHOT, LOCKED = State.IDLE, State.READING, State.SNAPSHOT, State.LOCKED
SENT = Action()
LOCKS = Action(Want.WAIT, Begin.WRITE, claims=True, query_only=False)


def now(state: State = IDLE, access: Any = "auto", **kw: Any) -> Situation:
    return Situation(state, access, **kw)


def instead(what: Instead) -> Action:
    return Action(instead=what)


def pragma(name: str, kind: Kind = Kind.SET) -> Words:
    return Words(kind, name)


Row = tuple[str, Situation, Kind, Action]

READS: list[Row] = [
    (
        "in auto a SELECT is sent without BEGIN, and logged",
        now(),
        Kind.READ,
        Action(logs=True),
    ),
    (
        "the second SELECT in auto needs no more than the first",
        now(READING),
        Kind.READ,
        Action(logs=True),
    ),
    (
        "where the call site writes mostly, the first SELECT waits for the ticket while it moves",
        now(writes_mostly=True),
        Kind.READ,
        Action(Want.WHILE_IT_MOVES, logs=True),
    ),
    (
        "the second SELECT does not ask for the ticket again",
        now(READING, writes_mostly=True),
        Kind.READ,
        Action(logs=True),
    ),
    (
        "with reads='snapshot' the first SELECT begins a snapshot",
        now(snapshot=True),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, logs=True),
    ),
    (
        "with reads='snapshot' a call site that writes mostly takes the ticket before it",
        now(snapshot=True, writes_mostly=True),
        Kind.READ,
        Action(Want.WHILE_IT_MOVES, Begin.SNAPSHOT, logs=True),
    ),
    (
        "with reads='snapshot' the second SELECT reads from the same snapshot",
        now(SNAPSHOT, snapshot=True),
        Kind.READ,
        Action(logs=True),
    ),
    (
        "a snapshot that was given up while it waited is begun anew",
        now(READING, snapshot=True),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, logs=True),
    ),
    (
        "in write the first SELECT waits for the ticket, then begins a snapshot",
        now(access="write"),
        Kind.READ,
        Action(Want.WAIT, Begin.SNAPSHOT, logs=True),
    ),
    (
        "in write the second SELECT does not wait",
        now(SNAPSHOT, "write"),
        Kind.READ,
        Action(logs=True),
    ),
    (
        "in write a snapshot that was given up is begun anew, without waiting",
        now(READING, "write"),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, logs=True),
    ),
    (
        "in read the first SELECT begins a snapshot, waits for nobody and keeps no log",
        now(access="read"),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, query_only=True),
    ),
    (
        "in read the second SELECT reads from the same snapshot",
        now(SNAPSHOT, "read"),
        Kind.READ,
        Action(query_only=True),
    ),
    (
        "in read nothing is predicted",
        now(access="read", writes_mostly=True),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, query_only=True),
    ),
    (
        "text of an unknown kind runs where the database refuses to write",
        now(),
        Kind.UNKNOWN,
        Action(query_only=True, logs=True),
    ),
    (
        "in write too, for as long as nothing is locked",
        now(access="write"),
        Kind.UNKNOWN,
        Action(Want.WAIT, Begin.SNAPSHOT, query_only=True, logs=True),
    ),
    (
        "under AUTOCOMMIT a SELECT needs nothing, and is not logged",
        now(alone=True),
        Kind.READ,
        SENT,
    ),
    (
        "under AUTOCOMMIT text of an unknown kind may turn out to write",
        now(alone=True),
        Kind.UNKNOWN,
        Action(query_only=True),
    ),
    (
        "a transaction that is asked to lock does so with its first SELECT",
        now(locks=True),
        Kind.READ,
        LOCKS,
    ),
    (
        "a reader that is asked to lock only reads",
        now(access="read", locks=True),
        Kind.READ,
        Action(begin=Begin.SNAPSHOT, query_only=True),
    ),
    (
        "under AUTOCOMMIT there is nothing to be locked",
        now(alone=True, locks=True),
        Kind.READ,
        SENT,
    ),
]

WRITES: list[Row] = [
    ("the first write of a transaction takes the ticket and the lock", now(), Kind.WRITE, LOCKS),
    ("so does one behind a read, which is validated", now(READING), Kind.WRITE, LOCKS),
    ("so does one behind a snapshot", now(SNAPSHOT, "write"), Kind.WRITE, LOCKS),
    ("FOR UPDATE locks as a write does", now(), Kind.LOCK, LOCKS),
    (
        "under AUTOCOMMIT a write holds the ticket, and SQLite begins by itself",
        now(alone=True),
        Kind.WRITE,
        Action(Want.WAIT, claims=True, query_only=False),
    ),
    (
        "so does FOR UPDATE, for as long as the statement runs",
        now(alone=True),
        Kind.LOCK,
        Action(Want.WAIT, claims=True, query_only=False),
    ),
    (
        "but BEGIN IMMEDIATE begins a transaction there, too",
        now(alone=True),
        Kind.BEGIN_WRITE,
        Action(Want.WAIT, Begin.WRITE, claims=True, query_only=False, only_begins=True),
    ),
    (
        "CREATE TEMP keeps the connection",
        now(),
        Kind.SET_IN_FILE,
        Action(Want.WAIT, Begin.WRITE, claims=True, query_only=False, keeps=True),
    ),
    (
        "VACUUM holds the ticket, outside of a transaction",
        now(),
        Kind.OUTSIDE,
        Action(Want.WAIT, claims=True, query_only=False),
    ),
    (
        "VACUUM ends a transaction that has only read",
        now(SNAPSHOT, "write"),
        Kind.OUTSIDE,
        Action(Want.WAIT, Begin.END, claims=True, query_only=False),
    ),
    (
        "BEGIN IMMEDIATE by hand is itself what begins",
        now(),
        Kind.BEGIN_WRITE,
        Action(Want.WAIT, Begin.WRITE, claims=True, query_only=False, only_begins=True),
    ),
    (
        "the second BEGIN by hand is SQLite's to refuse",
        now(SNAPSHOT, by_hand=True),
        Kind.BEGIN_WRITE,
        SENT,
    ),
    (
        "so the first one is sent, if it was not",
        now(by_hand=True),
        Kind.BEGIN_WRITE,
        Action(begin=Begin.SNAPSHOT),
    ),
]

OTHERS: list[Row] = [
    ("BEGIN by hand waits for the next statement", now(), Kind.BEGIN, instead(Instead.BEGIN)),
    ("a second one is SQLite's to refuse", now(SNAPSHOT, by_hand=True), Kind.BEGIN, SENT),
    ("also the first time", now(by_hand=True), Kind.BEGIN, Action(begin=Begin.SNAPSHOT)),
    ("VACUUM INTO is not logged", now(), Kind.COPY, Action(query_only=False)),
    (
        "VACUUM INTO ends a snapshot",
        now(SNAPSHOT, "write"),
        Kind.COPY,
        Action(begin=Begin.END, query_only=False),
    ),
    ("but not the promised one", now(SNAPSHOT, "read"), Kind.COPY, Action(query_only=False)),
    ("a SAVEPOINT before a write is remembered", now(), Kind.SAVEPOINT, instead(Instead.REMEMBER)),
    ("defer_foreign_keys is, too", now(READING), Kind.DEFER, instead(Instead.REMEMBER)),
    (
        "the RELEASE of a remembered savepoint is remembered",
        now(savepoints=("a",)),
        Kind.RELEASE,
        instead(Instead.REMEMBER),
    ),
    ("the RELEASE of an unknown one is SQLite's to refuse", now(), Kind.RELEASE, SENT),
    (
        "so it is with ROLLBACK TO",
        now(READING, savepoints=("a",)),
        Kind.ROLLBACK_TO,
        instead(Instead.REMEMBER),
    ),
    ("PRAGMA data_version keeps the connection", now(), Kind.WATCH, Action(keeps=True)),
    ("a PRAGMA that tells something needs nothing", now(), Kind.TELL, SENT),
]


@pytest.mark.parametrize(
    ("situation", "kind", "action"),
    [pytest.param(*row, id=sentence) for sentence, *row in READS + WRITES + OTHERS],
)
def test_what_a_statement_needs(situation: Situation, kind: Kind, action: Action) -> None:
    """The sentence of each row names what is promised."""
    assert decide(situation, kind, Words(kind, "a")) == action


SETTINGS: list[tuple[str, Situation, str, Action]] = [
    ("a PRAGMA keeps the connection", now(), "cache_size", Action(keeps=True)),
    ("a snapshot is not in its way", now(SNAPSHOT, "write"), "cache_size", Action(keeps=True)),
    (
        "one that works only outside ends a transaction that has only read",
        now(SNAPSHOT, "write"),
        "foreign_keys",
        Action(begin=Begin.END, keeps=True),
    ),
    ("so does ATTACH", now(SNAPSHOT, "write"), "attach", Action(begin=Begin.END, keeps=True)),
    ("a read without BEGIN is not in its way", now(READING), "foreign_keys", Action(keeps=True)),
    (
        "the one snapshot of a reader is not ended behind its back",
        now(SNAPSHOT, "read"),
        "foreign_keys",
        instead(Instead.REFUSE_SNAPSHOT),
    ),
    (
        "behind a write it is refused, for SQLite would silently do nothing",
        now(LOCKED),
        "foreign_keys",
        instead(Instead.REFUSE_SETTING),
    ),
    ("others work behind a write", now(LOCKED), "cache_size", Action(keeps=True)),
    ("SQLite itself refuses ATTACH there", now(LOCKED), "attach", Action(keeps=True)),
]


@pytest.mark.parametrize(
    ("situation", "name", "action"),
    [pytest.param(*row, id=sentence) for sentence, *row in SETTINGS],
)
def test_settings(situation: Situation, name: str, action: Action) -> None:
    """A PRAGMA takes effect, or an error says why it does not."""
    assert decide(situation, Kind.SET, pragma(name)) == action


WRITING = [Kind.WRITE, Kind.LOCK, Kind.SET_IN_FILE, Kind.OUTSIDE, Kind.BEGIN_WRITE]
ENDS = {Kind.COMMIT: Instead.COMMIT, Kind.ROLLBACK: Instead.ROLLBACK}


@pytest.mark.parametrize("state", [IDLE, READING, SNAPSHOT])
@pytest.mark.parametrize("kind", WRITING)
def test_a_reader_never_writes(state: State, kind: Kind) -> None:
    """Whatever it has read before, and also under AUTOCOMMIT."""
    for alone in (False, True):
        assert decide(now(state, "read", alone=alone), kind) == instead(Instead.REFUSE_WRITE)


@pytest.mark.parametrize("state", [IDLE, READING, SNAPSHOT])
def test_a_reader_leaves_the_journal_mode_as_it_is(state: State) -> None:
    """The mode is in the header of the file, and ``PRAGMA query_only`` does not protect it."""
    leaves = Words(Kind.SET, "journal_mode", "delete")
    assert decide(now(state, "read"), Kind.SET, leaves) == instead(Instead.REFUSE_WRITE)
    assert decide(now(access="auto"), Kind.SET, leaves).instead is None


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.LOCK])
def test_nowait_takes_the_ticket_at_once(kind: Kind) -> None:
    """Or fails at once."""
    assert decide(now(), kind, nowait=True).want is Want.AT_ONCE


@pytest.mark.parametrize("kind", [each for each in Kind if each not in (*ENDS, Kind.SET)])
def test_behind_a_write_all_is_sent(kind: Kind) -> None:
    """The transaction has all it needs, nothing is logged, and SQLite's own errors hold."""
    for access in ("auto", "write"):
        action = decide(now(LOCKED, access), kind)
        assert action == Action(keeps=kind in (Kind.SET_IN_FILE, Kind.WATCH))


EVERY_SITUATION = [
    Situation(state, access, snapshot, by_hand, alone, writes_mostly, locks)
    for state, access, snapshot, by_hand, alone, writes_mostly, locks in product(
        [IDLE, READING, SNAPSHOT, LOCKED], ACCESSES, *[[False, True]] * 5
    )
]


@pytest.mark.parametrize("kind", Kind)
def test_what_holds_in_every_situation(kind: Kind) -> None:
    """The invariants of the design, for each kind of statement."""
    for situation in EVERY_SITUATION:
        action = decide(situation, kind, Words(kind, "cache_size"))
        if kind in ENDS:
            assert action == instead(ENDS[kind])
        if action.instead is not None:
            assert action == instead(action.instead)  # nothing else is done
        if action.claims:
            assert action.want in (Want.WAIT, Want.AT_ONCE)  # nobody writes without the ticket
            assert not action.logs
            assert action.query_only is False
        if action.begin is Begin.WRITE:
            assert action.claims
        if action.logs:
            assert kind in (Kind.READ, Kind.UNKNOWN)
            assert situation.access != "read"
            assert situation.state is not LOCKED  # a log exists only where nothing was written
        if situation.access == "read" and situation.state is not LOCKED:
            assert action.want is Want.NO or action.instead is not None  # it waits for nobody
        if situation.state is LOCKED:
            assert action.want is Want.NO
            assert action.begin is Begin.NOTHING
