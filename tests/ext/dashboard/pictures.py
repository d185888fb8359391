"""Renews the pictures of docs/howto/dashboard.md: ``make pictures``. It takes two minutes."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from browser import browser
from folders import ROOT
from shop import shop

PROGRAM = """
import asyncio
import random
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import text

from qsession import create_async_engine
from qsession.ext.dashboard import Dashboard

engine = create_async_engine("sqlite+aiosqlite:///shop.db")


async def fetch_rates():
    await asyncio.sleep(random.uniform(0.5, 1.2))


async def month_end():
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE accounts SET balance = balance * 1.01"))
        await fetch_rates()


async def place_order(customer):
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO orders (customer, item) VALUES (:customer, 'tea')"),
            {"customer": customer},
        )


async def checkout(customer):
    while True:
        await place_order(customer)
        await asyncio.sleep(random.expovariate(2))


async def every_night():
    while True:
        await month_end()
        await asyncio.sleep(random.uniform(2, 4))


@asynccontextmanager
async def lifespan(app):
    async with engine.begin() as connection:
        for table in ("orders (id INTEGER PRIMARY KEY, customer, item)", "accounts (balance)"):
            await connection.execute(text(f"CREATE TABLE IF NOT EXISTS {table}"))
    tasks = [asyncio.create_task(checkout(n), name=f"checkout {n}") for n in range(60)]
    tasks.append(asyncio.create_task(every_night(), name="month end"))
    yield
    for task in tasks:
        task.cancel()


app = FastAPI(lifespan=lifespan)
app.mount("/qsession", Dashboard(engine))
"""
PICTURES = {
    "dashboard-light": ("light", (1120, 840)),
    "dashboard-dark": ("dark", (1120, 840)),
    "dashboard-phone": ("light", (390, 844)),
}
BUSY = """
document.querySelector(".trace")?.getAttribute("d").split("L").length > 70
  && document.querySelector("[data-id=where]").textContent.endsWith("in fetch_rates")
  && document.querySelectorAll("[data-id=line] li").length === 5
  && parseFloat(document.querySelector("[data-id=held]").textContent) > 100
"""


def main() -> None:
    """Take them. The folder is one that looks well in a picture."""
    folder = Path(tempfile.gettempdir(), "shop")
    folder.mkdir()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            with shop(folder, "--workers", "2", program=PROGRAM) as (_, url):
                with browser(Path(profile)) as shown:
                    shown.size(1120, 840)
                    shown.open(url)
                    for name, (scheme, size) in PICTURES.items():
                        shown.size(*size)
                        shown.prefer(color_scheme=scheme)
                        shown.until(BUSY, 300)
                        (ROOT / "docs" / "images" / f"{name}.png").write_bytes(shown.picture())
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
