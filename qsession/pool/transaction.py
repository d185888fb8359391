"""Transaction: a transaction or savepoint on a connection of the pool.

`PoolConnection.transaction` creates it.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from qsession.pool.scope import Scope
from qsession.waiting.handoff import Uninterrupted


class Connected(Protocol):
    """What a transaction needs from its connection."""

    _scope: Scope
    _timeout: float | None

    @property
    def in_transaction(self) -> bool: ...

    def _transaction_options(self, isolation: str | None, readonly: bool) -> dict[str, Any]: ...

    def _refuse_if_released(self) -> None: ...

    async def _begin(self, options: dict[str, Any]) -> Any: ...

    async def _end(self, begun: Any, commit: bool) -> None: ...


_C = TypeVar("_C", bound=Connected)


class _State(Enum):
    """The states of a transaction, which is used only once."""

    NEW = "has not been started"
    OPEN = "is open"
    COMMITTED = "was committed"
    ROLLED_BACK = "was rolled back"


class Transaction(Generic[_C]):
    """A transaction on a connection of the pool, or a savepoint inside an open one.

    Use it in ``async with``, or call `start` and then `commit` or `rollback`. Statements that other
    tasks have called inside it run before its end.
    """

    def __init__(self, connection: _C, isolation: str | None, readonly: bool) -> None:
        self._connection = connection
        self._plain = isolation is None and not readonly
        self._options = connection._transaction_options(isolation, readonly)
        self._state = _State.NEW

    async def start(self) -> None:
        """Begin, after waiting until another task's transaction has ended.

        Raises `QueueTimeout` if that takes longer than the pool's timeout. If cancelled, nothing
        has begun.
        """
        connection = self._connection
        turn = await connection._scope.turn(connection._timeout)
        try:
            self._refuse_to_start()
            self._begun = await connection._begin(self._options)
        except BaseException:
            turn.give()
            raise
        self._outer, self._scope = turn, turn.enter()
        self._state = _State.OPEN

    def _refuse_to_start(self) -> None:
        self._connection._refuse_if_released()
        if self._state is not _State.NEW:
            raise InvalidRequestError(f"The transaction {self._state.value}: create a new one.")
        if self._connection.in_transaction and not self._plain:
            raise InvalidRequestError(
                "isolation and readonly apply to the outermost transaction only, and this one is a "
                "savepoint inside it: pass them to the outermost one."
            )

    async def commit(self) -> None:
        """Commit. If that fails, it is rolled back.

        A cancellation is raised when the COMMIT has ended.
        """
        await Uninterrupted(self._end(commit=True))

    async def rollback(self) -> None:
        """Roll back. A cancellation is raised when the rollback has ended."""
        await Uninterrupted(self._end(commit=False))

    async def __aenter__(self) -> _C:
        await self.start()
        return self._connection

    async def __aexit__(
        self, type_: object, error: BaseException | None, traceback: object
    ) -> None:
        if self._state is not _State.OPEN:
            return
        if error is None:
            await self.commit()
            return
        try:
            await self.rollback()
        except SQLAlchemyError as second:  # the first error says more, and `run` checks it
            if sys.version_info >= (3, 11):
                error.add_note(f"The rollback after this error also failed: {second}")

    async def _end(self, commit: bool) -> None:
        self._refuse_unless_open()
        turn = await self._scope.turn(None)
        try:
            self._refuse_unless_open()
            self._state = _State.ROLLED_BACK
            if not self._scope.open:
                if commit:
                    raise InvalidRequestError(
                        "The transaction could not be committed because it was rolled back: its "
                        "connection was released, its pool was terminated, or the enclosing "
                        "transaction ended."
                    )
                return
            await self._connection._end(self._begun, commit)
            self._state = _State.COMMITTED if commit else _State.ROLLED_BACK
        finally:
            if self._outer.block is self._scope:
                self._outer.shut()
            turn.give()

    def _refuse_unless_open(self) -> None:
        if self._state is not _State.OPEN:
            raise InvalidRequestError(f"The transaction {self._state.value}: it cannot be ended.")
