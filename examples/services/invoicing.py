"""Makes the invoices of charged orders, one after the other, without asyncio.

An invoice needs nothing but the database, so its job is one transaction. If this process is killed
in it, nothing of it is in the file, and the order is still to be done.
"""

from __future__ import annotations

import os
import time

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from examples.services.models import Invoice, Order
from examples.services.stopping import Stop
from qsession import create_engine


def make_invoice(engine: Engine) -> bool:
    """Make the next invoice. False if there is none to be made."""
    with Session(engine) as s, s.begin():
        charged = select(Order).where(Order.state == "charged").order_by(Order.id).limit(1)
        order = s.scalar(charged.with_for_update(skip_locked=True))
        if order is None:
            return False
        # Nobody comes between this SELECT and the INSERT: no number is given twice or left out.
        number = (s.scalar(select(func.max(Invoice.number))) or 0) + 1
        text = f"Invoice {number}: {order.item} for {order.customer}, {order.cents / 100:.2f}"
        s.add(Invoice(number=number, order_id=order.id, cents=order.cents, text=text))
        order.state = "invoiced"
        return True


def main() -> None:
    stop = Stop()
    engine = create_engine(os.environ["QSESSION_URL"])
    while not stop.asked:
        if not make_invoice(engine):
            time.sleep(0.1)
    engine.dispose()


if __name__ == "__main__":
    main()
