"""Charges orders, ten at a time, with asyncio.

A payment is a call to somebody else, and may take long. So no transaction is open meanwhile. One
takes the orders, for `LEASE` seconds, and another one notes what was paid. If this process is
killed in between, the orders are taken again when the lease has ended.
"""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import select

from examples.services.models import Customer, Order
from examples.services.stopping import Stop
from qsession import QSession, qsession

LEASE = 5.0
"""Seconds. Longer than a payment can take."""


async def take(s: QSession) -> list[tuple[int, float]]:
    """Take orders for this process alone: their numbers, and until when they belong to it."""
    now = time.time()
    free = select(Order).where(Order.state == "new", Order.taken_until < now)
    first = free.order_by(Order.id).limit(10).with_for_update(skip_locked=True)
    orders = (await s.scalars(first)).all()
    for order in orders:
        order.taken_until = now + LEASE
    return [(order.id, order.taken_until) for order in orders]


async def charge(number: int, taken_until: float) -> None:
    """Have an order paid, and note it."""
    # A provider of payments is called here. It gets the number of the order, so it does not take
    # the money twice if it is called again after a lease has ended.
    await asyncio.sleep(0.02)
    await qsession.run(note, number, taken_until)


async def note(s: QSession, number: int, taken_until: float) -> None:
    """Note that an order is paid, unless another process has taken it since."""
    order = await s.get_one(Order, number)
    if (order.state, order.taken_until) != ("new", taken_until):
        return
    order.state = "charged"
    customer = await s.get(Customer, order.customer)
    if customer is None:
        s.add(Customer(name=order.customer, spent=order.cents))
    else:
        customer.spent += order.cents


async def main() -> None:
    stop = Stop()
    while not stop.asked:
        taken = await qsession.run(take)
        await asyncio.gather(*(charge(*each) for each in taken))
        if not taken:
            await asyncio.sleep(0.1)
    await qsession.dispose()


if __name__ == "__main__":
    asyncio.run(main())
