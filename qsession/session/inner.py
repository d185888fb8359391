"""The synchronous session inside a `QSession`, which records uncommitted writes.

It records each write with its transaction and savepoint. So it needs no notice of a commit: a
transaction that is no longer the current one has ended.
"""

from __future__ import annotations

import copy
import functools
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import TextClause, event, exc, inspect
from sqlalchemy.engine import CursorResult, Engine
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, sessionmaker

from qsession.engine import is_replicated, refusal
from qsession.session.line import Line, in_turn_from_greenlet

_F = TypeVar("_F", bound=Callable[..., Any])
_ENDS = re.compile(r"\s*(?:COMMIT|END|ROLLBACK(?!\s+(?:TRANSACTION\s+)?TO\b))\b", re.IGNORECASE)


def _noting_writes(operation: _F) -> _F:
    @functools.wraps(operation)
    def execute(self: InnerSession, statement: Any, *args: Any, **kw: Any) -> Any:
        result = operation(self, statement, *args, **kw)
        if isinstance(statement, TextClause):
            if _ENDS.match(statement.text):
                self.forget_all()
            elif _has_changed_rows(result) and not _is_committed(result):
                self.note(f"the changes of {' '.join(str(statement).split()):.60}")
        elif getattr(statement, "is_dml", False) and not _is_committed(result):
            table = getattr(getattr(statement, "table", None), "description", "a table")
            self.note(f"{statement.__visit_name__} on {table}")
        return result

    return cast("_F", execute)


def _is_committed(result: object) -> bool:
    """Whether a statement is already committed, because of AUTOCOMMIT."""
    if not isinstance(result, CursorResult):
        return False
    asked = result.connection.get_execution_options().get("isolation_level")
    return (asked or result.connection.dialect._on_connect_isolation_level) == "AUTOCOMMIT"


def _has_changed_rows(result: object) -> bool:
    """Whether the result of a statement of unknown kind shows that it changed rows."""
    return isinstance(result, CursorResult) and not result.returns_rows and result.rowcount > 0


def refusal_of(session: Session) -> BaseException | None:
    """Why the transaction of a session can only be rolled back, even if other code has caught that
    error; None if it can continue.
    """
    transaction = session.get_transaction()
    if transaction is None:
        return None
    if transaction._rollback_exception is not None:  # a flush has failed
        return transaction._rollback_exception
    connections = {each[0] for each in transaction._connections.values()}
    refused = (refusal(each) for each in connections)
    return next((each for each in refused if each is not None), None)


class InnerTransaction(SessionTransaction):
    """The transaction of an `InnerSession`; it passes the session's mode to its connections."""

    session: InnerSession

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Any:
        """As in SQLAlchemy. A connection to which the session is bound keeps its options."""
        if bind not in self._connections and isinstance(bind, Engine):
            execution_options = {**self.session.mode, **(execution_options or {})}
            if is_replicated(bind):
                bind = bind.for_session(execution_options)
        return super()._connection_for_bind(bind, execution_options)


class InnerSession(Session):
    """A `Session` that waits for its turn when it is called directly, and records its writes."""

    line: Line
    mode: Mapping[str, Any]
    """The execution options of its transactions."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._notes: dict[tuple[str, SessionTransaction | None], None] = {}
        self._noted_in: Callable[[], SessionTransaction | None] = _nothing

    execute = in_turn_from_greenlet(_noting_writes(Session.execute))
    if not TYPE_CHECKING:  # mypy cannot pass its overloads through a TypeVar; they stay the same
        scalar = in_turn_from_greenlet(_noting_writes(Session.scalar))
    scalars = in_turn_from_greenlet(_noting_writes(Session.scalars))

    def _bulk_save_mappings(self, mapper: Any, mappings: Any, *args: Any, **kw: Any) -> None:
        """As in SQLAlchemy, for all its bulk methods. They are no flush, so it is noted here."""
        mappings = list(mappings)
        super()._bulk_save_mappings(mapper, mappings, *args, **kw)
        if mappings:
            self.note(f"bulk save of {inspect(mapper).class_.__name__}")

    def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
        """As in SQLAlchemy. Only the outermost transaction takes connections from engines."""
        if self._transaction is not None or not (begin or self.autobegin):
            return super()._autobegin_t(begin)
        origin = SessionTransactionOrigin
        return InnerTransaction(self, origin.BEGIN if begin else origin.AUTOBEGIN)

    @property
    def refusal(self) -> BaseException | None:
        """As `refusal_of`."""
        return refusal_of(self)

    def note(self, what: str) -> None:
        """Record a write of the current transaction."""
        transaction = self.get_transaction()
        if transaction is None:
            return
        if self._noted_in() is not transaction:
            self._notes.clear()
            self._noted_in = weakref.ref(transaction)  # a strong one would be a cycle
        self._notes[what, self.get_nested_transaction()] = None

    def forget_all(self) -> None:
        """Forget all writes, which were committed or rolled back."""
        self._notes.clear()

    def forget(self, savepoint: SessionTransaction) -> None:
        """Forget the writes since `savepoint`, which was rolled back."""
        for key in list(self._notes):
            if _within(key[1], savepoint):
                del self._notes[key]

    def unsaved(self) -> list[str]:
        """What closing the session would lose, in words. Nothing after a failed flush."""
        transaction = self.get_transaction()
        if transaction is None or not self.is_active:
            return []
        lost = _count("new", self.new)
        lost += _count("changed", (each for each in self.dirty if self.is_modified(each)))
        lost += _count("deleted", self.deleted)
        if self._noted_in() is transaction:
            lost += dict.fromkeys(what for what, _ in self._notes)
        return lost


def _nothing() -> None:
    return None


def _within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


def _count(kind: str, objects: Iterable[object]) -> list[str]:
    counts = Counter(type(each).__name__ for each in objects)
    return [f"{number} {kind} {name}" for name, number in counts.items()]


@event.listens_for(InnerSession, "after_flush")
def _flushed(session: InnerSession, _context: Any) -> None:
    names = {type(each).__name__ for each in session.new}
    names.update(type(each).__name__ for each in session.deleted)
    for each in session.dirty:
        name = type(each).__name__
        if name not in names and session.is_modified(each):
            names.add(name)
    if names:
        session.note("flushed " + ", ".join(sorted(names)))


@event.listens_for(InnerSession, "after_soft_rollback")
def _rolled_back(session: InnerSession, transaction: SessionTransaction) -> None:
    if transaction.nested:
        session.forget(transaction)


_classes: dict[type[Session], type[InnerSession]] = {Session: InnerSession}


def inner_maker(asked: Any) -> Any:
    """The maker of inner sessions for the class or `sessionmaker` `asked`.

    Raises `sqlalchemy.exc.ArgumentError` for any other callable.
    """
    if asked is Session:
        return InnerSession
    if isinstance(asked, sessionmaker):
        maker = copy.copy(asked)
        maker.class_ = inner_class(asked.class_)
        return maker
    if isinstance(asked, type) and issubclass(asked, Session):
        return inner_class(asked)
    raise exc.ArgumentError(
        f"sync_session_class={asked!r} is not allowed: use a subclass of Session or a sessionmaker"
    )


def inner_class(base: type[Session]) -> type[InnerSession]:
    """The class to use for `base`: a subclass of both `base` and `InnerSession`."""
    if issubclass(base, InnerSession):
        return base
    if base not in _classes:
        _classes[base] = cast("type[InnerSession]", type(base.__name__, (base, InnerSession), {}))
    return _classes[base]
