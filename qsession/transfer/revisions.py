"""Alembic's revisions: whether source and target are at the same one."""

from __future__ import annotations

from sqlalchemy import MetaData, column, inspect, select, table
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer.schema import REVISIONS

_versions = table(REVISIONS, column("version_num"))


async def agree(
    source: AsyncConnection, target: AsyncConnection, declared: MetaData, copied: bool
) -> list[str]:
    """Compare them; where the target has its own, they are not copied. Returns notes.

    ``copied``: an earlier run has begun to copy them, so those of the target are not its own.

    Raises :class:`CopyError` if both have some and they differ.
    """
    theirs, ours = await _revisions(source), await _revisions(target)
    if ours and theirs and ours != theirs:
        raise CopyError(
            f"nothing was copied: the source is at revision {', '.join(sorted(theirs))}, the "
            f"target at {', '.join(sorted(ours))}. Migrate both to the same one (alembic upgrade)"
        )
    if ours and not copied and REVISIONS in declared.tables:
        declared.remove(declared.tables[REVISIONS])
    if theirs and not ours and REVISIONS not in declared.tables:
        heads = " ".join(sorted(theirs))
        return [f"{REVISIONS}: the target has no revision yet (alembic stamp {heads})"]
    return []


async def _revisions(connection: AsyncConnection) -> set[str]:
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(REVISIONS)):
        return set()
    return set((await connection.scalars(select(_versions.c.version_num))).all())
