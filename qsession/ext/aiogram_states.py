"""aiogram 3: a storage for the states and data of conversations, in the application's database.

What a handler sets is written by the commit of its session. Until then it is in memory, so a
handler that sets a state and then talks to Telegram does not make other writers wait.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from aiogram.exceptions import DataNotDictLikeError
from aiogram.fsm.state import State
from aiogram.fsm.storage.base import BaseStorage, StateType, StorageKey
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from qsession.ext.aiogram import current_call
from qsession.ext.aiogram_table import Change, Row, apply, read, state_table
from qsession.session.maker import QSession, SessionMaker, qsession

__all__ = ["StateStorage", "state_table"]


class StateStorage(BaseStorage):
    """An FSM storage in `state_table`, for ``Dispatcher(storage=StateStorage())``.

    In a handler that has a session of `Sessions` with the same maker, changes are kept in memory
    until that session commits, and are written in its transaction. If the handler fails or rolls
    back, they are dropped; a savepoint that is rolled back drops those since it began. A change
    begins the transaction of the session, as ``session.add()`` does.

    The commit raises `ConflictError` if the handler changes a key of which it has read something
    that was changed by others meanwhile. ``update_data`` does not count as reading: it sets its
    values, and leaves the others as they are by then.

    Elsewhere, and in a handler with access ``read``, each call is a transaction of its own. Reading
    waits for nobody. Data must be a dict that JSON can hold. Raises what a session raises, such as
    `QueueTimeout`. A call that is cancelled has no effect, unless its COMMIT has begun.
    """

    def __init__(self, maker: SessionMaker = qsession) -> None:
        self.maker = maker

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        """Set the state of `key`, or remove it."""
        await self._change(key, Change(state.state if isinstance(state, State) else state))

    async def get_state(self, key: StorageKey) -> str | None:
        """The state of `key`, or None."""
        state: str | None = await self._read(key, "state")
        return state

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        """Replace the data of `key`. Raises aiogram's `DataNotDictLikeError`."""
        if not isinstance(data, dict):
            raise DataNotDictLikeError(f"data must be a dict, not {type(data).__name__}")
        await self._change(key, Change(data=copy.deepcopy(data), replaces=True))

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        """The data of `key`, or an empty dict."""
        data: dict[str, Any] = await self._read(key, "data")
        return data

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        """Set the values in `data`, and return all values."""
        change = Change(data=copy.deepcopy(dict(data)))
        row = await self._load(key, self._session())
        session = self._session()  # of a handler that has not returned meanwhile
        if session is None:
            return (await self.maker.run(_apply_now, key, change)).data
        return _noted(session).add(session, key, change).on(row).data

    async def close(self) -> None:
        """Do nothing: the engine belongs to the application."""

    def _session(self) -> QSession | None:
        """The session of the handler, whose commit is to write the changes."""
        call = current_call.get()
        if call is None or not call.running or call.maker is not self.maker:
            return None
        return None if call.session.access == "read" else call.session

    async def _load(self, key: StorageKey, session: QSession | None) -> Row:
        if session is not None and session.locks_first:  # this attempt must not conflict again
            return await session.run_sync(read, key)
        async with self.maker.reader() as reader:
            return await reader.run_sync(read, key)

    async def _read(self, key: StorageKey, part: str) -> Any:
        session = self._session()
        row = await self._load(key, session)
        change = Change()
        if session is not None:
            noted = _noted(session)
            noted.seen.setdefault(key, {})[part] = getattr(row, part)
            change = noted.changes.get(key, change)
        return getattr(change.on(row), part)

    async def _change(self, key: StorageKey, change: Change) -> None:
        session = self._session()
        if session is None:
            await self.maker.run(_apply_now, key, change)
        else:
            _noted(session).add(session, key, change)


async def _apply_now(session: QSession, key: StorageKey, change: Change) -> Row:
    return await session.run_sync(apply, key, change)


class _Noted:
    """What a handler has read and changed in the present transaction of its session."""

    def __init__(self) -> None:
        self.seen: dict[StorageKey, dict[str, Any]] = {}
        """By key, and ``state`` or ``data``."""
        self.changes: dict[StorageKey, Change] = {}
        self._before: dict[SessionTransaction, dict[StorageKey, Change]] = {}
        """The changes before each savepoint; none before one that is older than this object."""

    def add(self, session: QSession, key: StorageKey, change: Change) -> Change:
        """Note a change of a key, and return all that is to be done to it."""
        if not session.in_transaction():  # a session without one has no event for a rollback
            session.sync_session.begin()
        self.changes[key] = whole = self.changes.get(key, Change()).then(change)
        return whole

    def write(self, session: Session) -> None:
        """Before a commit: write the changes. Raises `ConflictError`."""
        if not session.in_nested_transaction():  # a savepoint has the same events
            for key, change in self.changes.items():
                apply(session, key, change, self.seen.get(key, {}))

    def begin(self, _session: Session, transaction: SessionTransaction) -> None:
        """Keep what was noted before a savepoint."""
        if transaction.nested:
            self._before[transaction] = dict(self.changes)

    def roll_back(self, _session: Session, transaction: SessionTransaction) -> None:
        """Go back to what was noted before a savepoint."""
        if transaction.nested:
            self.changes = self._before.pop(transaction, {})

    def end(self, _session: Session, transaction: SessionTransaction) -> None:
        """Forget what was noted: it is written, or rolled back."""
        if transaction.parent is None:  # that of a savepoint comes before its rollback
            self._before.clear()
            self.seen.clear()
            self.changes.clear()


def _noted(session: QSession) -> _Noted:
    noted: _Noted | None = session.info.get(_Noted)
    if noted is None:
        noted = session.info[_Noted] = _Noted()
        event.listen(session.sync_session, "before_commit", noted.write)
        event.listen(session.sync_session, "after_transaction_create", noted.begin)
        event.listen(session.sync_session, "after_soft_rollback", noted.roll_back)
        event.listen(session.sync_session, "after_transaction_end", noted.end)
    return noted
