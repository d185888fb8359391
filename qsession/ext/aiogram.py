"""aiogram 3: a session for each handler. `qsession.ext.aiogram_states` stores their states."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiogram import BaseMiddleware, Dispatcher, Router
from aiogram.dispatcher.flags import get_flag
from aiogram.types import TelegramObject

from qsession.session.maker import QSession, SessionMaker, qsession


@dataclass
class Call:
    """One call of a handler."""

    maker: SessionMaker
    session: QSession
    running: bool = True
    """False when the handler has returned. A task that it has started may still run."""


current_call: ContextVar[Call | None] = ContextVar("qsession_aiogram_call", default=None)
"""The call to which this task belongs."""


class Sessions(BaseMiddleware):
    """Gives each call of a handler a new session, as its argument `key`, and commits it.

    ``Sessions().setup(dispatcher)`` does so for all handlers. The session connects with its first
    statement, so it costs nothing if it is not used. It is committed when the handler has returned,
    and rolled back when the handler raises or is cancelled. Then it is closed for good: a task that
    goes on with it gets `sqlalchemy.exc.InvalidRequestError`. aiogram sends what a handler returns
    after that: ``return message.answer(...)``, without ``await``, answers after the commit.

    `options` go to the maker. The flag ``session`` sets them for one handler:
    ``flags={"session": {"access": "read"}}``. With ``{"attempts": 10}`` the handler is called again
    after a `ConflictError`, as by ``qsession.run``, each time with a new session. Such a handler
    is one transaction: it cannot use the session after a commit of its own. Other errors, and the
    last conflict, go to the error handlers of aiogram.
    """

    def __init__(
        self, maker: SessionMaker = qsession, *, key: str = "session", **options: Any
    ) -> None:
        self.maker = maker
        self.key = key
        self.options = options

    def setup(self, router: Router) -> None:
        """Register it for each kind of event, for `router` and the routers that it includes."""
        for name, observer in router.observers.items():
            if name != "update":  # of a dispatcher: it is around all others
                observer.middleware(self)

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Call `handler` in a transaction. A cancellation rolls it back, and is raised."""
        flag = get_flag(data, "session")
        flags = flag if isinstance(flag, Mapping) else {}
        options = {"close_resets_only": False, **self.options, **flags}
        attempts = options.pop("attempts", 1)

        async def handle(session: QSession) -> Any:
            call = Call(self.maker, session)
            token = current_call.set(call)
            try:
                return await handler(event, {**data, self.key: session})
            finally:
                current_call.reset(token)
                call.running = False

        if attempts != 1:
            return await self.maker.transactional(attempts=attempts, **options)(handle)()
        async with self.maker(**options) as session:
            result = await handle(session)
            await session.commit()
        return result


async def finish(dispatcher: Dispatcher, timeout: float | None = None) -> None:
    """Wait until the updates that polling has taken are handled and answered.

    For a ``shutdown`` function, before ``drain()``. Telegram was told of these updates and does not
    send them again, but aiogram does not wait for them. Returns after `timeout` seconds in any
    case. If cancelled, the updates are handled on.
    """
    tasks: set[asyncio.Task[object]] = getattr(dispatcher, "_handle_update_tasks", set())
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)
