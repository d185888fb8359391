"""Leaving the source, which is closed and held: the application gets its new URL, or all goes back.

The target has all rows of the source, and says that it is not complete until the application has
its URL. It is the same whether this run has closed the source or one that was killed, so a second
run ends what the first one began.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer.following import capture as captures
from qsession.transfer.following.source import Source
from qsession.transfer.sequences import after_commit
from qsession.transfer.wording import reason_of


class Leaving:
    """One attempt. What came of it stays in its attributes."""

    def __init__(
        self,
        source: Source,
        target: AsyncConnection,
        switched: Callable[[], Awaitable[None]] | None,
        differing: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self.source = source
        self.target = target
        self.switched = switched
        """Gives the application its new URL. Raises if it did not get it."""
        self.differing = differing
        """The tables of which the target does not hold what the source does."""
        self.notes: list[str] = []
        self.complete = False
        self.reopened = False

    async def run(self) -> None:
        """Run it to its end: a cancellation would leave the application between two databases.

        Raises :class:`CopyError` if the application did not get the URL. Then writers go on in the
        source, unless the target has been written to.
        """
        try:
            if self.switched is not None:
                await self.switched()
        except Exception as failed:
            raise CopyError(await self._go_back(reason_of(failed))) from failed
        later = await books.end(self.target)
        await self.target.commit()
        self.complete = True
        self.notes += await after_commit(self.target, later)

    async def _go_back(self, reason: str) -> str:
        """Open the source, if nobody has written to the target; what happened, for people."""
        closed = f"{reason}. The source was not opened again, as"
        try:
            changed = await self.differing()
        except Exception as error:
            return f"{closed} it is not known whether the target has changed: {reason_of(error)}"
        if changed:
            return f"{closed} the target has other rows by now, in {', '.join(changed)}"
        try:
            await self.source.writing.run_sync(captures.remove)
            await self.source.writing.commit()
        except Exception as error:
            return f"{closed} that failed: {reason_of(error)}"
        self.reopened = True
        return f"{reason}. So the switch was undone: writers go on in the source"
