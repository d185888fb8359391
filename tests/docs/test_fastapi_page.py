"""docs/howto/fastapi.md: both of its applications, and what the default scope hides."""

from __future__ import annotations

import subprocess
import sys

import pytest
from folders import ROOT
from test_readme import run_page

PAGE = ROOT / "docs" / "howto" / "fastapi.md"

BEGIN = """
import asyncio
from contextlib import asynccontextmanager
from fastapi import Depends
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text
import app as page
import by_hand, plain, transfers
from app import Account
from by_hand import QSession, app
from qsession import qsession

@asynccontextmanager
async def client_of(app):
    async with app.router.lifespan_context(app):
        transport = ASGITransport(app)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

async def somebody_else_adds(amount):
    async with qsession.begin() as other:
        await other.execute(text(f"UPDATE accounts SET balance = balance + {amount}"))
"""

EXT = """
attempts = []

@page.app.post("/slow")
async def slow(s: page.SessionDep):
    attempts.append(1)
    await s.connection(execution_options={"qsession_access": "auto"})
    account = await s.get_one(Account, 1)
    if len(attempts) == 1:
        await somebody_else_adds(10)
    account.balance += 1

async def main():
    async with client_of(page.app) as client:
        before = (await client.get("/accounts")).json()[0]
        assert (await client.post("/slow")).status_code == 200
        assert len(attempts) == 2
        assert (await client.get("/accounts")).json()[0] == before + 11
        assert (await client.post("/accounts/99/deposit?amount=1")).status_code == 404
    async with client_of(plain.app) as client:
        assert (await client.post("/accounts", content=b"7")).json() == [before + 11, 7]
        assert (await client.get("/accounts")).json() == [before + 11, 7]

asyncio.run(main())
"""

STATUSES = """
@app.post("/slow")
async def slow():
    async with qsession.begin(access="auto") as s:
        account = await s.get_one(Account, 1)
        await somebody_else_adds(10)
        account.balance += 1

async def main():
    async with client_of(app) as client:
        before = (await client.get("/accounts")).json()[0]
        assert (await client.post("/slow")).status_code == 409
        assert (await client.get("/accounts")).json()[0] == before + 10
        assert (await client.post("/accounts/99/deposit?amount=1")).status_code == 404
        qsession.configure("sqlite+aiosqlite:///bank.db", queue_timeout=0.05)
        async with qsession.begin() as holder:
            await holder.execute(text("UPDATE accounts SET balance = 0"))
            request = asyncio.create_task(client.post("/accounts/1/deposit?amount=1"))
            answer = await request  # a task of its own, as with a server
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert (await client.get("/accounts")).json()[0] == before + 10
            await holder.rollback()
        assert (await client.post("/accounts/1/deposit?amount=1")).json() == before + 11

asyncio.run(main())
"""

TRANSFERS = """
async def main():
    async with qsession.begin() as s:
        first, second = Account(balance=0), Account(balance=0)
        s.add_all([first, second])
        await s.flush()
        first, second = first.id, second.id
    async with client_of(app) as client:
        deposits = [f"/accounts/{first}/deposit?amount=1"] * 50
        moves = [f"/transfers?source={first}&target={second}&amount=1"] * 20
        answers = await asyncio.gather(*map(client.post, deposits + moves))
        assert {each.status_code for each in answers} == {200}
        assert (await client.get("/accounts")).json()[-2:] == [30, 20]

asyncio.run(main())
"""

AGAIN = """
attempts = []

@transfers.router.post("/add")
async def add(body: dict[str, int]):
    attempts.append(body)
    async with qsession.begin(access="auto") as s:
        account = await s.get_one(Account, 1)
        if len(attempts) < body["until"]:
            await somebody_else_adds(10)
        account.balance += body["amount"]

app.include_router(transfers.router)

async def main():
    async with client_of(app) as client:
        before = (await client.get("/accounts")).json()[0]
        assert (await client.post("/add", json={"until": 3, "amount": 1})).status_code == 200
        assert len(attempts) == 3
        assert (await client.get("/accounts")).json()[0] == before + 21
        attempts.clear()
        assert (await client.post("/add", json={"until": 99, "amount": 1})).status_code == 409
        assert len(attempts) == 5

asyncio.run(main())
"""

SCOPES = """
async def failing():
    async with qsession.begin() as s:
        yield s
        raise ConnectionError("as a commit that fails")

@app.post("/late", status_code=201)
async def late(s: QSession = Depends(failing)):
    s.add(Account(id=1000))

@app.post("/soon", status_code=201)
async def soon(s: QSession = Depends(failing, scope="function")):
    s.add(Account(id=1000))

async def main():
    async with app.router.lifespan_context(app):
        transport = ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.post("/late")).status_code == 201  # and nothing was written
            assert (await client.post("/soon")).status_code == 500
    async with qsession.reader() as s:
        assert await s.get(Account, 1000) is None
    await qsession.dispose()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def page_was_run(tmp_path_factory):
    """The folder with the application of the page."""
    folder = tmp_path_factory.mktemp("page")
    assert "[50]" in run_page(PAGE, folder)
    return folder


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(EXT, id="qsession.ext runs a request again, under FastAPI and Starlette"),
        pytest.param(TRANSFERS, id="deposits and transfers at once"),
        pytest.param(STATUSES, id="409 for a conflict, 503 for a turn that does not come"),
        pytest.param(AGAIN, id="a handler of the route class runs again, with its body"),
        pytest.param(SCOPES, id="only scope=function tells the client of a failed commit"),
    ],
)
def test_the_page_does_what_it_says(page_was_run, program):
    """Programs beside the application of the page."""
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", BEGIN + program],
        cwd=page_was_run,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
