"""The judge: all that was seen has to be what plain SQLite would have shown, one after the other.

The order of commits is not asked of the library. Each transaction that has written puts its name
into the table ``journal`` as its last statement, whose numbers count up by one. SQLite lets one
connection write at a time, and undoes the number with all the rest: so the numbers are the order of
the commits, and a name that is there says that its transaction was committed, acknowledged or not.
"""

from __future__ import annotations

import bisect
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from recorder import Record, Seen

from qsession.errors import (
    ConflictError,
    DurabilityError,
    QSessionError,
    QueueTimeout,
    ReadOnlyError,
)

_FAULTS = (
    *("database or disk is full", "disk I/O error", "unable to open database file"),
    "database table is locked",  # DROP, while a stream of the same transaction is open
)
JOURNAL = "SELECT id, name FROM journal ORDER BY id"


class Wrong(AssertionError):
    """What was seen has no serial order."""


@dataclass
class Claim:
    """Something that must be so in one of some versions of the database.

    Version N is the one behind N commits.
    """

    what: str
    low: int
    high: int
    holds: Callable[[sqlite3.Connection], str | None]
    """None if so; else what is different."""
    seen: Seen | None = None
    """The SELECT that it is about, if its versions have to go up."""
    versions: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)


class Judge:
    """Replays one history."""

    def __init__(
        self,
        schema: str,
        records: Sequence[Record],
        journal: Sequence[tuple[int, str]],
        replay: str = ":memory:",
    ) -> None:
        self._oracle = sqlite3.connect(replay, isolation_level=None)
        self._oracle.execute("PRAGMA foreign_keys=ON")
        self._oracle.executescript(schema)
        self._records = records
        self._by_name = {each.name: each for each in records}
        self._journal = [name for _, name in journal]
        self._position = {name: number for number, (_, name) in enumerate(journal, 1)}
        if [number for number, _ in journal] != list(range(1, len(journal) + 1)):
            raise Wrong(f"the journal has gaps: {journal}")
        self._claims: list[Claim] = []
        self._acknowledged = sorted(
            (each.ended, self._position[each.name])
            for each in records
            if each.outcome == "committed" and each.name in self._position
        )
        self._begun = sorted(
            (each.commit_began, position)
            for name, position in self._position.items()
            if (each := self._by_name.get(name)) is not None and each.commit_began is not None
        )
        self._lows = list(itertools.accumulate((last for _, last in self._acknowledged), max))
        backwards = itertools.accumulate((first for _, first in reversed(self._begun)), min)
        self._highs = list(backwards)[::-1]

    def close(self) -> None:
        self._oracle.close()

    def check(self, final: dict[str, list[Any]]) -> None:
        """Raise :class:`Wrong`. ``final``: queries, and what they return at the end."""
        self._check_outcomes()
        for record in self._records:
            self._claim(record)
        for version in range(len(self._journal) + 1):
            for claim in self._claims:
                if claim.low <= version <= claim.high:
                    self._try(claim, version)
            if version < len(self._journal):
                self._replay(self._journal[version])
        for claim in self._claims:
            if not claim.versions:
                raise Wrong(f"{claim.what}\nversions {claim.low} to {claim.high}: {claim.reasons}")
        self._check_no_going_back()
        for sql, rows in final.items():
            found = self._oracle.execute(sql).fetchall()
            if found != rows:
                raise Wrong(f"at the end {sql!r} returns {rows}, and not {found}")

    def _check_outcomes(self) -> None:
        for each in self._records:
            there = each.name in self._position
            if each.outcome == "committed" and not there and self._must_be_there(each):
                raise Wrong(f"acknowledged, and lost: {each}")
            if each.outcome in ("rolled back", "failed", "open") and there:
                raise Wrong(f"not committed, and there: {each}")
            if not _may_happen(each.dead) or not _may_happen(each.error):
                raise Wrong(f"nobody should be told this: {each}")
        for name in self._journal:
            if name not in self._by_name:
                raise Wrong(f"nobody has written {name}")

    def _must_be_there(self, record: Record) -> bool:
        if record.autocommit:
            return record.statements[0].tag is not None and record.statements[0].rowcount > 0
        return any("INTO journal" in each.sql for each in record.statements if each.error is None)

    def low(self, tick: int) -> int:
        """The version that was acknowledged before."""
        number = bisect.bisect_left(self._acknowledged, (tick,))
        return self._lows[number - 1] if number else 0

    def high(self, tick: int) -> int:
        """The last version that may have been there by then."""
        number = bisect.bisect_left(self._begun, (tick + 1,))
        return self._highs[number] - 1 if number < len(self._highs) else len(self._journal)

    def _claim(self, record: Record) -> None:
        """What has to be so for one transaction that is not replayed at its place."""
        statements = [each for each in record.statements if not self._is_cut(record, each)]
        validated = _before_it_wrote(statements)
        if record.snapshot and not record.autocommit:
            # A SELECT that fails before it reads anything is behind BEGIN, and begins no snapshot.
            first = next((n for n, each in enumerate(statements) if not each.fails_to_read), None)
            early = [each for each in statements[:first] if each.fails_to_read]
            self._claims += [self._read_claim(record, each) for each in early]
            statements = [each for each in statements if each not in early]
        before = _before_it_wrote(statements)
        wrote = len(before) < len(statements)
        if not record.snapshot and not record.autocommit:
            self._claims += [self._read_claim(record, each) for each in before if each.asks]
        if record.name in self._position:
            return
        if isinstance(record.dead, ConflictError):
            self._claim_conflict(record, validated)
            if record.snapshot:
                # A write that was tried may have moved the snapshot on, behind a validation.
                tried = any(each.writes for each in before)
                self._claim_whole(
                    record, before, before[-1].ended if tried else _first_answer(before)
                )
            return
        if wrote or record.snapshot or record.autocommit:
            if not statements:
                return
            reads_only = record.access == "read" or not record.writes
            reads_only = reads_only and record.access != "write"
            end = _first_answer(statements) if reads_only else record.ended
            chosen = statements if record.snapshot else _last_of_each(before, statements)
            self._claim_whole(record, chosen, end or statements[-1].ended)

    def _is_cut(self, record: Record, seen: Seen) -> bool:
        """Whether nothing is known of it: cut off, by a cancellation, the machine or a kill."""
        if not seen.ended:
            return True
        if isinstance(seen.error, QSessionError) or fails_by_machine(seen.error):
            return True
        if seen.by_driver and str(seen.error) == "database is locked":
            return True  # a simulated machine has no thread that could wait inside of SQLite
        return seen.error is not None and not isinstance(seen.error, sqlite3.Error)

    def _read_claim(self, record: Record, seen: Seen) -> Claim:
        def holds(oracle: sqlite3.Connection) -> str | None:
            return compare(oracle, seen)

        began = seen.began
        before = itertools.takewhile(lambda each: each is not seen, record.statements)
        streams = [each for each in before if each.streamed]
        if streams:  # while one is open, SQLite reads all from the snapshot that it has
            began = streams[0].began
        claim = Claim(f"{seen}\nof {record}", self.low(began), self.high(seen.ended), holds)
        if not streams:
            claim.seen = seen
        return claim

    def _claim_whole(self, record: Record, statements: Sequence[Seen], end: int) -> None:
        def holds(oracle: sqlite3.Connection) -> str | None:
            return _play(oracle, record, statements)

        low = self.low(statements[0].began) if statements else 0
        self._claims.append(Claim(f"the whole of {record}", low, self.high(end), holds))

    def _claim_conflict(self, record: Record, before: Sequence[Seen]) -> None:
        """A conflict has a reason: something it had read, and last saw, is different now."""
        last = _last_of_each(before, before)
        failing = record.statements[-1]

        def holds(oracle: sqlite3.Connection) -> str | None:
            # The rest of a stream may have been fetched already, for the application to get later.
            different = any(not each.whole or compare(oracle, each) for each in last)
            return None if different else "all that was read is still so"

        low, high = self.low(failing.began), self.high(failing.ended)
        self._claims.append(Claim(f"the conflict of {record}", low, high, holds))

    def _try(self, claim: Claim, version: int) -> None:
        self._oracle.execute("SAVEPOINT judge") if "whole" not in claim.what[:9] else None
        try:
            reason = claim.holds(self._oracle)
        finally:
            if self._oracle.in_transaction:
                self._oracle.execute("ROLLBACK")
        if reason is None:
            claim.versions.append(version)
        else:
            claim.reasons[version] = reason

    def _replay(self, name: str) -> None:
        record = self._by_name[name]
        statements = [each for each in record.statements if not self._is_cut(record, each)]
        if record.autocommit:
            statements = record.statements
        before = _before_it_wrote(statements)
        chosen = statements if record.snapshot else _last_of_each(before, statements)
        if record.outcome == "unknown" and record.autocommit:
            seen = chosen[0]
            self._oracle.execute(seen.sql, seen.parameters)
            return
        reason = _play(self._oracle, record, chosen, commits=True)
        if reason is not None:
            at = self._position[name]
            raise Wrong(f"commit {at}: {reason}\n{record}")

    def _check_no_going_back(self) -> None:
        """No SELECT of plain auto sees a version older than what was seen before it began."""
        asked = [(each.seen, each) for each in self._claims if each.seen is not None]
        asked.sort(key=lambda each: each[0].began)
        done: list[tuple[int, int]] = []
        for seen, claim in asked:
            floor = max((version for ended, version in done if ended < seen.began), default=0)
            found = [version for version in claim.versions if version >= floor]
            if not found:
                raise Wrong(f"{claim.what}\nsaw {claim.versions}; {floor} was seen before")
            done.append((seen.ended, found[0]))


def _first_answer(statements: Sequence[Seen]) -> int:
    """When the first SELECT was answered; a SAVEPOINT reads nothing."""
    return next((each.ended for each in statements if each.asks), 0)


def _before_it_wrote(statements: Sequence[Seen]) -> Sequence[Seen]:
    number = next((n for n, each in enumerate(statements) if each.took), len(statements))
    return statements[:number]


def _last_of_each(before: Sequence[Seen], statements: Sequence[Seen]) -> list[Seen]:
    """Without reads that were made anew later, before the first write: they count as last seen."""
    last = {each.key: each for each in before}
    return [each for each in statements if each not in before or last[each.key] is each]


def _play(
    oracle: sqlite3.Connection, record: Record, statements: Sequence[Seen], commits: bool = False
) -> str | None:
    """Run a transaction on its own: what is different from what it saw, if anything."""
    if not record.autocommit:
        oracle.execute("BEGIN")
    elif not commits:
        oracle.execute("SAVEPOINT judge")
    wrote = False
    savepoints: list[str] = []
    for each in statements:
        reason = compare(oracle, each)
        if reason is not None:
            return reason
        if each.sql.startswith("SAVEPOINT "):
            savepoints.append(each.sql)
        elif each.sql.startswith("RELEASE "):
            savepoints.pop()
        wrote = wrote or each.took
        if not oracle.in_transaction and not record.autocommit:  # RAISE(ROLLBACK)
            if wrote:
                rest = statements[list(statements).index(each) + 1 :]
                undone = all(other.sql.startswith("ROLLBACK TO ") for other in rest)
                return None if undone and not commits else "it was rolled back, and went on"
            for sql in ("BEGIN", *savepoints):  # nothing was done: it is as if it began now
                oracle.execute(sql)
    if record.autocommit and commits:
        return None
    if not commits and (record.outcome != "failed" or fails_by_machine(record.error)):
        return None
    try:
        if oracle.in_transaction and not record.autocommit:
            oracle.execute("COMMIT")
    except sqlite3.Error as error:
        if record.outcome == "failed" and _same_error(error, record.error):
            return None
        return f"COMMIT fails with {error!r}"
    return None if record.outcome != "failed" else f"COMMIT goes well, and not {record.error!r}"


def compare(oracle: sqlite3.Connection, seen: Seen) -> str | None:
    """Run a statement: what is different from what was seen, if anything."""
    if seen.sql.startswith(("PRAGMA", "BEGIN")):
        return None
    cursor = oracle.cursor()
    try:
        if seen.many:
            cursor.executemany(seen.sql, seen.parameters)
        else:
            cursor.execute(seen.sql, seen.parameters)
        rows = None if cursor.description is None else cursor.fetchall()
    except sqlite3.Error as error:
        return None if _same_error(error, seen.error) else f"{seen.sql}: {error!r}"
    if seen.error is not None:
        return f"{seen.sql}: goes well, and not {seen.error!r}"
    if rows is not None:
        columns = tuple(each[0] for each in cursor.description)
        found = rows if seen.whole else rows[: len(seen.rows or ())]
        if columns != seen.columns or found != seen.rows:
            return f"{seen.sql} {seen.parameters}: {columns} {rows}"
    elif seen.rows is not None:
        return f"{seen.sql}: no rows"
    if rows is None and seen.rowcount != cursor.rowcount:
        return f"{seen.sql}: rowcount {cursor.rowcount}"
    # What was inserted last on the connection, where nothing was: that of anybody.
    text = seen.sql.lstrip().upper()
    inserts = text.startswith("INSERT") and " CONFLICT " not in text and not seen.many
    if inserts and rows is None and cursor.rowcount > 0 and seen.lastrowid != cursor.lastrowid:
        return f"{seen.sql}: lastrowid {cursor.lastrowid}"
    return None


def _may_happen(error: BaseException | None) -> bool:
    """Whether an error of the library's is one that these transactions may get."""
    if not isinstance(error, QSessionError):
        return True
    if isinstance(error, (ConflictError, ReadOnlyError, DurabilityError)):
        return True
    text = str(error)
    if isinstance(error, QueueTimeout):
        return "NOWAIT" in text
    return type(error) is QSessionError and ("SQLite rolled" in text or "cancelled" in text)


def fails_by_machine(error: BaseException | None) -> bool:
    """Whether the disk was full, or has failed: the statement has done nothing."""
    return error is not None and str(error).startswith(_FAULTS)


def _same_error(error: BaseException, seen: BaseException | None) -> bool:
    return type(error) is type(seen) and str(seen).startswith(str(error))
