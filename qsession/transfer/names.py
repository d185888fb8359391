"""Names of tables and columns in databases that do not tell upper and lower case apart."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Dialect, ForeignKeyConstraint, MetaData, Table, text

from qsession.errors import CopyError


def ignores_case(connection: Connection) -> bool:
    """Whether ``users`` and ``Users`` are one table there.

    https://dev.mysql.com/doc/refman/8.4/en/identifier-case-sensitivity.html
    """
    if connection.dialect.name in ("mysql", "mariadb"):
        return bool(connection.scalar(text("SELECT @@lower_case_table_names")))
    return connection.dialect.name == "sqlite"


def called_there(wanted: Iterable[str], there: Iterable[str], any_case: bool) -> dict[str, str]:
    """For each wanted table that is there its name as the database has it.

    Raises :class:`CopyError` where two of them would be one table.
    """
    exact = set(there)
    lower = {name.lower(): name for name in sorted(exact)} if any_case else {}
    found: dict[str, str] = {}
    for name in sorted(wanted):
        called = name if name in exact else lower.get(name.lower())
        if called is None:
            continue
        if called in found.values():
            other = next(each for each, its in found.items() if its == called)
            raise CopyError(
                f"nothing was copied: {other} and {name} are one table in the target, which does "
                "not tell upper and lower case apart. Rename one of them in the source"
            )
        found[name] = called
    return found


def referred(constraint: ForeignKeyConstraint) -> str:
    """The key of the table that a foreign key leads to, which need not be known."""
    return constraint.elements[0].target_fullname.rpartition(".")[0]


def as_value(dialect: Dialect, table: Table) -> str:
    """The name of a table, quoted, where it is a value rather than a part of a statement."""
    name = dialect.identifier_preparer.format_table(table)
    return name.replace("%%", "%") if _has_percents(dialect) else name


def as_statement(dialect: Dialect, written: str) -> str:
    """What a database wrote, as a statement: some drivers take a % for the mark of a parameter."""
    return written.replace("%", "%%") if _has_percents(dialect) else written


def _has_percents(dialect: Dialect) -> bool:
    return dialect.paramstyle in ("format", "pyformat")


def take_away(constraint: ForeignKeyConstraint) -> None:
    """Remove a foreign key from the table it is of."""
    table = constraint.table
    table.constraints.discard(constraint)
    for each in constraint.elements:
        table.foreign_keys.discard(each)
        each.parent.foreign_keys.discard(each)


def resolve_references(metadata: MetaData) -> None:
    """Let ``REFERENCES Users (ID)`` lead to ``users.id``, if that is what there is."""
    by_lower = {key.lower(): table for key, table in metadata.tables.items()}
    for table in metadata.tables.values():
        for constraint in list(table.foreign_key_constraints):
            parent = metadata.tables.get(referred(constraint))
            parent = by_lower.get(referred(constraint).lower()) if parent is None else parent
            if parent is not None:
                _lead_to(constraint, parent)


def _lead_to(constraint: ForeignKeyConstraint, parent: Table) -> None:
    known = {column.name.lower(): column.name for column in parent.columns}
    remote = [each.target_fullname.rpartition(".")[2] for each in constraint.elements]
    targets = [f"{parent.key}.{known.get(name.lower(), name)}" for name in remote]
    if targets == [each.target_fullname for each in constraint.elements]:
        return
    table = constraint.table
    take_away(constraint)
    table.append_constraint(
        ForeignKeyConstraint(
            [column.name for column in constraint.columns],
            targets,
            name=constraint.name,
            ondelete=constraint.ondelete,
            onupdate=constraint.onupdate,
            deferrable=constraint.deferrable,
            initially=constraint.initially,
        )
    )
