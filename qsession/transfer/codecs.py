"""What PostgreSQL's drivers are told, so that no value becomes another one on the way.

Python has no infinite date and no year before 1 or after 9999. asyncpg makes the first and the last
date of Python of infinity, and infinity of them; psycopg raises an error that names no row. Here
such a value is text, which a column of PostgreSQL may take and others refuse. An interval stays in
the three parts that PostgreSQL keeps: https://www.postgresql.org/docs/current/datatype-datetime.html
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession.transfer.times import Period

_START = date(2000, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


def teach(engine: AsyncEngine) -> None:
    """Have each new connection of an engine on PostgreSQL tell these values apart."""
    if engine.dialect.driver == "asyncpg":

        def teach_asyncpg(connection: Any, record: Any) -> None:
            connection.run_async(_teach_asyncpg)

        event.listen(engine.sync_engine, "connect", teach_asyncpg)
    elif engine.dialect.driver == "psycopg":

        def teach_psycopg(connection: Any, record: Any) -> None:
            _teach_psycopg(connection.driver_connection.adapters)

        event.listen(engine.sync_engine, "connect", teach_psycopg)


async def _teach_asyncpg(connection: Any) -> None:
    """In the form that its COPY takes, too.

    https://magicstack.github.io/asyncpg/current/api/index.html#asyncpg.connection.Connection.set_type_codec
    """
    naive = datetime.combine(_START, time())
    codecs: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "date": _codec(32, lambda day: (day - _START).days, lambda n: _START + timedelta(n)),
        "timestamp": _moments(naive),
        "timestamptz": _moments(naive.replace(tzinfo=timezone.utc)),
        "interval": (tuple, lambda parts: Period(*parts)),
    }
    for name, (encode, decode) in codecs.items():
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=encode, decoder=decode, format="tuple"
        )


def _moments(start: datetime) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return _codec(
        64,
        lambda moment: (moment - start) // _MICROSECOND,
        lambda number: start + timedelta(microseconds=number),
    )


def _codec(
    bits: int, count: Callable[[Any], int], at: Callable[[int], Any]
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The two ways between what Python has and the count from the start of the year 2000."""
    ends = {"infinity": 2 ** (bits - 1) - 1, "-infinity": -(2 ** (bits - 1))}
    names = {number: name for name, number in ends.items()}

    def encode(value: Any) -> tuple[int]:
        return (ends[value] if isinstance(value, str) else count(value),)

    def decode(value: tuple[int]) -> Any:
        (number,) = value
        if number in names:
            return names[number]
        try:
            return at(number)
        except OverflowError:
            unit = "days" if bits == 32 else "microseconds"
            return f"{number} {unit} after {_START}"

    return encode, decode


def _teach_psycopg(adapters: Any) -> None:
    """https://www.psycopg.org/psycopg3/docs/advanced/adapt.html"""
    from psycopg import DataError
    from psycopg.adapt import Dumper, Loader
    from psycopg.pq import Format

    def text_where_it_fails(name: str) -> type[Loader]:
        """The loader that psycopg has for a type, and the text of what it refuses."""
        usual = adapters.get_loader(adapters.types[name].oid, Format.TEXT)

        class OrText(Loader):
            def __init__(self, oid: int, connection: Any = None) -> None:
                super().__init__(oid, connection)
                self._load = usual(oid, connection).load

            def load(self, data: Any) -> Any:
                try:
                    return self._load(data)
                except DataError:
                    return bytes(data).decode()

        return OrText

    class Parts(Loader):
        def load(self, data: Any) -> Any:
            return bytes(data).decode()

    class FromPeriod(Dumper):
        oid = adapters.types["interval"].oid

        def dump(self, obj: Period) -> bytes:
            return str(obj).encode()

    for name in ("date", "timestamp", "timestamptz"):
        adapters.register_loader(name, text_where_it_fails(name))
    adapters.register_loader("interval", Parts)
    adapters.register_dumper(Period, FromPeriod)
