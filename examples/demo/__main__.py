"""Run one storm on SQLAlchemy's stock engine and one on qsession, and show both in a table.

    python -m examples.demo FOLDER [--tasks 200] [--seconds 7]

FOLDER/qsession.db has been made by `alembic upgrade head`; FOLDER/stock.db is made here.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import sqlalchemy.ext.asyncio as stock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

import qsession
from examples.demo.models import Account
from examples.demo.storm import ACCOUNTS, CHECK, CHUNK, OLDER, PAUSE, Outcome, storm


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=7.0)
    chosen = parser.parse_args()
    asyncio.run(compare(chosen.folder, chosen.tasks, chosen.seconds))


async def compare(folder: Path, tasks: int, seconds: float) -> None:
    console = Console()
    console.print(
        f"For {seconds:g} s, {tasks} tasks move money between {ACCOUNTS} accounts. Each transfer "
        f"reads two balances, waits {CHECK * 1000:g} ms for another service, and writes.\n"
        f"Beside them one export streams {OLDER:,} older transfers to a slow client, in "
        f"{OLDER / CHUNK * PAUSE:g} s. The code is the same on both engines, and each engine has "
        "its defaults.\n",
        highlight=False,
    )
    columns = (TextColumn("{task.description:<9}"), BarColumn(), TimeElapsedColumn())
    counts = TextColumn("{task.fields[committed]:>7,} committed  {task.fields[errors]:>5,} errors")
    with Progress(*columns, counts, console=console) as progress:
        before = stock.create_async_engine(f"sqlite+aiosqlite:///{folder / 'stock.db'}")
        async with before.begin() as connection:
            await connection.run_sync(Account.metadata.create_all)
        plain = await watched("stock", before, tasks, seconds, progress)

        after = qsession.create_async_engine(f"sqlite+aiosqlite:///{folder / 'qsession.db'}")
        queued = await watched("qsession", after, tasks, seconds, progress)

    console.print(table(plain, queued))
    console.print(verdict(plain, queued))


async def watched(
    name: str, engine: AsyncEngine, tasks: int, seconds: float, progress: Progress
) -> Outcome:
    """Run the storm on `engine`, show how it goes, and dispose of the engine."""
    bar = progress.add_task(name, total=seconds, committed=0, errors=0)

    def tick(elapsed: float, so_far: Outcome) -> None:
        errors = so_far.locked + so_far.other_errors
        progress.update(
            bar, completed=min(elapsed, seconds), committed=so_far.committed, errors=errors
        )

    try:
        return await storm(engine, tasks=tasks, seconds=seconds, tick=tick)
    finally:
        await engine.dispose()


def table(plain: Outcome, queued: Outcome) -> Table:
    shown = Table(title="\nMeasured just now", title_justify="left")
    shown.add_column("")
    for name in ("stock sqlite+aiosqlite", "qsession"):
        shown.add_column(name, justify="right")
    both = (plain, queued)
    shown.add_row("transfers a second", *(f"{each.rate:,.0f}" for each in both))
    shown.add_row('transfers failed, "database is locked"', *(f"{each.locked:,}" for each in both))
    shown.add_row("transfers failed otherwise", *(f"{each.other_errors:,}" for each in both))
    shown.add_row("accounts with a wrong balance", *(_of(each.wrong_accounts) for each in both))
    shown.add_row("money lost, or made from nothing", *(_money(each.astray) for each in both))
    for label, share in (("median", 0.50), ("99 of 100 within", 0.99), ("longest", 1.0)):
        shown.add_row(
            f"time of a transfer, {label}",
            *(f"{each.percentile(share):,.2f} s" for each in both),
        )
    shown.add_row("rows that the export got", *(f"{each.exported:,}" for each in both))
    return shown


def _of(wrong: int) -> str:
    return f"{wrong} of {ACCOUNTS}"


def _money(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def verdict(plain: Outcome, queued: Outcome) -> str:
    return f"On the stock engine {describe(plain)}.\nOn qsession {describe(queued)}."


def describe(outcome: Outcome) -> str:
    """What a newcomer should see in the column, said in words and from its numbers alone."""
    errors = outcome.locked + outcome.other_errors
    failed = f"{errors:,} transfers failed" if errors else "no transfer failed"
    if outcome.wrong_accounts:
        wrong = f"{outcome.wrong_accounts} of {ACCOUNTS} balances are wrong"
        return f"{failed}, and {wrong}: what one task wrote, another one wrote over"
    return f"{failed}, and every balance is what the transfers on record say"


if __name__ == "__main__":
    main()
