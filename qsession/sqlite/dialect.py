"""QSessionDialect: the hooks of SQLAlchemy's SQLite dialect."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy.dialects.sqlite.aiosqlite import (
    SQLiteDialect_aiosqlite,
    SQLiteExecutionContext_aiosqlite,
)
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, Pool, QueuePool
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from qsession.config import NAMES, Settings, check_options, check_spelling
from qsession.errors import QueueTimeout
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.cursor import RoutedCursor
from qsession.sqlite.driver.module import DriverModule
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.setup import FULL, NORMAL, OFF, prepare
from qsession.sqlite.files.explain import explain
from qsession.sqlite.files.filesystem import file_identity
from qsession.sqlite.files.memory import MemoryDatabase, memory_database
from qsession.sqlite.files.read_only import frozen_uri, path_of
from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.processes import fork
from qsession.sqlite.processes.owners import lock_owner
from qsession.sqlite.synchronous.driver import SynchronousModule
from qsession.sqlite.synchronous.pool import SynchronousPool

RETRY = 0.005
"""Seconds between two attempts to switch a file to WAL mode while another program uses it."""
MANY, WIDE = 2_000, 500
"""The number of parameter sets of an executemany, or of parameters of one statement, above which
SQLAlchemy needs a millisecond or more to process them.
"""
A_TURN = 1e-6
"""Seconds for :func:`asyncio.sleep`, after which tasks with due timers have run. After ``sleep(0)``
they have not, because the loop continues before it checks timers.
"""
_EXCLUSIVE = "If a 'connect' listener sends PRAGMA locking_mode=EXCLUSIVE, remove that."


class QSessionExecutionContext(SQLiteExecutionContext_aiosqlite):
    """The execution context of one statement."""

    def create_default_cursor(self) -> Any:
        """A cursor. SQLAlchemy creates it between its two passes over the parameters. Each pass
        takes long if there are many, so the loop gets a turn in between.
        """
        sets = getattr(self, "compiled_parameters", None)
        if sets and (len(sets) > MANY or len(sets[0]) > WIDE) and in_greenlet():
            await_only(asyncio.sleep(A_TURN))
        return self._dbapi_connection.cursor()


class QSessionDialect(SQLiteDialect_aiosqlite):
    """SQLite through the write queue: ``sqlite+qsession://``."""

    driver = "qsession"
    execution_ctx_cls = QSessionExecutionContext
    supports_statement_cache = True
    has_terminate = True

    def __init__(
        self,
        access: Any = None,
        durability: Any = None,
        reads: Any = None,
        queue_timeout: Any = None,
        max_waiting: Any = None,
        stall_after: Any = None,
        warn_after: Any = None,
        wal_warn: Any = None,
        checkpoints: Any = None,
        inline: Any = None,
        max_hold: Any = None,
        **kw: Any,
    ) -> None:
        given = locals()
        self._given = {name: given[name] for name in NAMES if given.get(name) is not None}
        self.settings = Settings().with_options(self._given)
        self.database = ""
        self._memory: MemoryDatabase | None = None
        if kw.get("dbapi") is not None:
            kw["dbapi"] = self.import_dbapi().around(kw["dbapi"])
        super().__init__(**kw)

    @classmethod
    def import_dbapi(cls) -> DriverModule:
        return DriverModule(__import__("aiosqlite"), __import__("sqlite3"))

    @classmethod
    def load_provisioning(cls) -> None:
        """For SQLAlchemy's test framework, which expects a module beside the dialect."""
        import sqlalchemy.dialects.sqlite.provision  # noqa: F401

    @classmethod
    def get_dialect_cls(cls, url: URL) -> type[Dialect]:
        """SQLAlchemy asks for this one where the engine is not to be an asyncio one."""
        return SynchronousDialect

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[Dialect]:
        return cls

    @classmethod
    def get_pool_class(cls, url: URL) -> type[WriteQueuePool]:
        return WriteQueuePool

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """Replace another ``poolclass`` or ``pool`` of an engine with this dialect's pool.

        Other pools hand out physical connections, without the write queue. So ``NullPool`` and
        ``StaticPool``, which many test suites use, are replaced here, and so is a ``QueuePool``
        that an application names. Listeners and the arguments of the pool stay.
        """
        pool, dialect = engine.pool, type(engine.dialect)
        assert issubclass(dialect, QSessionDialect)
        if not isinstance(pool, WriteQueuePool):
            engine.pool = dialect.get_pool_class(engine.url)(
                pool._creator,
                keeps_idle=not isinstance(pool, NullPool),
                dialect=engine.dialect,
                echo=pool.echo,
                logging_name=pool._orig_logging_name,
                recycle=pool._recycle,
                pre_ping=pool._pre_ping,
                reset_on_return=pool._reset_on_return,
                _dispatch=pool.dispatch,
                **_sizes(pool),
            )

    def create_connect_args(self, url: URL) -> Any:
        settings = {name: url.query[name] for name in NAMES if name in url.query}
        for name in ("min_size", "max_size"):
            if name in settings:
                raise ArgumentError(
                    f"{name} is a setting of qsession.create_async_engine: use pool_size with "
                    "SQLAlchemy's own create_async_engine"
                )
        self._given = {**settings, **self._given}
        self.settings = Settings().with_options(self._given)
        url = url.difference_update_query(settings)
        check_spelling(url.query)
        self._memory = memory_database(url)
        if self._memory is not None:
            url = url.set(database="memory.db").difference_update_query(
                ["mode", "cache", "uri", "vfs"]
            )
        elif "uri" in url.query:  # connections with a shared cache lock each other's tables
            url = url.difference_update_query(["cache"])
        args, options = super().create_connect_args(url)
        self.database = "a memory database" if self._memory is not None else args[0]
        return args, options

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        if self._memory is not None:
            cargs = (self._memory.enter(self), *cargs[1:])
        timeout = cparams.pop("timeout", None)
        if timeout is not None and "queue_timeout" not in self._given:
            self._given["queue_timeout"] = timeout
            self.settings = self.settings.with_options({"queue_timeout": timeout})
        cparams.pop("autocommit", None)  # as isolation_level: qsession itself sends BEGIN
        cparams.update(timeout=0, isolation_level=None, check_same_thread=False)
        # Before a connection is opened, and before listeners see it.
        fork.refuse_carried(self.database, file_identity(path_of(cargs[0])))
        frozen = frozen_uri(cargs[0], cparams.get("uri", False))
        if frozen is not None:
            cargs, cparams["uri"] = (frozen, *cargs[1:]), True
        try:
            connection: Any = super().connect(*cargs, **cparams)
        except sqlite3.Error as error:
            raise explain(error, self.database) from error
        connection.frozen = frozen is not None
        return connection

    def on_connect(self) -> Any:
        before = super().on_connect()

        def connected(dbapi_connection: Any) -> None:
            before(dbapi_connection)
            try:
                self._switch_to_wal(dbapi_connection)
            except sqlite3.Error as error:
                raise explain(error, self.database) from error

        return connected

    def _switch_to_wal(self, driver: DriverConnection) -> None:
        synchronous = NORMAL if self.settings.durability == "normal" else FULL
        if self._memory is not None:
            synchronous = OFF
        deadline = time.monotonic() + self.settings.queue_timeout
        external = self.settings.checkpoints == "external"
        while not driver.run(prepare, synchronous, external):
            if time.monotonic() >= deadline:
                owner = lock_owner(path_of(self.database))
                advice = f" {_EXCLUSIVE}" if "this process" in owner else ""
                raise QueueTimeout(
                    f"{self.database!r} could not be switched to WAL mode: another connection "
                    f"held a lock on it for longer than {self.settings.queue_timeout:g} s. "
                    f"The lock is held by {owner}.{advice}"
                )
            await_only(asyncio.sleep(RETRY))

    @property
    def shares_syncs(self) -> bool:
        """Whether fsyncs of commits are shared.

        Without powersafe overwrite, commits must be padded to a sector, and SQLite does so only if
        it syncs them itself (https://sqlite.org/psow.html).
        """
        return self.settings.durability != "normal" and "psow=0" not in self.database

    @property
    def asked_timeout(self) -> float | None:
        """The ``queue_timeout`` in seconds, if the application has set one."""
        return self.settings.queue_timeout if "queue_timeout" in self._given else None

    def discard_memory(self) -> None:
        if self._memory is not None:
            self._memory.leave(self)

    def do_begin(self, dbapi_connection: Any) -> None:
        """No action: BEGIN is sent with the first statement."""

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit. A physical connection that returns to its pool has no transaction any more."""
        if isinstance(dbapi_connection, RoutedConnection):
            dbapi_connection.commit()

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close without waiting, so that a second cancellation cannot interrupt it."""
        dbapi_connection.terminate()

    # To initialize an engine, SQLAlchemy uses the driver's connection, with the driver's cursors.

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        if isinstance(cursor, RoutedCursor):
            cursor.run(statement, parameters, context)
        else:
            cursor.execute(statement, parameters)

    def do_execute_no_params(self, cursor: Any, statement: Any, context: Any = None) -> None:
        self.do_execute(cursor, statement, (), context)

    def do_executemany(
        self, cursor: Any, statement: Any, parameters: Any, context: Any = None
    ) -> None:
        if isinstance(cursor, RoutedCursor):
            cursor.run(statement, parameters, context, many=True)
        else:
            cursor.executemany(statement, parameters)

    def set_engine_execution_options(self, engine: Engine, opts: Mapping[str, Any]) -> None:
        check_options(tuple(opts))
        super().set_engine_execution_options(engine, opts)

    def set_connection_execution_options(
        self, connection: Connection, opts: Mapping[str, Any]
    ) -> None:
        check_options(tuple(opts))
        super().set_connection_execution_options(connection, opts)

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        if isinstance(dbapi_connection, RoutedConnection):
            dbapi_connection.isolation_level = level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        if isinstance(dbapi_connection, RoutedConnection):
            return dbapi_connection.isolation_level
        return "SERIALIZABLE"

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        level = self._on_connect_isolation_level
        return "SERIALIZABLE" if level in (None, "AUTOCOMMIT") else level

    def detect_autocommit_setting(self, dbapi_conn: Any) -> bool:
        return bool(self.get_isolation_level(dbapi_conn) == "AUTOCOMMIT")


class SynchronousDialect(QSessionDialect):
    """The dialect for ``create_engine``, whose calls block their thread."""

    supports_statement_cache = True
    is_async = False

    @classmethod
    def import_dbapi(cls) -> DriverModule:
        return SynchronousModule(__import__("aiosqlite"), __import__("sqlite3"))

    @classmethod
    def get_pool_class(cls, url: URL) -> type[WriteQueuePool]:
        return SynchronousPool

    def get_driver_connection(self, connection: Any) -> Any:
        return connection.raw


def _sizes(pool: Pool) -> dict[str, Any]:
    """How many connections a pool that was named by its class may have, and how long one waits."""
    if not isinstance(pool, QueuePool):  # the others share or pin connections
        return {}
    return {
        "pool_size": pool.size(),
        "max_overflow": pool._max_overflow,
        "timeout": pool.timeout(),
    }
