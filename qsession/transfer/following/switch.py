"""The switch: writers wait while the last rows are copied, and the source is closed for writes.

Two COMMITs cannot be one. That of the target comes first: it has all rows then, is verified, and
still says that it is not complete. So a source that is closed has all its rows in the target,
whenever the copy is killed. What comes then is in `leaving`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from sqlalchemy import ForeignKeyConstraint
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer.following import capture as captures
from qsession.transfer.following.capture import Capture
from qsession.transfer.following.changes import Change, Changes
from qsession.transfer.following.foreign_keys import bring_back
from qsession.transfer.following.orphans import find_new_orphans
from qsession.transfer.following.source import Source
from qsession.transfer.problems import Problems
from qsession.transfer.references import find_orphans, refuse_orphans
from qsession.transfer.schema import Completing
from qsession.transfer.sequences import after_commit, past_the_rows
from qsession.transfer.wording import place_of


class Switch:
    """One attempt. What it finds on the way stays in its attributes."""

    def __init__(
        self,
        source: Source,
        changes: Changes,
        capture: Capture,
        keys: Sequence[ForeignKeyConstraint],
        deferred: Completing,
    ) -> None:
        self.source = source
        self.target: AsyncConnection = changes.target
        self.changes = changes
        self.capture = capture
        self.keys = keys
        self.deferred = deferred
        self.notes: list[str] = []
        self.closed = False
        """Whether the source refuses writes, or may do so."""

    async def bring_up(self, pause: float) -> None:
        """Bring the target to the state of the source, which is held, in ``pause`` seconds.

        Raises :class:`CopyError` if something is wrong, or takes longer. Then, and if cancelled,
        the target is behind as before.
        """
        self.changes.source = self.source.writing
        try:
            await asyncio.wait_for(self._bring_up(), pause)
        except asyncio.TimeoutError:
            raise CopyError(
                f"the switch was given up: writers had waited for {pause:g} s. Try again, or "
                "let them wait for longer (--switch-timeout)"
            ) from None

    async def close(self) -> None:
        """Have the source refuse writes, and go on holding it. If that fails, it may be closed."""
        to = place_of(self.target)
        await self.source.writing.run_sync(partial(captures.close, to=to))
        self.closed = True
        await self.source.commit_and_hold()

    async def _bring_up(self) -> None:
        writing, target = self.source.writing, self.target
        await writing.run_sync(self.capture.refuse_another_schema)
        pending = await self.changes.pending(self.capture)
        await self.changes.apply(pending, self.capture.token)
        self.changes.note(pending)
        await self.changes.compare_counts()
        await self.refuse_orphans(pending)
        later = await past_the_rows(writing, target, self.changes.plans)
        await bring_back(target, self.deferred)
        await target.commit()
        self.notes += await after_commit(target, later)

    async def refuse_orphans(self, changed: Sequence[Change] | None = None) -> None:
        """Raise :class:`CopyError` if a row refers to nothing, where no database has looked.

        ``changed``: only where these changes can have brought that about.
        """
        if self.target.dialect.name == "postgresql":
            return
        problems, plans = Problems(), self.changes.plans
        if changed is None:
            await find_orphans(self.changes.source, plans, self.keys, problems)
        else:
            await find_new_orphans(self.changes.source, plans, self.keys, changed, problems)
        if problems:
            told = "\n".join(f"  {line}" for line in problems.lines())
            raise CopyError(
                f"rows of the source refer to rows that are not there:\n{told}",
                problems.samples,
                problems.counts,
            )
        if changed is None:
            await refuse_orphans(self.target, self.changes.plans)
