"""Makes a summary of each day.

The time of the last one is in the file. So a scheduler that was stopped or killed goes on where it
was, and a day in which none was running is made up for.
"""

from __future__ import annotations

import asyncio
import os
import time

from sqlalchemy import func, select, update

from examples.services.models import Invoice, Summary
from examples.services.stopping import Stop
from qsession import QSession, qsession


async def is_due(day: float) -> bool:
    """Whether the last summary is a day old. This only reads, and waits for nobody."""
    async with qsession.reader() as s:
        last = await s.scalar(select(func.max(Summary.made)))
    return last is None or time.time() >= last + day


async def summarise(s: QSession) -> str:
    """Sum up the invoices that are in no summary yet. Those counted are those marked."""
    new = Invoice.summary_id.is_(None)
    total = select(func.count(), func.coalesce(func.sum(Invoice.cents), 0)).where(new)
    invoices, cents = (await s.execute(total)).one()
    summary = Summary(made=time.time(), invoices=invoices, cents=cents)
    s.add(summary)
    await s.flush()
    await s.execute(update(Invoice).where(new).values(summary_id=summary.id))
    return f"day {summary.id}: {invoices} invoices, {cents / 100:.2f}"


async def main() -> None:
    stop, day = Stop(), float(os.environ["DAY"])
    while not stop.asked:
        if await is_due(day):
            print(await qsession.run(summarise), flush=True)
        await asyncio.sleep(0.1)
    await qsession.dispose()


if __name__ == "__main__":
    asyncio.run(main())
