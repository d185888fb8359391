"""Servers of their own process, for tests of the dashboard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PATIENCE = 30.0
"""Seconds after which something that should have happened is taken for stuck."""

SHOP = """
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import text

from qsession import create_async_engine
from qsession.ext.dashboard import Dashboard
from qsession.ext.dashboard import stream as streams

streams.STREAM_LIFE = 1e9  # only what a test is about ends a stream
engine = create_async_engine("sqlite+aiosqlite:///shop.db")
NOTE = "<img src=x onerror=document.title='broken'>"
CHANGE = f"UPDATE orders SET note = 'x' WHERE id = 1 /* {NOTE} */"


async def order():
    while True:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO orders (note) VALUES ('tea')"))
        await asyncio.sleep(0.05)


async def report():
    while True:
        async with engine.begin() as connection:
            await connection.execute(text(CHANGE))
            await asyncio.sleep(0.4)
        await asyncio.sleep(0.4)


@asynccontextmanager
async def lifespan(app):
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT)"))
    tasks = [asyncio.create_task(order(), name=f"order {n}") for n in range(8)]
    tasks.append(asyncio.create_task(report(), name=NOTE))
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.mount("/qsession", Dashboard(engine, interval=0.25))
"""
"""An application that is busy, with a dashboard."""


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(
    folder: Path, url: str, *command: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it answers at ``url`` until the end of the block, if it still runs."""
    log = folder / "server.log"
    with log.open("ab") as writes:
        running = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder, stdout=writes, stderr=writes, env={**os.environ, **(env or {})},
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not answers(url):
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
            try:
                running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise


def answers(url: str) -> bool:
    """Whether a server answers, whatever it says."""
    try:
        with urlopen(url, timeout=PATIENCE):
            return True
    except HTTPError as error:
        error.close()
        return True
    except URLError:
        return False


@contextmanager
def shop(
    folder: Path, *more: str, program: str = SHOP
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The application, and the address of its dashboard."""
    (folder / "shop.py").write_text(program)
    port = free_port()
    url = f"http://127.0.0.1:{port}/qsession/"
    with serving(folder, url, "uvicorn", "shop:app", "--port", str(port), *more) as running:
        yield running, url
