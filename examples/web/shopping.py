"""What can be done with the list.

Each function reads, decides and writes in the session of its caller, who commits. Nobody can come
between, so there is no retry, no lock, and no SQL that counts by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from examples.web.models import Thing
from qsession import QSession


async def things(s: QSession) -> Sequence[Thing]:
    """The list: what is to be bought comes first."""
    return (await s.scalars(select(Thing).order_by(Thing.bought, Thing.name))).all()


async def add(s: QSession, name: str, amount: int) -> None:
    """Put something on the list, or more of it. What was bought before is to be bought again."""
    thing = await s.scalar(select(Thing).where(Thing.name == name))
    if thing is None:
        s.add(Thing(name=name, amount=amount))
    elif thing.bought:
        thing.bought, thing.amount = False, amount
    else:
        thing.amount += amount


async def change(s: QSession, number: int, by: int) -> None:
    """More or less of a thing. With nothing left of it, it is off the list."""
    thing = await s.get(Thing, number)
    if thing is None:
        return  # somebody else was faster
    thing.amount += by
    if thing.amount <= 0:
        await s.delete(thing)


async def rename(s: QSession, number: int, name: str) -> None:
    """Call a thing something else. If that is on the list already, they become one line."""
    thing = await s.get(Thing, number)
    if thing is None or thing.name == name:
        return
    same = await s.scalar(select(Thing).where(Thing.name == name))
    if same is None:
        thing.name = name
    else:
        same.amount += thing.amount
        same.bought = same.bought and thing.bought
        await s.delete(thing)


async def tick(s: QSession, number: int, bought: bool) -> None:
    """It was bought, or was not after all."""
    thing = await s.get(Thing, number)
    if thing is not None:
        thing.bought = bought


async def remove(s: QSession, number: int) -> None:
    """Off the list."""
    await s.execute(delete(Thing).where(Thing.id == number))


async def remove_bought(s: QSession) -> None:
    """Off the list with all that was bought."""
    await s.execute(delete(Thing).where(Thing.bought))
