"""Commits: the open group of a writer, when its COMMIT is sent, and who is told of it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from qsession.sqlite.group import SLOW, Group, Member
from qsession.sqlite.lease import WriterLease
from qsession.sqlite.processes.turn import FileTurn
from qsession.stats import Counters
from qsession.waiting.ticket import Ticket, TicketQueue

if TYPE_CHECKING:
    from qsession.sqlite.log import Log
    from qsession.sqlite.own import OwnConnection
    from qsession.sqlite.place import Place
    from qsession.sqlite.pool import WriteQueuePool


_Job = Callable[[Group, sqlite3.Connection, float], None]


class Commits:
    """What a writer does about its group.

    Only the holder of the ticket opens and closes a group; without one, whoever gives the ticket
    back or looks at the group does, while the queue stands still.
    """

    queue: TicketQueue
    counters: Counters
    turn: FileTurn

    def __init__(self, pool: WriteQueuePool) -> None:
        self._pool = pool
        self._disposed = False
        self.group: Group | None = None
        """Finished transactions whose COMMIT is still to come."""

    def give_back(self, ticket: Ticket, own: OwnConnection | None = None) -> None:
        """Pass the ticket on."""
        raise NotImplementedError

    def retire(self) -> None:
        """Close the connection, unless somebody uses it."""
        raise NotImplementedError

    def release(self, ticket: Ticket) -> None:
        """Pass on the ticket of one who got no connection; nobody may be left to close it."""
        self.queue.release(ticket)
        if self._disposed:
            self.retire()

    def committed(self) -> None:
        """A transaction that wrote is durable."""
        self.counters.commits += 1
        self._pool.checkpointer.committed()

    def finish(self, log: Log, wrote: bool, lease: WriterLease) -> tuple[Group, Member]:
        """Put a finished transaction into the group; pass the ticket on, or send the group off."""
        group = self.group
        if group is None:
            group = self.group = Group(lease.driver)
            lease.driver.is_shared = True
            self.turn.share(group)
        if not group.concerns(asyncio.get_running_loop()):
            self._look_later(group)
        member = group.add(log, wrote)
        lease.ended = True
        settings = self._pool.settings
        waiting = 0 if self._disposed else self.queue.waiting
        if group.closes(waiting, settings.group_size, self.turn):
            self.close_group(lease.ticket)
        else:
            self.give_back(lease.ticket)
        return group, member

    def close_group(self, ticket: Ticket | None = None, leaving: bool = False) -> None:
        """Send the COMMIT of the group to the thread; ``ticket`` is kept until it is done.

        ``leaving``: the transaction that is at work in it is taken out before.
        """
        group, self.group = self.group, None
        if group is None:
            if ticket is not None:
                self.give_back(ticket)
            return
        job = Group.leave_and_commit if leaving else Group.commit
        if group.driver.suspect:
            job = Group.start_again  # who knows what a COMMIT would make durable
        try:
            self._pool.check_file(group.driver)
        except sqlite3.Error as error:
            group.decide(error)
            job = Group.give_up
        self._post(job, group, ticket)

    def rescue_group(self) -> None:
        """SQLite has dropped the transaction of the group: run its finished members again."""
        group, self.group = self.group, None
        if group is not None:
            self._post(Group.replay, group, None)

    def _post(self, job: _Job, group: Group, ticket: Ticket | None) -> None:
        timeout = self._pool.settings.queue_timeout
        group.driver.is_shared = False

        def run(raw: sqlite3.Connection) -> None:
            try:
                job(group, raw, timeout)
            except Exception as error:
                group.fail(error)
                raise

        group.driver.post(run, done=lambda: self._done(group, ticket))

    def _done(self, group: Group, ticket: Ticket | None) -> None:
        """The COMMIT has been made or has failed. In the connection's thread."""
        try:
            self.counters.groups += len(group.members) > 1
            for member in group.members:
                if member.wrote and member.error is None:
                    self.committed()
        finally:
            self._pass_on(group, ticket)

    def _pass_on(self, group: Group, ticket: Ticket | None) -> None:
        try:
            self.turn.done(group)  # the holder of the ticket may have a claim of its own
            if ticket is not None:
                self.give_back(ticket)
        finally:
            group.settle()

    def _look_later(self, group: Group) -> None:
        asyncio.get_running_loop().call_later(SLOW, self._look_at_group, group)

    def _look_at_group(self, group: Group) -> None:
        """No member waits for a slow neighbour, nor for one that does not come.

        Each loop that has members of the group looks; the loop of the holder decides, so never in
        the middle of one of its statements.
        """
        if self.group is not group:
            return
        self._look_later(group)
        ticket = self.queue.holder
        home = None if ticket is None else ticket.owner.loop
        if home is None or home is asyncio.get_running_loop() or home.is_closed():
            self._judge(group, ticket)
            return
        with suppress(RuntimeError):  # closed meanwhile: that is seen the next time
            home.call_soon_threadsafe(self._judge, group, ticket)

    def _judge(self, group: Group, ticket: Ticket | None) -> None:
        """Close the group if the holder of ``ticket`` takes too long, or has not joined it."""
        if self.group is not group or self.queue.holder is not ticket:
            return
        holder: Place | None = None if ticket is None else ticket.owner
        if holder is not None and holder.writer is self:
            lease = holder.lease
            if holder.busy and not holder.forsaken:
                return
            if isinstance(lease, WriterLease) and lease.joined_at is not None:
                if time.monotonic() - lease.joined_at >= SLOW:
                    holder.leave_group()
                return
        self.queue.between(self._close_unless_changed, (group, ticket))

    def _close_unless_changed(self, seen: tuple[Group, Ticket | None]) -> None:
        if (self.group, self.queue.holder) == seen:
            self.close_group()
