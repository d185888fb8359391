"""Arrays of PostgreSQL that do not begin at 1. What drivers give, a list of Python, always does."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, types
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.transfer.inheritance import own_rows
from qsession.transfer.kinds import plain
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import Problems
from qsession.transfer.reading import bare

_FROM_ONE = r"^(\[1:\d+\])+$"


async def find_shifted(
    source: AsyncConnection, plans: Sequence[TablePlan], problems: Problems
) -> None:
    """Note the arrays whose subscripts would change.

    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    if source.dialect.name != "postgresql":
        return
    for plan in plans:
        for name in plan.names:
            if not isinstance(plain(plan.source.columns[name].type), types.ARRAY):
                continue
            rows = bare(plan.source)
            shifted = func.array_dims(rows.c[name]).op("!~")(_FROM_ONE)
            query = select(func.count()).select_from(rows).where(shifted)
            if count := await source.scalar(own_rows(query, rows, plan.source)):
                reason = "an array with subscripts that do not begin at 1"
                problems.count(plan.name, name, reason, count)
