"""agno keeps agents' sessions in SQLAlchemy, with an asyncio engine or a synchronous one."""

from __future__ import annotations

import asyncio

from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from agno.session import AgentSession
from conftest import File, together

SESSIONS = 60


def session(number: int) -> AgentSession:
    """A session of an agent."""
    return AgentSession(
        session_id=f"session{number}",
        agent_id="agent",
        user_id=f"user{number % 5}",
        session_data={"count": number},
        created_at=1,
        updated_at=1,
    )


async def test_sessions_of_tasks_are_all_there(file: File) -> None:
    """Each is written and written again, many at once."""
    db = AsyncSqliteDb(db_url=file.url)
    await db.upsert_session(session(0))

    async def upsert(number: int) -> str:
        written = await db.upsert_session(session(number % SESSIONS))
        assert written is not None
        return str(written.session_id)

    told = await together(upsert, 2 * SESSIONS)
    await db.db_engine.dispose()
    table = db.session_table_name
    assert {row[0] for row in file.rows(f"SELECT session_id FROM {table}")} == set(told)


async def test_sessions_of_threads_are_all_there(file: File) -> None:
    """The same from the threads of a synchronous program."""
    db = SqliteDb(db_url=file.url)
    db.upsert_session(session(0))
    written = await together(
        lambda number: asyncio.to_thread(db.upsert_session, session(number)), SESSIONS, tasks=8
    )
    assert None not in written
    db.db_engine.dispose()
    table = db.session_table_name
    assert file.rows(f"SELECT count(*) FROM {table}") == [(SESSIONS,)]
