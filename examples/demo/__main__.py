"""Run one storm on SQLAlchemy's stock engine and one on qsession, and show both in a table.

    python -m examples.demo FOLDER [--tasks 200] [--seconds 5]

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
from examples.demo.storm import ACCOUNTS, Outcome, storm


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    asyncio.run(compare(chosen.folder, chosen.tasks, chosen.seconds))


async def compare(folder: Path, tasks: int, seconds: float) -> None:
    console = Console()
    console.print(
        f"{tasks} tasks move money between {ACCOUNTS} accounts for {seconds:g} s, "
        "through the same ORM code:\n"
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
    shown.add_row("committed transfers a second", *(f"{each.rate:,.0f}" for each in both))
    shown.add_row('"database is locked" errors', *(f"{each.locked:,}" for each in both))
    shown.add_row("other errors", *(f"{each.other_errors:,}" for each in both))
    shown.add_row(
        "accounts with lost updates", *(f"{each.wrong_accounts} of {ACCOUNTS}" for each in both)
    )
    shown.add_row(
        "money that appeared or vanished", *(f"{each.astray / 100:,.2f}" for each in both)
    )
    for label, share in (("p50", 0.50), ("p99", 0.99), ("max", 1.0)):
        shown.add_row(
            f"wait for a transfer, {label}",
            *(f"{each.percentile(share) * 1000:,.0f} ms" for each in both),
        )
    return shown


def verdict(plain: Outcome, queued: Outcome) -> str:
    return f"On the stock engine {describe(plain)}. On qsession {describe(queued)}."


def describe(outcome: Outcome) -> str:
    """What a newcomer should see in the column, said in words and from its numbers alone."""
    errors = outcome.locked + outcome.other_errors
    failed = f"{errors:,} transfers failed" if errors else "no transfer failed"
    if outcome.wrong_accounts:
        wrong = f"{outcome.wrong_accounts} of {ACCOUNTS} balances do not match"
        return f"{failed}, but {wrong} the transfers on record: updates were lost"
    return f"{failed}, and every balance matches the transfers on record"


if __name__ == "__main__":
    main()
