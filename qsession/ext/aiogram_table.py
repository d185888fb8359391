"""The table of `qsession.ext.aiogram_states`: a row for each key, and what is done to one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from qsession.errors import ConflictError

if TYPE_CHECKING:
    from aiogram.fsm.storage.base import StorageKey
    from sqlalchemy.orm import Session

state_table = Table(
    "aiogram_states",
    MetaData(),
    Column("bot_id", BigInteger, primary_key=True, autoincrement=False),
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("thread_id", BigInteger, primary_key=True, autoincrement=False),
    Column("business_connection_id", String(255), primary_key=True),
    Column("destiny", String(255), primary_key=True),
    Column("state", String(255)),
    Column("data", JSON(none_as_null=True)),
)
"""The table of `StateStorage`. ``state_table.to_metadata(Base.metadata)``, beside the models of an
application, adds it to what ``create_all`` creates and to what Alembic compares."""

_KEPT: Any = object()


class Row(NamedTuple):
    """What a key has."""

    state: str | None
    data: dict[str, Any]


_NOTHING: Mapping[str, Any] = MappingProxyType({})
EMPTY = Row(None, {})


class Change(NamedTuple):
    """What is done to one key."""

    state: Any = _KEPT
    data: Mapping[str, Any] = _NOTHING
    replaces: bool = False
    """Whether ``data`` replaces what there is; otherwise its values are set, and others stay."""

    def then(self, later: Change) -> Change:
        """Both, as one."""
        state = self.state if later.state is _KEPT else later.state
        data = later.data if later.replaces else {**self.data, **later.data}
        return Change(state, data, self.replaces or later.replaces)

    def on(self, row: Row) -> Row:
        """The row after the change. It shares nothing with the change or with `row`."""
        state = row.state if self.state is _KEPT else self.state
        data = self.data if self.replaces else {**row.data, **self.data}
        return Row(state, copy.deepcopy(dict(data)))


def read(session: Session, key: StorageKey) -> Row:
    """The row of a key, as the transaction sees it."""
    return _select(session, key) or EMPTY


def apply(
    session: Session, key: StorageKey, change: Change, seen: Mapping[str, Any] = _NOTHING
) -> Row:
    """Change a row, and return it. Raises `ConflictError` if it is not what was `seen` of it."""
    stored = _select(session, key, lock=True)
    before = stored or EMPTY
    if any(getattr(before, part) != value for part, value in seen.items()):
        raise ConflictError(f"the state of {key} was changed after this handler had read it")
    row = change.on(before)
    values = {"state": row.state, "data": row.data or None}
    if row == EMPTY:
        session.execute(delete(state_table).where(*_where(key)))
    elif stored is None:
        session.execute(insert(state_table).values(**_columns(key), **values))
    else:
        session.execute(update(state_table).where(*_where(key)).values(**values))
    return row


def _select(session: Session, key: StorageKey, lock: bool = False) -> Row | None:
    wanted = select(state_table.c.state, state_table.c.data).where(*_where(key))
    found = session.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    return None if found is None else Row(found.state, found.data or {})


def _where(key: StorageKey) -> list[ColumnElement[bool]]:
    return [state_table.c[name] == value for name, value in _columns(key).items()]


def _columns(key: StorageKey) -> dict[str, Any]:
    """The primary key, in which NULL is not possible."""
    return {
        **vars(key),
        "thread_id": key.thread_id or 0,
        "business_connection_id": key.business_connection_id or "",
    }
