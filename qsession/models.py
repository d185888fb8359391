"""The declarative base for models, and the naming convention for constraints.

A batch migration on SQLite rebuilds a table, and must name each constraint that it drops or
changes. SQLite gives constraints no names. With this convention every constraint has a name, on
every database.
"""

from __future__ import annotations

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""The name templates, by kind of constraint. A CHECK constraint needs a name of its own."""


class Base(DeclarativeBase):
    """A declarative base that gives all constraints predictable names.

    Subclass it for each mapped class. Migrations compare the database with `Base.metadata`.
    An application with its own base can use `NAMING_CONVENTION` alone.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
