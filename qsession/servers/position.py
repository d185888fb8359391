"""Position: a place in the log of a primary, and the one that a task's reads must have reached.

A replica shows a task its own writes once it has replayed the log up to there.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple


class Position(NamedTuple):
    """A place in the log."""

    timeline: int
    """It grows each time that a standby is promoted. What a standby has replayed of the old one,
    and the new primary has not, has the same numbers as what the new primary writes."""
    lsn: float
    """Bytes from the beginning of the log."""

    def includes(self, other: Position) -> bool:
        """Whether a server that has replayed so much has replayed the other one, too."""
        return self.timeline >= other.timeline and self.lsn >= other.lsn


NOTHING = Position(0, 0)
"""The task has committed nothing: any replica will do."""
UNKNOWN = Position(0, math.inf)
"""The task has committed, and the server has not been asked yet how far its log went. No replica
has replayed that much, so only the primary will do."""

WRITTEN = """
SELECT CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS bit(32)) AS int),
CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS bigint)
"""
"""How far the log of a primary goes. A standby answers with the error 55000."""
REPLAYED = """
SELECT CASE WHEN pg_is_in_recovery() THEN greatest(
    (SELECT timeline_id FROM pg_control_checkpoint()),
    (SELECT received_tli FROM pg_stat_wal_receiver))
ELSE CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS bit(32)) AS int) END,
CAST(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_insert_lsn() END, '0/0') AS bigint),
CAST(CASE WHEN NOT pg_is_in_recovery()
    OR EXISTS (SELECT FROM pg_stat_wal_receiver)
    AND pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END AS float)
"""
"""How far a replica has replayed, and for how many seconds it may have been behind.

The timeline is a lower limit: roles without ``pg_read_all_stats`` are told that of the last
checkpoint. A replica that has replayed all that it receives is not behind: its last transaction may
be old all the same, on a primary where nothing happens. One that has replayed more than it receives
cannot follow its primary, which has taken another way. The seconds are NULL for one that has
replayed nothing yet."""


class LastCommit:
    """The last commit of a task, and how far the log went after it."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = UNKNOWN


_commits: ContextVar[Mapping[int, LastCommit]] = ContextVar("qsession_commits", default={})  # noqa: B039 - never changed, only replaced
_numbers = itertools.count()


class RequiredPosition:
    """The position that reads on one engine must have reached.

    Each task has its own. A task that it starts begins with that of the moment. What one of them
    then learns of a commit that they share, all of them know.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)

    @property
    def last_commit(self) -> LastCommit | None:
        """That of the current task; None if it has committed nothing."""
        return _commits.get().get(self._number)

    @property
    def required(self) -> Position:
        """The position of the current task."""
        commit = self.last_commit
        return NOTHING if commit is None else commit.position

    def note_commit(self) -> None:
        """The current task commits, or has heard of a commit: its position is unknown now."""
        _commits.set({**_commits.get(), self._number: LastCommit()})
