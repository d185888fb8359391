"""Litestar with advanced-alchemy: sessions that commit before the answer, and errors as HTTP.

advanced-alchemy commits while the answer is being sent, and hides an error of that commit. All else
stays as it is: its configuration, its repositories and its commands.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, cast

from advanced_alchemy.exceptions import RepositoryError
from advanced_alchemy.extensions.litestar import (
    SQLAlchemyAsyncConfig,
    SQLAlchemyInitPlugin,
    SQLAlchemySerializationPlugin,
    exception_handler,
)
from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions.responses import create_debug_response, create_exception_response
from litestar.plugins import InitPluginProtocol
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.engine import drain
from qsession.errors import ConflictError, EngineDraining, QueueFull, QueueTimeout
from qsession.ext.refusals import BUSY, CONFLICT, refusal_for

_SESSIONS = "qsession.sessions"
"""Where the scope of a request has its sessions."""


class QSessionPlugin(InitPluginProtocol):
    """Use it in place of advanced-alchemy's ``SQLAlchemyPlugin``, with the same configuration.

    The engine must be one of qsession's: ``connection_string="sqlite+qsession:///app.db"``, or
    ``create_engine_callable=create_async_engine``.

    **Sessions.** The session that a handler gets is committed when the handler has returned and its
    answer is made, before it is sent: a commit that fails is an error like any other. An exception
    rolls back, ``HTTPException`` too; an answer that is returned does not, whatever its status. A
    request that is cancelled before COMMIT begins writes nothing. ``before_send_handler`` need not
    be set. A stream or a background task may use it again, and commit by itself; what is not
    committed then is rolled back at the end of the request.

    **Answers**, unless the application has handlers of its own for these errors. 409: a conflict,
    nothing was written. 503 with ``Retry-After``: `QueueTimeout`, `QueueFull` or `EngineDraining`.
    Also for errors of repositories that were raised from these. Others are answered as by
    advanced-alchemy.

    **Shutdown.** The engine accepts no new transactions, waits `drain` seconds for those that are
    open (None: without a limit), and is disposed of. Raises `QueueTimeout` if one is open then.
    """

    def __init__(self, config: SQLAlchemyAsyncConfig, *, drain: float | None = 10.0) -> None:
        self._config = config
        self._drain = drain

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """As Litestar calls it."""
        errors = (ConflictError, QueueTimeout, QueueFull, EngineDraining, RepositoryError, _Group)
        app_config.exception_handlers = {
            **dict.fromkeys(errors, answer),
            **app_config.exception_handlers,
        }
        app_config.plugins += [
            SQLAlchemyInitPlugin(self._config),
            SQLAlchemySerializationPlugin(),
            _Sessions(self._config, self._drain),
        ]
        return app_config


class _Sessions(InitPluginProtocol):
    """Follows advanced-alchemy's plugin, and replaces its dependency for the session."""

    def __init__(self, config: SQLAlchemyAsyncConfig, drain: float | None) -> None:
        self._config = config
        self._drain = drain

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.dependencies[self._config.session_dependency_key] = Provide(self._session)
        app_config.middleware.append(_ends_sessions)
        app_config.lifespan.append(self._lifespan)  # ends before that of advanced-alchemy
        return app_config

    async def _session(self, state: State, scope: Scope) -> AsyncGenerator[AsyncSession, None]:
        session = self._config.provide_session(state, scope)
        cast("dict[str, Any]", scope).setdefault(_SESSIONS, []).append(session)
        try:
            yield session
            await session.commit()
        except BaseException:
            await session.rollback()
            raise

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            engine = self._config.get_engine()
            try:
                await drain(engine, self._drain)
            finally:  # advanced-alchemy does not, for a second configuration
                await engine.dispose()


def _ends_sessions(app: ASGIApp) -> ASGIApp:
    """A middleware: a session that was used after its commit holds nothing after the request."""

    async def ends_sessions(scope: Scope, receive: Receive, send: Send) -> None:
        sessions = cast("dict[str, Any]", scope).setdefault(_SESSIONS, [])
        try:
            await app(scope, receive, send)
        finally:
            for session in sessions:
                if session.in_transaction():
                    await session.close()

    return ends_sessions


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The answer to an error, as `QSessionPlugin` says: a handler of exceptions for Litestar."""
    refusals = [refusal_for(each) for each in _causes(error)]
    if CONFLICT in refusals:
        return Response({"detail": CONFLICT.detail}, status_code=CONFLICT.status)
    if BUSY in refusals:
        headers = {"Retry-After": "1"}
        return Response({"detail": BUSY.detail}, status_code=BUSY.status, headers=headers)
    if isinstance(error, RepositoryError):
        return exception_handler.exception_to_http_response(request, error)
    make: Callable[..., Response[Any]] = (
        create_debug_response if request.app.debug else create_exception_response
    )
    return make(request, error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and the members of groups: Litestar makes a group of the errors of
    several dependencies.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            left += [each.__cause__, *getattr(each, "exceptions", ())]
            yield each


_Group: type[Exception] = (
    getattr(builtins, "ExceptionGroup", None) or import_module("exceptiongroup").ExceptionGroup
)
