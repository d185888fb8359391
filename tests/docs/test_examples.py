"""The examples run, and do what they say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from folders import ROOT
from server_databases import database_on


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def url(request, tmp_path):
    """An empty database, by a URL without a driver."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    with database_on("postgresql") as url:
        yield url.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("module", "said"),
    [("gather_connection", "one ran\ntwo ran\n"), ("gather_pool", "0 left, 20 sold\n")],
)
def test_gather_over_a_pool_and_over_one_connection(url, module, said):
    """Both programs of the tutorial run to their end, on either database."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.pool.{module}", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr


DEMO = """
import asyncio, json, sys
from dataclasses import asdict
from examples.demo import storm
from examples.demo.__main__ import verdict
from examples.demo.models import Account
from qsession import create_async_engine

storm.OLDER, storm.CHUNK, storm.PAUSE = 40, 10, 0

async def main():
    engine = create_async_engine(sys.argv[1])
    async with engine.begin() as connection:
        await connection.run_sync(Account.metadata.create_all)
    try:
        return await storm.storm(engine, tasks=5, seconds=0.1, tick=lambda *_: None)
    finally:
        await engine.dispose()

bad = storm.Outcome(locked=2, wrong_accounts=3, astray=500)
outcome = asyncio.run(main())
print(json.dumps({"outcome": asdict(outcome), "said": verdict(bad, outcome)}))
"""
"""In a process of its own, as its tables belong to the Base that all models share."""


def test_the_demo_adds_up(tmp_path):
    """On qsession: no error, no wrong balance, all rows for the export. It says what was lost."""
    pytest.importorskip("rich")
    command = [sys.executable, "-W", "error", "-c", DEMO]
    url = f"sqlite+aiosqlite:///{tmp_path / 'demo.db'}"
    done = subprocess.run([*command, url], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    told = json.loads(done.stdout)
    outcome = told["outcome"]
    assert outcome["committed"] > 0
    assert (outcome["locked"], outcome["other_errors"]) == (0, 0)
    assert (outcome["wrong_accounts"], outcome["astray"]) == (0, 0)
    assert outcome["exported"] == 40
    assert "2 transfers failed, and 3 of 20 balances are wrong" in told["said"]
    assert "On qsession no transfer failed, and every balance is" in told["said"]
