"""Rows that refer to nothing, looked for among what has changed: the rest was looked at before."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ForeignKeyConstraint, text
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.transfer.following.changes import Change, literally, named_rows
from qsession.transfer.following.conflicts import quoted
from qsession.transfer.names import referred
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import ORPHANED, Problems
from qsession.transfer.references import find_orphans


async def find_new_orphans(
    source: AsyncConnection,
    plans: Sequence[TablePlan],
    keys: Sequence[ForeignKeyConstraint],
    changes: Sequence[Change],
    problems: Problems,
) -> None:
    """Note rows of children that have changed, and those whose parents have gone.

    Where that cannot be asked by the keys that were taken down, all rows of the child are looked
    at.
    """
    by_table = {plan.target.key: plan for plan in plans}
    changed = {change.plan.target.key: change for change in changes}
    for key in keys:
        child, parent = by_table.get(key.table.key), by_table.get(referred(key))
        ours, theirs = changed.get(key.table.key), changed.get(referred(key))
        if child is None or parent is None or not (ours or theirs):
            continue
        pairs = [
            (each.parent.name, each.target_fullname.rpartition(".")[2]) for each in key.elements
        ]
        by_key = {remote for _, remote in pairs} == set(theirs.captured.key if theirs else ())
        if (ours and not ours.captured.key) or (theirs and not by_key):
            await find_orphans(source, plans, [key], problems)
            continue
        counts = []
        if ours:
            counts.append(_of_children(ours, parent, pairs))
        if theirs:
            counts.append(_of_parents(child, theirs, pairs))
        for query in counts:
            if count := await source.scalar(text(literally(query))):
                columns = ", ".join(local for local, _ in pairs)
                problems.count(
                    child.name, columns, f"{ORPHANED}{parent.name} that is not there", count
                )


def _of_children(change: Change, parent: TablePlan, pairs: Sequence[tuple[str, str]]) -> str:
    """How many rows that have changed refer to no row of the parent."""
    filled = " AND ".join(f"t.{quoted(local)} IS NOT NULL" for local, _ in pairs)
    same = " AND ".join(f"p.{quoted(remote)} = t.{quoted(local)}" for local, remote in pairs)
    there = f"SELECT 1 FROM {quoted(parent.source.name)} AS p WHERE {same}"  # noqa: S608
    return f"SELECT count(*) FROM {named_rows(change)} WHERE {filled} AND NOT EXISTS ({there})"  # noqa: S608


def _of_parents(child: TablePlan, change: Change, pairs: Sequence[tuple[str, str]]) -> str:
    """How many rows refer to a row of the parent that was there, and has gone."""
    columns = dict(zip(change.captured.key, change.captured.columns, strict=True))
    keys = ", ".join(f"q.{columns[remote]}" for _, remote in pairs)
    same = " AND ".join(f"p.{quoted(name)} IS q.{k}" for name, k in columns.items())
    there = f"SELECT 1 FROM {quoted(change.plan.source.name)} AS p WHERE {same}"  # noqa: S608
    local = ", ".join(f"t.{quoted(name)}" for name, _ in pairs)
    return (
        f"SELECT count(*) FROM {quoted(child.source.name)} AS t WHERE ({local}) IN "  # noqa: S608
        f"(SELECT {keys} FROM {change.captured.log} AS q WHERE q.seq > {change.after} "
        f"AND NOT EXISTS ({there}))"
    )
