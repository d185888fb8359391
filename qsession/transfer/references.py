"""Foreign keys: rows that refer to nothing, and keys that are off while rows are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Dialect,
    ForeignKeyConstraint,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer.inheritance import own_rows
from qsession.transfer.names import as_statement, as_value, referred
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import ORPHANED, SAMPLES, Problems
from qsession.transfer.reading import bare
from qsession.transfer.schema import Completing
from qsession.transfer.sqlite_schema import UNSORTED
from qsession.transfer.wording import counted


async def find_orphans(
    source: AsyncConnection,
    plans: Sequence[TablePlan],
    keys: Iterable[ForeignKeyConstraint],
    problems: Problems,
) -> None:
    """Note each row of the source that a foreign key of the target would refuse.

    SQLite does not enforce them unless it is told to, so there may be some. Nor does MySQL while
    it is being loaded, so this is the only time that they are looked at.
    """
    by_key = {plan.target.key: plan for plan in plans}
    seen = set()
    for constraint in keys:
        child, parent = by_key.get(constraint.table.key), by_key.get(referred(constraint))
        if child is None or parent is None:
            continue
        local = [each.name for each in constraint.columns]
        remote = [each.target_fullname.rpartition(".")[2] for each in constraint.elements]
        check = child.name, tuple(local), parent.name, tuple(remote)
        known = {*child.source.columns.keys()} >= set(local)
        if check not in seen and known and {*parent.source.columns.keys()} >= set(remote):
            seen.add(check)
            await _find(source, child, local, parent, remote, problems)


async def _find(
    source: AsyncConnection,
    child: TablePlan,
    local: list[str],
    parent: TablePlan,
    remote: list[str],
    problems: Problems,
) -> None:
    rows, others = bare(child.source).alias("child"), bare(parent.source).alias("parent")
    pairs = list(zip(local, remote, strict=True))
    same = (_same(rows.c[a], others.c[b], source.dialect, parent) for a, b in pairs)
    joined = rows.outerjoin(others, and_(*same))
    orphaned = (*(rows.c[name].is_not(None) for name in local), others.c[remote[0]].is_(None))
    total = select(func.count()).select_from(joined).where(*orphaned)
    total = own_rows(total, rows, child.source)
    count = await source.scalar(total)
    if not count:
        return
    reason = f"{ORPHANED}{parent.name} that is not there"
    key = [each.name for each in child.source.primary_key]
    named_by = [rows.c[name] for name in key]
    if not key and source.dialect.name == "sqlite":
        key, named_by = ["rowid"], [literal_column("child.rowid")]
    some = (
        select(*(rows.c[name] for name in local), *named_by)
        .select_from(joined)
        .where(*orphaned)
        .limit(SAMPLES)
    )
    columns = ", ".join(local)
    named = (await source.execute(own_rows(some, rows, child.source))).all()
    for number, row in enumerate(named, 1):
        value = row[0] if len(local) == 1 else tuple(row[: len(local)])
        name = dict(zip(key, row[len(local) :], strict=True)) or number
        problems.add(child.name, columns, name, value, reason)
    problems.count(child.name, columns, reason, count - len(named))


def _same(child: Any, remote: Any, source: Dialect, parent: TablePlan) -> Any:
    """Whether two columns are equal, by the rule of the target.

    SQLite compares by the collation of the parent, which its own ``=`` takes from the left side
    (https://sqlite.org/foreignkeys.html). PostgreSQL tells upper and lower case apart. Nothing is
    looked up in an index that SQLite cannot sort.
    """
    if source.name != "sqlite":
        return child == remote
    if parent.to_file and remote.name not in parent.source.info.get(UNSORTED, ()):
        return remote == child
    return child == remote.collate("BINARY")


async def take_off(target: AsyncConnection, keys: Iterable[ForeignKeyConstraint]) -> Completing:
    """Drop foreign keys on PostgreSQL; return the statements that put them back.

    A circle of references has no order that satisfies it, and a reference of a table to itself
    would have to be satisfied by each batch. What is put back is checked by the database.
    """
    if target.dialect.name != "postgresql":
        return []
    statements: Completing = []
    prepare = target.dialect.identifier_preparer
    for each in keys:
        where, name = prepare.format_table(each.table), prepare.quote(str(each.name))
        of = {"table": as_value(target.dialect, each.table), "name": str(each.name)}
        found = await target.scalar(
            text(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE conrelid = to_regclass(:table) AND conname = :name AND contype = 'f'"
            ),
            of,
        )
        await target.exec_driver_sql(f"ALTER TABLE {where} DROP CONSTRAINT {name}")
        kept = as_statement(target.dialect, str(found))
        put_back = f"ALTER TABLE {where} ADD CONSTRAINT {name} {kept}"
        statements.append((each.table.key, put_back))
    return statements


async def refuse_orphans(target: AsyncConnection, plans: Sequence[TablePlan]) -> None:
    """On MySQL: look at references to tables that were not copied, as the load checked nothing.

    Raises :class:`CopyError`.
    """
    if target.dialect.name not in ("mysql", "mariadb"):
        return
    copied = {plan.target.key for plan in plans}
    keys = [key for plan in plans for key in plan.target.foreign_key_constraints]
    for key in [key for key in keys if referred(key) not in copied]:
        schema, _, name = referred(key).rpartition(".")
        remote = [each.target_fullname.rpartition(".")[2] for each in key.elements]
        columns: list[Any] = [column(each) for each in remote]
        rows = bare(key.table).alias("child")
        others = table(name, *columns, schema=schema or None).alias("parent")
        local = [rows.c[each.name] for each in key.columns]
        pairs = zip(local, (others.c[each] for each in remote), strict=True)
        joined = rows.outerjoin(others, and_(*(here == there for here, there in pairs)))
        orphaned = (*(each.is_not(None) for each in local), others.c[remote[0]].is_(None))
        count = await target.scalar(select(func.count()).select_from(joined).where(*orphaned))
        if count:
            raise CopyError(
                f"{counted(count, 'row')} of {key.table.fullname} ({', '.join(key.column_keys)}) "
                f"{'refers' if count == 1 else 'refer'} to rows of {referred(key)} that are not "
                "there, and that table is not copied. Fill it first, or correct the source"
            )


def unenforced(source: Dialect, target: Dialect) -> bool:
    """Whether rows of the source may refer to nothing, as far as its database cares."""
    return source.name != "postgresql" or target.name != "postgresql"
