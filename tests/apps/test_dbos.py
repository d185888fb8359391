"""DBOS keeps workflows in SQLAlchemy, and its steps change rows of the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import PATIENCE, File
from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID
from sqlalchemy import text

WORKFLOWS = 8


@pytest.fixture
async def dbos(file: File) -> AsyncIterator[None]:
    """DBOS on the file."""
    DBOS(config={"name": "tried", "system_database_url": file.url, "run_admin_server": False})
    yield
    await asyncio.to_thread(DBOS.destroy, destroy_registry=True)


async def test_no_change_of_a_step_is_lost(dbos: None, file: File) -> None:
    """Each reads a row, waits, and writes. DBOS repeats a step that met a conflict."""
    source = await AsyncSQLAlchemyDatasource.create(file.url)
    async with source.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE counters (value)"))
        await connection.execute(text("INSERT INTO counters VALUES (0)"))

    @source.transaction
    async def add(number: int) -> int:
        session = source.sql_session()
        value = int(await session.scalar(text("SELECT value FROM counters")))
        await asyncio.sleep(0.03)
        await session.execute(text("UPDATE counters SET value = :value"), {"value": value + 1})
        return number

    @DBOS.workflow()
    async def flow(number: int) -> int:
        return await add(number)

    async def run(number: int) -> int:
        with SetWorkflowID(f"flow{number}"):
            return await (await DBOS.start_workflow_async(flow, number)).get_result()

    DBOS.launch()
    told = await asyncio.wait_for(asyncio.gather(*map(run, range(WORKFLOWS))), PATIENCE)
    await source.engine.dispose()
    assert told == list(range(WORKFLOWS))
    assert file.rows("SELECT value FROM counters") == [(WORKFLOWS,)]
    states = file.rows("SELECT status, count(*) FROM workflow_status GROUP BY status")
    assert states == [("SUCCESS", WORKFLOWS)]
