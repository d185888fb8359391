"""Drawn transactions, and the actors who play them."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from recorder import JOURNAL, Record, Recorder
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from qsession import QSession
from qsession.errors import QSessionError

SCHEMA = """
    CREATE TABLE rows (
        id INTEGER PRIMARY KEY, value INTEGER NOT NULL CHECK (value < 100), tag TEXT
    );
    CREATE TABLE totals (id INTEGER PRIMARY KEY, changes INTEGER NOT NULL);
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (
        id INTEGER PRIMARY KEY,
        parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED
    );
    CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE journal (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL);
    CREATE TRIGGER inserted AFTER INSERT ON rows BEGIN
        UPDATE totals SET changes = changes + 1;
        INSERT INTO journal (name) SELECT new.tag WHERE new.tag IS NOT NULL
            AND NOT EXISTS (SELECT * FROM journal WHERE name = new.tag);
    END;
    CREATE TRIGGER updated AFTER UPDATE ON rows BEGIN
        UPDATE totals SET changes = changes + 1;
    END;
    CREATE TRIGGER tagged AFTER UPDATE OF tag ON rows WHEN new.tag IS NOT NULL BEGIN
        INSERT INTO journal (name) SELECT new.tag
            WHERE NOT EXISTS (SELECT * FROM journal WHERE name = new.tag);
    END;
    CREATE TRIGGER aborts BEFORE INSERT ON rows WHEN new.value = 66 BEGIN
        SELECT RAISE(ABORT, 'no 66');
    END;
    CREATE TRIGGER rolls_back BEFORE INSERT ON rows WHEN new.value = 68 BEGIN
        SELECT RAISE(ROLLBACK, 'no 68');
    END;
    INSERT INTO totals VALUES (1, 0);
    INSERT INTO parents VALUES (1);
    INSERT INTO rows (id, value) VALUES (1, 1), (2, 2);
    DELETE FROM journal;
    DELETE FROM sqlite_sequence;
    UPDATE totals SET changes = 0;
"""
FINAL = (
    "SELECT * FROM rows ORDER BY id",
    "SELECT * FROM totals",
    "SELECT * FROM parents ORDER BY id",
    "SELECT * FROM children ORDER BY id",
    "SELECT id, length(data) FROM blobs ORDER BY id",
    "SELECT * FROM journal ORDER BY id",
    "SELECT name FROM sqlite_master ORDER BY name",
)


class Base(DeclarativeBase):
    """The mapped tables."""


class Row(Base):
    """Something with a value."""

    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    tag: Mapped[str | None]


rows: Any = Row.__table__


@dataclass(frozen=True)
class Step:
    """One thing that a transaction does."""

    what: str
    id: int = 1
    value: int = 1
    cancelled_after: int | None = None
    """Choices of the simulation after which its task is cancelled."""


@dataclass
class Play:
    """One transaction that is to be played."""

    kind: str
    mode: str
    steps: list[Step]
    end: str


READS = (
    "read one", "read all", "read sum", "read text", "read with", "read join", "read totals",
    "read extra", "stream", "stream some", "read twice",
)  # fmt: skip
WRITES = (
    "add", "set text", "insert", "insert text", "many", "delete", "returning", "delete returning",
    "upsert", "nothing", "child", "parent", "insert select", "lock", "big", "small",
)  # fmt: skip
FAILS = ("too much", "duplicate", "or fail", "aborts", "rolls back", "or rollback", "no table")
ORM = ("orm get", "orm set", "orm add", "orm delete", "orm query", "orm refresh")
OTHERS = ("savepoint", "release", "rollback to", "pause")
RARE = (
    "create",
    "drop",
    "alter",
    "orphan",
    "create temp",
    "pragma",
    "begin",
    "begin immediate",
    "driver",
)

steps = st.builds(
    Step,
    st.one_of(
        st.sampled_from(READS),
        st.sampled_from(READS + ORM),
        st.sampled_from(WRITES),
        st.sampled_from(WRITES + ORM),
        st.sampled_from(WRITES + FAILS + OTHERS + RARE),
        st.sampled_from(OTHERS),
    ),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([None] * 30 + list(range(8))),
)
KINDS = ["core", "core", "orm", "orm", "qsession", "autocommit"]
MODES = ["auto"] * 8 + ["write"] * 2 + ["snapshot"] * 3 + ["read"]
ENDS = ["commit"] * 8 + ["rollback", "close"]
plays = st.builds(
    Play,
    st.sampled_from(KINDS),
    st.sampled_from(MODES),
    st.lists(steps, min_size=1, max_size=6),
    st.sampled_from(ENDS),
)
casts = st.lists(st.lists(plays, min_size=2, max_size=6), min_size=2, max_size=4)


def random_step(chance: random.Random) -> Step:
    """As hypothesis draws them, for a storm."""
    kinds = chance.choice(
        (READS, READS + ORM, WRITES, WRITES + ORM, OTHERS + WRITES + FAILS + RARE)
    )
    cancelled = chance.randrange(12) if chance.random() < 0.03 else None
    return Step(chance.choice(kinds), chance.randint(1, 3), chance.randint(1, 9), cancelled)


def random_play(chance: random.Random) -> Play:
    """As hypothesis draws them, for a storm."""
    return Play(
        chance.choice(KINDS),
        chance.choice(MODES),
        [random_step(chance) for _ in range(chance.randint(1, 5))],
        chance.choice(ENDS),
    )


class Actor:
    """Plays transactions, one after the other, each in a task of its own."""

    def __init__(self, sim: Any, recorder: Recorder, engine: Any, name: str) -> None:
        self._sim = sim
        self._recorder = recorder
        self._engine = engine
        self._name = name
        self._tags = itertools.count(1)
        self._connection: AsyncConnection | None = None
        self._session: AsyncSession | None = None
        self._nested: list[Any] = []

    async def play(self, all_of_them: list[Play]) -> None:
        for each in all_of_them:
            await self._sim.gate()
            task = asyncio.ensure_future(self._play(each))
            await asyncio.wait([task])
            self._sim.call_off(task)
            if not task.cancelled():
                task.result()

    def _options(self, play: Play) -> dict[str, Any]:
        if play.mode == "snapshot":
            return {"qsession_access": "auto", "qsession_reads": "snapshot"}
        return {"qsession_access": play.mode}

    async def _play(self, play: Play) -> None:
        engine = self._engine.execution_options(**self._options(play))
        self._nested = []
        self._session = self._connection = None
        if play.kind == "orm":
            self._session = AsyncSession(engine)
        elif play.kind == "qsession":
            access: Any = "write" if play.mode in ("auto", "snapshot") else play.mode
            self._session = QSession(self._engine, access=access)
        try:
            if self._session is None:
                self._connection = await engine.connect()
                if play.kind == "autocommit":
                    await self._connection.execution_options(isolation_level="AUTOCOMMIT")
            await self._steps(play)
        except asyncio.CancelledError:
            pass
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._sim.call_off(task)
            opened: Any = self._session or self._connection
            if opened is not None:
                await opened.close()

    async def _steps(self, play: Play) -> None:
        task = asyncio.current_task()
        assert task is not None
        for step in play.steps:
            if step.cancelled_after is not None:
                self._sim.cancel_later(task, step.cancelled_after)
            if not await self._attempt(step, play):
                await self._undo()
                return
            self._sim.call_off(task)
        last = play.steps[-1].cancelled_after
        if last is not None and last % 2:
            self._sim.cancel_later(task, last)
        await self._end(play)

    async def _attempt(self, step: Step, play: Play) -> bool:
        """Whether the transaction can go on."""
        try:
            await self._perform(step, play)
        except QSessionError:
            return False
        except (StaleDataError, InvalidRequestError):
            return False
        except (DBAPIError, StatementError, sqlite3.Error):
            return self._session is None or self._session.is_active
        return True

    async def _end(self, play: Play) -> None:
        opened: Any = self._session or self._connection
        if play.end == "close" or play.kind == "autocommit":
            return
        if play.end == "rollback":
            await opened.rollback()
            return
        with suppress(DBAPIError, QSessionError, StaleDataError, InvalidRequestError):
            if self._session is not None:
                await self._session.flush()
            record = await self._record()
            if record is not None and record.writes and record.dead is None:
                while self._nested:
                    await self._nested.pop().commit()
                connection = await self._here()
                await connection.exec_driver_sql(JOURNAL, (record.name,))
            await opened.commit()

    async def _undo(self) -> None:
        opened: Any = self._session or self._connection
        await opened.rollback()

    async def _here(self) -> AsyncConnection:
        if self._session is not None:
            return await self._session.connection()
        assert self._connection is not None
        return self._connection

    async def _record(self) -> Record | None:
        connection = await self._here()
        assert connection.sync_connection is not None
        return self._recorder.of(connection.sync_connection.connection)

    async def _execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        if isinstance(statement, str):
            statement = text(statement)
        opened: Any = self._session or self._connection
        if parameters is None:
            return await opened.execute(statement, execution_options=options)
        return await opened.execute(statement, parameters, execution_options=options)

    async def _perform(self, step: Step, play: Play) -> None:
        if play.mode == "read" and step.value != 1 and not step.what.startswith(("read", "orm q")):
            step = replace(step, what="read all")  # a refusal now and then is enough
        if step.what == "pause" or step.value % 3 == 0:
            await self._sim.gate()
        if play.kind == "autocommit":
            await self._perform_alone(step, play)
        elif step.what.startswith("orm"):
            if self._session is not None:
                await self._orm(step, self._session)
        elif step.what in OTHERS:
            await self._savepoint(step)
        else:
            await self._statement(step, play)

    async def _perform_alone(self, step: Step, play: Play) -> None:
        """Statements that can be told in the journal by the tag they leave.

        An executemany is none: under AUTOCOMMIT each of its rows is committed by itself.
        """
        tag = f"{self._name}.{next(self._tags)}"
        told: dict[str, Any] = {"model_tag": tag}
        what = step.what
        if what.startswith("read") or what == "stream":
            await self._statement(step, play)
        elif what in ("insert", "aborts", "too much", "rolls back", "returning"):
            value = {"aborts": 66, "too much": 100, "rolls back": 68}.get(what, step.value)
            sql = "INSERT INTO rows (value, tag) VALUES (:value, :tag)"
            if what == "returning":
                sql += " RETURNING id"
            await self._execute(sql, {"value": value, "tag": tag}, **told)
        elif what in ("add", "set text", "upsert", "delete"):
            await self._execute(
                update(rows)
                .where(rows.c.id == step.id)
                .values(value=(rows.c.value + step.value) % 90, tag=tag)
                if what == "add"
                else text(f"UPDATE rows SET value = {step.value}, tag = '{tag}' WHERE id < 3"),
                **told,
            )
        elif what == "lock":
            await self._execute(select(rows.c.value).with_for_update())

    async def _savepoint(self, step: Step) -> None:
        opened: Any = self._session or self._connection
        if step.what == "savepoint":
            self._nested.append(await opened.begin_nested())
        elif step.what in ("release", "rollback to") and self._nested:
            nested = self._nested.pop()
            if nested.is_active:
                await (nested.commit() if step.what == "release" else nested.rollback())

    async def _orm(self, step: Step, session: AsyncSession) -> None:
        if step.what == "orm query":
            await session.scalars(select(Row).where(Row.value >= step.value).order_by(Row.id))
        elif step.what == "orm add":
            session.add(Row(value=step.value))
            if step.id > 1:
                await session.flush()
        else:
            found = await session.get(Row, step.id)
            if found is None:
                return
            if step.what == "orm set":
                found.value = (found.value + step.value) % 90
                if step.value % 2:
                    await session.flush()
            elif step.what == "orm delete":
                await session.delete(found)
            elif step.what == "orm refresh":
                await session.refresh(found)

    async def _statement(self, step: Step, play: Play) -> None:
        id_, value = step.id, step.value
        statement: Any = _SIMPLE.get(step.what)
        if statement is not None:
            await self._execute(statement(id_, value))
            return
        if step.what == "read twice":
            for _ in range(2):
                await self._execute(select(rows.c.value).where(rows.c.id == id_))
                await self._sim.gate()
        elif step.what in ("stream", "stream some"):
            opened: Any = self._session or self._connection
            result = await opened.stream(select(rows.c.id, rows.c.value).order_by(rows.c.id))
            if step.what == "stream":
                async for _ in result:
                    if value > 6:
                        await self._sim.gate()
            else:
                await result.fetchmany(value % 3 + 1)
                if value > 6:
                    await result.close()
        elif step.what == "lock":
            query = select(rows.c.value).where(rows.c.id == id_).with_for_update(nowait=value == 1)
            await self._execute(query, model_locks=True)
        elif step.what == "many":
            size = 60 if value > 7 else value
            if value % 2:
                await self._execute(insert(rows), [{"value": each} for each in range(size)])
            else:
                connection = await self._here()
                await connection.exec_driver_sql(
                    "UPDATE rows SET value = value + ? WHERE id = ?",
                    [(each % 2, id_) for each in range(size)],
                )
        elif step.what == "orphan":
            await self._execute("INSERT INTO children (parent) VALUES (77)")
        elif step.what in ("pragma", "create temp"):
            sql = _SETTINGS[(id_ + value) % len(_SETTINGS)]
            await self._execute("CREATE TEMP TABLE IF NOT EXISTS scratch (x)" if id_ == 1 else sql)
        elif step.what == "driver":
            # What was read before is not compared with anything; and it goes by the engine's mode.
            if await self._record() is None and play.mode == "auto":
                await self._drive(step)
        elif step.what in ("begin", "begin immediate"):
            record = await self._record()
            if record is None and self._connection is not None:
                await self._connection.exec_driver_sql(step.what.upper())

    async def _drive(self, step: Step) -> None:
        """Write, and read, on the ``aiosqlite.Connection`` itself."""
        connection = await self._here()
        assert connection.sync_connection is not None
        found = await connection.get_raw_connection()
        driver: Any = found.driver_connection
        options = connection.sync_connection.get_execution_options()
        for sql, parameters in (
            ("UPDATE rows SET value = (value + ?) % 90 WHERE id = ?", (step.value, step.id)),
            ("SELECT id, value FROM rows ORDER BY id", ()),
        ):
            seen = self._recorder.by_driver(
                connection.sync_connection.connection, sql, parameters, options
            )
            try:
                cursor = await driver.execute(sql, parameters)
                if cursor.description is not None:
                    seen.rows = await cursor.fetchall()
                    seen.columns = tuple(each[0] for each in cursor.description)
                seen.rowcount = cursor.rowcount
                await cursor.close()
            except BaseException as error:
                seen.error = error
                raise
            finally:
                seen.ended = self._recorder.tick()
            if step.value > 5:
                await self._sim.gate()


def _sql(template: str) -> Callable[[int, int], Any]:
    return lambda id_, value: text(template.format(id=id_, value=value))


_SIMPLE: dict[str, Callable[[int, int], Any]] = {
    "read one": lambda id_, value: select(rows.c.value).where(rows.c.id == id_),
    "read all": lambda id_, value: select(rows.c.id, rows.c.value).order_by(rows.c.id),
    "read sum": _sql("SELECT count(*), sum(value), {id} FROM rows"),
    "read text": _sql("/* {value} */ SELECT value FROM rows WHERE id IN ({id}, {value})"),
    "read with": _sql("WITH x AS (SELECT * FROM rows) SELECT max(id), {id} FROM x"),
    "read join": _sql("SELECT c.id, p.id FROM children c JOIN parents p ON p.id = c.parent"),
    "read totals": _sql("SELECT changes FROM totals"),
    "read extra": _sql("SELECT * FROM extra{id}"),
    "add": lambda id_, value: (
        update(rows).where(rows.c.id == id_).values(value=(rows.c.value + value) % 90)
    ),
    "set text": _sql("UPDATE rows SET value = {value} WHERE id = {id}"),
    "insert": lambda id_, value: insert(rows).values(value=value),
    "insert text": _sql("INSERT INTO rows (value) VALUES ({value})"),
    "insert select": _sql("INSERT INTO rows (value) SELECT sum(value) % 50 FROM rows"),
    "delete": lambda id_, value: delete(rows).where(rows.c.id == id_),
    "returning": lambda id_, value: insert(rows).values(value=value).returning(rows.c.id),
    "delete returning": _sql("DELETE FROM rows WHERE id > 2 + {id} RETURNING id, value"),
    "upsert": _sql(
        "INSERT INTO rows (id, value) VALUES ({id}, {value}) "
        "ON CONFLICT (id) DO UPDATE SET value = excluded.value"
    ),
    "nothing": _sql("UPDATE rows SET value = 1 WHERE id = -{id}"),
    "child": _sql("INSERT INTO children (parent) VALUES ({id})"),
    "parent": _sql("INSERT OR IGNORE INTO parents (id) VALUES ({id})"),
    "too much": _sql("UPDATE rows SET value = value + 50 * {value}"),
    "duplicate": _sql("INSERT INTO rows (id, value) VALUES ({id}, 1)"),
    "or fail": _sql("INSERT OR FAIL INTO rows (value) VALUES ({value}), (1000)"),
    "aborts": _sql("INSERT INTO rows (value) VALUES ({value}), (66)"),
    "rolls back": _sql("INSERT INTO rows (value) VALUES ({value}), (68)"),
    "or rollback": _sql("INSERT OR ROLLBACK INTO rows (value) VALUES ({value}), (1000)"),
    "big": _sql("INSERT INTO blobs (data) VALUES (zeroblob({value} * 3000))"),
    "small": _sql("DELETE FROM blobs WHERE id % 3 = {id} - 1"),
    "no table": _sql("INSERT INTO nowhere VALUES ({value})"),
    "create": _sql("CREATE TABLE extra{id} (id INTEGER PRIMARY KEY, x)"),
    "drop": _sql("DROP TABLE IF EXISTS extra{id}"),
    "alter": _sql("ALTER TABLE extra{id} ADD COLUMN y{value}"),
}


_SETTINGS = (
    "PRAGMA cache_size=-500",
    "PRAGMA foreign_keys",
    "PRAGMA table_info(rows)",
    "PRAGMA reverse_unordered_selects=0",
    "PRAGMA user_version",
    "PRAGMA data_version",
    "PRAGMA defer_foreign_keys=ON",
)


@dataclass
class Stage:
    """What a play is set up with."""

    options: dict[str, Any] = field(default_factory=dict)
    guesses: str = "drawn"
    engines: int = 1
    fault: str = "none"
    """What fails now and then: ``full``, ``write``, ``sync``; or ``none``."""


stages = st.builds(
    Stage,
    st.fixed_dictionaries(
        {
            "durability": st.sampled_from(["full", "full", "normal", "strict"]),
            "stall_after": st.sampled_from([0.0, 0.02, 0.25]),
            "pool_size": st.sampled_from([1, 2, 5]),
            "max_overflow": st.sampled_from([0, 5]),
            "inline": st.booleans(),
        }
    ),
    st.sampled_from(["drawn", "ticket", "reads", "validates", "learnt"]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(["none", "none", "none", "full", "write", "sync"]),
)
