"""The syncer against a model: any order of commits, waits, cancellations, and ends of syncs.

Invariant: a commit is acknowledged only when an fsync that began after it, or a checkpoint, has
ended well. And whoever may not be left waiting gets a sync, or an answer.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from threads import PATIENCE

from qsession.errors import DurabilityError
from qsession.sqlite.durability import syncer as module
from qsession.sqlite.durability.syncer import Syncer, recover
from qsession.sqlite.files.filesystem import file_identity
from qsession.testing import HeldSync, held_disk


class Checkpoint:
    """A connection whose checkpoints end as told."""

    row_factory = None

    def __init__(self, busy: int) -> None:
        self.busy = busy

    def execute(self, sql: str) -> Checkpoint:
        return self

    def fetchone(self) -> tuple[int, int, int]:
        return self.busy, 0, 0


class Commits(RuleBasedStateMachine):
    """Commits are told apart by their numbers, which are in the order in which they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "GATHER", 3600.0)  # only what is asked for begins
        self.disk_end = held_disk()
        self.disk = self.disk_end.__enter__()
        self.loop = asyncio.new_event_loop()
        self.commits: list[int] = []
        self.durable: set[int] = set()
        self.waiting: dict[asyncio.Task[None], int] = {}
        self.pending: set[int] = set()
        """Numbers that the syncer was asked for, by those as well who were cancelled since."""
        self.urgent: set[int] = set()
        """Numbers that may not be left waiting."""
        self.running: HeldSync | None = None
        self.covered: set[int] = set()
        """Commits that had returned for certain when the sync that runs began."""

    @initialize()
    def make(self) -> None:
        path = Path(self.folder.name) / "a.db"
        path.write_bytes(b"pages")
        Path(f"{path}-wal").write_bytes(b"frames")
        identity = file_identity(str(path))
        assert identity is not None
        self.syncer = Syncer(str(path), identity)
        # From here on a sync has begun before, so that what can be gathered is.
        self.commit()
        self.wait(0, now=True)
        self.end(well=True)

    @rule()
    def commit(self) -> None:
        self.commits.append(self.syncer.committed())

    @precondition(lambda self: self.commits)
    @rule(which=st.integers(0, 3), now=st.booleans())
    def wait(self, which: int, *, now: bool) -> None:
        number = self.commits[-1 - which % len(self.commits)]
        task = self.loop.create_task(self.syncer.wait(number, now=now))
        self.waiting[task] = number
        if not self.syncer.failed:
            self.pending.add(number)
        if now:
            self.urgent.add(number)
        self.turn()

    @rule()
    def hurry(self) -> None:
        self.syncer.hurry()
        self.urgent |= set(self.commits)
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        task = list(self.waiting)[which % len(self.waiting)]
        task.cancel()
        self.turn()
        assert task not in self.waiting

    @precondition(lambda self: self.running is not None)
    @rule(well=st.sampled_from([True, True, True, False]))
    def end(self, *, well: bool) -> None:
        assert self.running is not None
        covered = self.covered
        # One more, so that somebody tells when the thread has taken note.
        self.wait(-1 - self.commits.index(max(covered)), now=False)
        sync, self.running = self.running, None
        if well:
            self.durable |= covered
            self.pending -= covered
            sync.end()
        else:
            self.pending.clear()
            sync.fail()
        due = [task for task, number in self.waiting.items() if not well or number in covered]
        self.loop.run_until_complete(asyncio.wait(due, timeout=PATIENCE))
        assert all(task.done() for task in due)
        assert self.syncer.failed is not well
        self.turn()

    @precondition(lambda self: self.syncer.failed)
    @rule(busy=st.integers(0, 1))
    def recover(self, busy: int) -> None:
        recover(Checkpoint(busy), self.syncer)  # type: ignore[arg-type]
        if not busy:
            self.durable |= set(self.commits)
        assert self.syncer.failed is bool(busy)

    @invariant()
    def nobody_is_acknowledged_too_early(self) -> None:
        self.turn()

    def turn(self) -> None:
        """Let the loop run; look who was answered, and wait for a sync that has to begin."""
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        for task in [each for each in self.waiting if each.done()]:
            number = self.waiting.pop(task)
            if task.cancelled():
                continue
            error = task.exception()
            assert isinstance(error, DurabilityError) or error is None, error
            assert error is not None or number in self.durable
        has_to_begin = self.urgent & self.pending - self.durable
        if self.running is None and has_to_begin and not self.syncer.failed:
            self.running = self.disk.next()
            self.covered = set(self.commits)

    def teardown(self) -> None:
        self.disk_end.__exit__(None, None, None)
        if hasattr(self, "syncer"):
            self.syncer.close()
        for task in self.waiting:
            task.cancel()
        if self.waiting:
            self.loop.run_until_complete(asyncio.wait(self.waiting))
        self.loop.close()
        self.patch.undo()
        self.folder.cleanup()


TestCommits = Commits.TestCase
TestCommits.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
