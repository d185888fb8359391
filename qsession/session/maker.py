"""`SessionMaker`, which makes the sessions of one database, and `qsession`, the default one.

`qsession` reads its URL from ``QSESSION_URL`` unless `configure` has been called.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from sqlalchemy import URL, exc
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session

from qsession.engine import QueuedAsyncEngine, create_async_engine, is_ours
from qsession.errors import PlainEngineWarning
from qsession.session import retry
from qsession.session.sharing import Bind, QSession, SessionBlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from alembic.config import Config
    from sqlalchemy import Executable

    from qsession.observation.observation import Observation
    from qsession.rows import AnyRow

__all__ = ["QSession", "SessionMaker", "qsession"]

LOOK_EVERY = 0.05
"""Seconds between two checks for commits of other programs."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SessionMaker(async_sessionmaker[QSession]):
    """Makes the sessions of one database: an `async_sessionmaker` that can create its engine.

    `env` names the environment variable that holds the URL if nothing was configured.
    """

    def __init__(
        self,
        url: str | URL | None = None,
        *,
        env: str | None = None,
        class_: type[QSession] = QSession,
        **kw: Any,
    ) -> None:
        super().__init__(class_=class_)
        self.env = env
        self._made: list[QueuedAsyncEngine] = []
        self._given: QueuedAsyncEngine | None = None
        self._making = threading.Lock()
        self._configure(url, kw)

    def configure(self, url: str | URL | None = None, **kw: Any) -> None:
        """Set the database and the defaults of new sessions.

        ``configure(url, ...)`` creates an engine. Keywords of `QSession` (``access``,
        ``isolation``, ``expire_on_commit``, ...) become session defaults; all others go to
        `create_async_engine`. ``configure(bind=engine, ...)`` uses an existing engine for any
        database, and emits `PlainEngineWarning` if `create_async_engine` did not make it. Without a
        URL or ``bind``, only session defaults change.

        A second call does not affect earlier sessions and their engine. `dispose` closes all
        engines created here. No connection is opened. Raises `sqlalchemy.exc.ArgumentError` for an
        invalid URL or setting.
        """
        self._configure(url, kw)

    def _configure(self, url: str | URL | None, kw: dict[str, Any]) -> None:
        if "class_" in kw:
            self.class_ = _class_of_its_own(kw.pop("class_"))
        if url is None:
            if isinstance(kw.get("bind"), str | URL):
                raise exc.ArgumentError("bind= takes an engine: pass a URL as the first argument")
            for bind in (kw.get("bind"), *(kw.get("binds") or {}).values()):
                _warn_of_plain(bind)
            super().configure(**kw)
            return
        if kw.get("bind") is not None:
            raise exc.ArgumentError("pass either a URL or bind=, not both")
        session_kw = {name: kw.pop(name) for name in list(kw) if name in _SESSION_KEYWORDS}
        engine = create_async_engine(url, **kw)
        self._made.append(engine)
        super().configure(**{**session_kw, "bind": engine})

    @property
    def engine(self) -> QueuedAsyncEngine:
        """The engine of this maker, created from the environment variable if there is none yet.

        If ``bind`` is an engine that a framework made, this is a `QueuedAsyncEngine` with the same
        pool, and with ``stats()`` and ``drain()``.

        Raises `sqlalchemy.exc.InvalidRequestError` if no database is configured.
        """
        if self.kw["bind"] is None:
            with self._making:
                if self.kw["bind"] is None:
                    self.configure(self._url_from_environment())
        bind: Bind = self.kw["bind"]
        engine = bind if isinstance(bind, AsyncEngine) else bind.engine
        if isinstance(engine, QueuedAsyncEngine):
            return engine
        if self._given is None or self._given.sync_engine is not engine.sync_engine:
            self._given = QueuedAsyncEngine(engine.sync_engine)
        return self._given

    def _url_from_environment(self) -> str:
        url = os.environ.get(self.env, "") if self.env else ""
        if not url:
            variable = f", or set the environment variable {self.env}" if self.env else ""
            raise exc.InvalidRequestError(
                "no database is configured: first call configure('sqlite+aiosqlite:///app.db') "
                f"or configure(bind=engine){variable}"
            )
        return url

    async def dispose(self) -> None:
        """Close the pooled connections of the engine, and of all engines created here before.

        Open sessions keep their connections until they end. The maker can still be used.
        """
        made, self._made = self._made, []
        current: QueuedAsyncEngine | None = None
        if self.kw["bind"] is not None:
            current = self.engine
            if any(each is current for each in made):
                self._made.append(current)
            await current.dispose()
        for each in made:
            if each is not current:
                await each.dispose()

    def __call__(self, **kw: Any) -> QSession:
        """A new session; `kw` overrides the defaults. It does not connect or wait yet."""
        if self.kw["bind"] is None and not (
            kw.get("bind") or kw.get("binds") or "binds" in self.kw
        ):
            kw["bind"] = self.engine
        return super().__call__(**kw)

    def begin(self, **kw: Any) -> SessionBlock:
        """A new session, for ``async with``: commits on success, rolls back on an error."""
        return SessionBlock(self(**kw))

    def reader(self, **kw: Any) -> QSession:
        """A new session that reads a snapshot without waiting; a write raises `ReadOnlyError`."""
        return self(**{**kw, "access": "read"})

    @overload
    async def run(
        self,
        fn: Callable[Concatenate[QSession, ...], Awaitable[_T]],
        /,
        *args: Any,
        attempts: int,
        **kw: Any,
    ) -> _T: ...

    @overload
    async def run(
        self,
        fn: Callable[Concatenate[QSession, _P], Awaitable[_T]],
        /,
        *args: _P.args,
        **kw: _P.kwargs,
    ) -> _T: ...

    async def run(
        self,
        fn: Callable[..., Awaitable[_T]],
        /,
        *args: Any,
        attempts: Any = retry.ATTEMPTS,
        **kw: Any,
    ) -> _T:
        """Call ``fn(session, *args, **kw)`` in a transaction, commit, and return its result.

        After a `ConflictError`, also if `fn` raised another error from it, `fn` is called again
        with a new session, at most `attempts` times. The pauses between attempts are random and
        grow up to one second. The last error is raised with the number of attempts as
        ``error.attempts``. Other errors are raised at once. `fn` may be called several times, so
        its effects outside the database must be repeatable. A cancellation rolls back and is
        raised.
        """
        return await retry.run(self.begin, attempts, fn, *args, **kw)

    @overload
    def transactional(
        self, fn: Callable[Concatenate[QSession, _P], Awaitable[_T]], /
    ) -> Callable[_P, Coroutine[Any, Any, _T]]: ...

    @overload
    def transactional(
        self, /, *, attempts: int = retry.ATTEMPTS, **session_kw: Any
    ) -> Callable[
        [Callable[Concatenate[QSession, _P], Awaitable[_T]]],
        Callable[_P, Coroutine[Any, Any, _T]],
    ]: ...

    def transactional(
        self, fn: Any = None, /, *, attempts: int = retry.ATTEMPTS, **session_kw: Any
    ) -> Any:
        """A decorator that calls a function by `run`. Callers omit its first argument, the session.

        Use it as ``@qsession.transactional`` or with arguments:
        ``@qsession.transactional(attempts=3, access="auto")``. Raises
        `sqlalchemy.exc.ArgumentError` for a method; use ``run(self.method, ...)`` instead.
        """
        if fn is None:
            retry.check_attempts(attempts)
            return functools.partial(self.transactional, attempts=attempts, **session_kw)

        _refuse_method(fn)

        @functools.wraps(fn)
        async def transaction(*args: Any, **kw: Any) -> Any:
            begin = functools.partial(self.begin, **session_kw)
            return await retry.run(begin, attempts, fn, *args, **kw)

        return transaction

    def observe(
        self,
        statement: Executable,
        params: Any = None,
        *,
        tables: Sequence[object] | None = None,
        engine: AsyncEngine | None = None,
        distinct: bool = True,
        look_every: float = LOOK_EVERY,
    ) -> Observation[AnyRow]:
        """The result of a statement now, and again after each commit that may have changed it.

        Use it as ``async for rows in qsession.observe(select(...))``; `Observation` says what the
        results promise. A result equal to the last one is not repeated, unless ``distinct`` is
        False. On SQLite the database itself says which tables the statement reads, also for
        textual SQL, views, and relationships that are loaded eagerly. ``tables`` replaces that:
        tables, mapped classes or names; an empty list means that every commit counts.

        Commits of this process wake it at once. On SQLite, commits of other programs are looked for
        every ``look_every`` seconds, only while somebody observes, and on one connection for all
        observers of a file. On PostgreSQL, triggers tell of commits: see `install_triggers` in
        `qsession.observation`. ``engine``: another engine than that of this maker.

        Nothing is sent before the first step of the loop. Raises `sqlalchemy.exc.ArgumentError` for
        a wrong argument, and `sqlalchemy.exc.InvalidRequestError` if the database does not tell of
        commits; on PostgreSQL in the first step, if a table has no trigger.
        """
        from qsession.observation.observation import Observation, source_of

        bind = self.engine if engine is None else engine
        source, names = source_of(bind, look_every), tables
        if names is not None:
            names = list(names)
        return Observation(source, self._reader_of(bind), statement, params, names, distinct)

    async def changed(
        self,
        *tables: object,
        engine: AsyncEngine | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        """Wait for the next commit that may have changed one of the tables.

        ``tables``: tables, mapped classes or names; without any, every commit counts. A commit
        counts from the moment at which this first waits. Between your last read and this call a
        commit is not seen: use `observe` if you read. ``engine`` and ``look_every``: as there.

        Raises `sqlalchemy.exc.InvalidRequestError` if the engine is disposed of meanwhile, or if
        the database does not tell of commits. A cancellation has no effect on anything else.
        """
        from qsession.observation.observation import changed, source_of

        bind = self.engine if engine is None else engine
        await changed(source_of(bind, look_every), self._reader_of(bind), tables)

    def _reader_of(self, engine: AsyncEngine) -> Callable[[], QSession]:
        binds = {"binds": None} if "binds" in self.kw else {}
        return functools.partial(self.reader, bind=engine, isolation="REPEATABLE READ", **binds)

    async def upgrade(
        self,
        revision: str = "head",
        *,
        url: str | URL | None = None,
        engine: AsyncEngine | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        backup: str | os.PathLike[str] | None = None,
    ) -> None:
        """Run the Alembic migrations up to `revision`, by default on this maker's engine.

        See `qsession.migrate.upgrade`.
        """
        from qsession import migrate

        if url is None and engine is None:
            engine = self.engine
        await migrate.upgrade(revision, url=url, engine=engine, config=config, backup=backup)


def _class_of_its_own(class_: Any) -> type[QSession]:
    """A subclass for one maker, as in SQLAlchemy, so that each maker has its own events."""
    if not (isinstance(class_, type) and issubclass(class_, QSession)):
        raise exc.ArgumentError(
            f"class_={class_!r} is not allowed: use a subclass of qsession.QSession"
        )
    return type(class_.__name__, (class_,), {})


def _refuse_method(fn: Callable[..., Any]) -> None:
    first = next(iter(inspect.signature(fn).parameters), None)
    if first in ("self", "cls"):
        raise exc.ArgumentError(
            f"{fn.__qualname__} is a method, and the session would replace its first argument "
            f"{first}. Call run({first}.{fn.__name__}, ...) instead, or decorate a function."
        )


def _warn_of_plain(bind: Bind | None) -> None:
    if isinstance(bind, AsyncEngine) and not is_ours(bind):
        warnings.warn(
            f"qsession got a plain SQLAlchemy engine for {bind.url.drivername}: updates can be "
            "lost, reader() can write, and run() never retries. Create the engine with "
            "qsession.create_async_engine, or ignore qsession.PlainEngineWarning",
            PlainEngineWarning,
            stacklevel=4,
        )


_SESSION_KEYWORDS = frozenset(
    {
        *inspect.signature(Session.__init__).parameters,
        *inspect.signature(QSession.__init__).parameters,
    }
) - {"self", "bind", "kw", "execution_options"}

qsession = SessionMaker(env="QSESSION_URL")
"""The maker of the application's database."""
