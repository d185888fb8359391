"""Jobs of taskiq in a table."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column
from taskiq import Context, TaskiqDepends

from qsession import Base, create_async_engine, qsession
from qsession.ext.taskiq import LeaseExpired, TableBroker

broker = TableBroker(qsession, queue="mail", lease=60.0, poll=0.1)


class Mail(Base):
    """A table."""

    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    sent: Mapped[bool]


@broker.task
async def send(number: int, context: Context = TaskiqDepends()) -> bool:  # noqa: B008  # taskiq wants it so
    """Done exactly once."""
    try:
        async with qsession.begin() as s:
            await broker.acknowledge(s, context)
            (await s.get_one(Mail, number)).sent = True
    except LeaseExpired:
        return False
    return True


async def order() -> None:
    """A job that is there when its transaction is."""
    async with qsession.begin() as s:
        s.add(Mail(id=1, sent=False))
        with broker.within(s):
            await send.kiq(1)


# Mistakes.
TableBroker(create_async_engine("sqlite://"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TableBroker(lease="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
