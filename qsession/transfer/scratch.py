"""Tables that SQLite would make, made elsewhere: to see their columns without a write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import MetaData, Table, create_engine, event
from sqlalchemy.pool import StaticPool

from qsession.transfer.collations import refuse_strangers, stand_in
from qsession.transfer.schema import create, reflect_only


def made_in_memory(declared: MetaData, missing: list[Table], collations: Iterable[str]) -> MetaData:
    """The missing tables as SQLite reflects them. Raises :class:`CopyError`."""
    engine = create_engine("sqlite://", poolclass=StaticPool)

    def prepare_memory(connection: Any, record: Any) -> None:
        stand_in(connection, collations)

    event.listen(engine, "connect", prepare_memory)
    try:
        with engine.connect() as connection:
            create(connection, declared, missing, late=False)
            refuse_strangers(connection, [each.name for each in missing])
            return reflect_only(connection, missing)
    finally:
        engine.dispose()
