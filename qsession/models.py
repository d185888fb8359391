"""The declarative base that models are built on, and the names its constraints get.

A batch migration on SQLite rebuilds a table and has to name the constraint that it drops or
changes; SQLite itself gives none a name. With this convention every constraint has one, on every
database.
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
"""The templates, by kind of constraint. A CHECK constraint must be given its own name."""


class Base(DeclarativeBase):
    """A declarative base whose constraints all have predictable names.

    Subclass it for each mapped class; `Base.metadata` is then what migrations compare with.
    An application with a base of its own can reuse `NAMING_CONVENTION` alone.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
