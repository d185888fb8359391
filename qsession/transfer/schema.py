"""Which tables are copied, in which order, and how those that are missing are made."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Dialect,
    ForeignKeyConstraint,
    MetaData,
    Table,
    exc,
    inspect,
)
from sqlalchemy.schema import AddConstraint, sort_tables_and_constraints

from qsession.errors import CopyError
from qsession.transfer.defaults import FIRST, THEN
from qsession.transfer.inheritance import partitions, separate
from qsession.transfer.left_out import virtual_tables
from qsession.transfer.names import (
    as_statement,
    called_there,
    ignores_case,
    referred,
    resolve_references,
    take_away,
)
from qsession.transfer.portable import NoEqual, portable
from qsession.transfer.sequence_options import reflect_sequences
from qsession.transfer.sqlite_schema import WRITTEN, complete, prepare

BOOKS = "qsession_copy"
"""The table in the target that a copy which can be resumed keeps its progress in."""
FOLLOWING = "qsession_follow"
"""The table in a source that is followed, and how the names of all that belongs to it begin."""
REVISIONS = "alembic_version"


def load_metadata(named: Any) -> MetaData:
    """The MetaData that is meant: one, a declarative base, or ``module:name`` of either.

    Raises :class:`sqlalchemy.exc.ArgumentError`.
    """
    found = named
    if isinstance(named, str):
        module, _, path = named.partition(":")
        try:
            found = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError, ValueError) as error:
            raise exc.ArgumentError(
                f"{named!r} does not name your models: {error}. Say module:name"
            ) from error
    found = getattr(found, "metadata", found)
    if not isinstance(found, MetaData):
        raise exc.ArgumentError(f"{named!r} is neither a MetaData nor a declarative base")
    if not found.tables:
        raise exc.ArgumentError(f"{named!r} knows no tables: import the modules of your models")
    return found


def reflect(connection: Connection, given: MetaData | None = None) -> MetaData:
    """The tables of a database as they are: those of the default schema, and what ``given`` names.

    What is SQLite's own, virtual tables and what they keep their data in are left out, and so are
    the tables of Litestream, and PostgreSQL's partitions, whose rows are those of the tables that
    they are parts of.
    """
    metadata = MetaData()
    apart = {BOOKS, *virtual_tables(connection), *partitions(connection)}
    names = set(inspect(connection).get_table_names()) - apart
    there = {name for name in names if not name.startswith((FOLLOWING, "_litestream_"))}
    prepare(connection)
    metadata.reflect(connection, only=sorted(there), resolve_fks=False)
    if given is not None:
        _reflect(connection, metadata, [each for each in given.tables.values() if each.schema])
    if ignores_case(connection):
        resolve_references(metadata)
    if connection.dialect.name == "sqlite":
        complete(connection, metadata)
    separate(connection, metadata)
    reflect_sequences(connection, metadata)
    return metadata


def reflect_only(connection: Connection, tables: Sequence[Table]) -> MetaData:
    """These tables as they are, by the names they have in ``tables``.

    Raises :class:`CopyError` where two of them are one table.
    """
    metadata = MetaData()
    prepare(connection)
    _reflect(connection, metadata, tables)
    if ignores_case(connection):
        resolve_references(metadata)
    separate(connection, metadata)
    return metadata


def _reflect(connection: Connection, metadata: MetaData, tables: Sequence[Table]) -> None:
    inspector = inspect(connection)
    any_case = ignores_case(connection)
    for schema in {table.schema for table in tables}:
        wanted = [table.name for table in tables if table.schema == schema]
        called = called_there(wanted, inspector.get_table_names(schema=schema), any_case)
        same = [name for name, there in called.items() if name == there]
        if same:
            metadata.reflect(connection, schema=schema, only=same, resolve_fks=False)
        for name in called.keys() - set(same):
            found = Table(
                called[name], MetaData(), schema=schema, autoload_with=connection, resolve_fks=False
            )
            found.to_metadata(metadata, name=name)


def add(there: MetaData, others: MetaData) -> None:
    """Add tables of SQLite to those that are known."""
    for table in others.tables.values():
        table.to_metadata(there)
    if others.tables:
        resolve_references(there)


def refuse_what_is_no_table(wanted: Iterable[Table], there: MetaData) -> None:
    """Raise :class:`CopyError` if the target has something else by the name of a table."""
    names = ", ".join(sorted({table.key for table in wanted} - set(there.tables)))
    if names:
        raise CopyError(
            f"nothing was copied: {names} in the target is not a table that takes rows. If it is a "
            "view, rename or drop it. If another copy was at work, start this one again"
        )


def declare(
    reflected: MetaData, given: MetaData | None, source: Dialect, target: Dialect
) -> tuple[MetaData, list[str]]:
    """The tables as the target is to have them, and notes on what is not carried over.

    Raises :class:`CopyError` where the two cannot agree: a column that would be lost, or a type
    that the target has nothing like.
    """
    if given is None:
        try:
            return portable(sort(reflected.tables.values())[0], source, target)
        except NoEqual as error:
            raise CopyError(f"nothing was copied: {error}") from None
    metadata = MetaData(naming_convention=given.naming_convention)
    for table in given.tables.values():
        table.to_metadata(metadata)
    wrong = []
    for key, table in metadata.tables.items():
        theirs = reflected.tables.get(key)
        if theirs is None:
            wrong.append(f"the source has no table {key!r}")
            continue
        ours = {column.name for column in table.columns if column.computed is None}
        there = {column.name for column in theirs.columns}
        wrong += [f"the source has no column {key}.{name}" for name in sorted(ours - there)]
        lost = there - {column.name for column in table.columns}
        wrong += [f"the models do not have {key}.{name}" for name in sorted(lost)]
    if wrong:
        raise CopyError(
            f"nothing was copied: source and models differ: {'; '.join(wrong)}. Migrate the source "
            "first, or correct the models (--metadata)"
        )
    return metadata, [
        f"{key}: not copied, as the models do not have this table"
        for key in sorted(set(reflected.tables) - set(metadata.tables))
        if reflected.tables[key].name != REVISIONS
    ]


def sort(tables: Iterable[Table]) -> tuple[list[Table], list[ForeignKeyConstraint]]:
    """Parents before children, and the foreign keys that no order can satisfy.

    Those are the references of a table to itself, and those that close a circle.
    """
    tables = sorted(tables, key=lambda each: each.key)
    known = {table.key for table in tables}

    def skip(constraint: ForeignKeyConstraint) -> bool | None:
        outside = referred(constraint) not in known or referred(constraint) == _key(constraint)
        return True if outside else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)  # of circles: that is what is asked for
        sort_all: Any = sort_tables_and_constraints  # which has no types
        pairs = sort_all(tables, filter_fn=skip)
    ordered = [table for table, _ in pairs if table is not None]
    late = [each for table, constraints in pairs if table is None for each in constraints]
    late += [
        each
        for table in ordered
        for each in table.foreign_key_constraints
        if referred(each) == table.key
    ]
    late = [each for each in late if referred(each) in known]
    unique = {id(each): each for each in late}
    return ordered, sorted(unique.values(), key=lambda each: (_key(each), each.column_keys))


def _key(constraint: ForeignKeyConstraint) -> str:
    table = constraint.table
    return table.key


Completing = list[tuple[str, str]]
"""Statements that are sent when all rows are there, each with the key of the table it is of."""


def missing_tables(connection: Connection, declared: MetaData) -> list[Table]:
    """Those that are not there."""
    inspector = inspect(connection)
    return [
        table
        for table in declared.tables.values()
        if not inspector.has_table(table.name, schema=table.schema)
    ]


def create(
    connection: Connection, declared: MetaData, missing: list[Table], late: bool
) -> Completing:
    """Make the tables that are missing; return statements that complete them.

    ``late``: foreign keys that no order satisfies are left to those statements.
    """
    completing: Completing = []
    if late:
        keys = {table.key for table in missing}
        for constraint in sort(declared.tables.values())[1]:
            if constraint.table.key in keys:
                completing.append((constraint.table.key, _add(constraint, connection.dialect)))
                take_away(constraint)
    for table in missing:
        for statement in (*table.info.get(FIRST, ()), *table.info.get(WRITTEN, ())):
            connection.exec_driver_sql(as_statement(connection.dialect, statement))
    declared.create_all(connection, tables=[each for each in missing if WRITTEN not in each.info])
    for table in missing:
        for statement in table.info.get(THEN, ()):
            connection.exec_driver_sql(as_statement(connection.dialect, statement))
    return completing


def _add(constraint: ForeignKeyConstraint, dialect: Dialect) -> str:
    if constraint.name is None:
        table = constraint.table.name
        constraint.name = f"fk_{table}_{'_'.join(constraint.column_keys)}"[:60]
    return str(AddConstraint(constraint).compile(dialect=dialect)).strip()
