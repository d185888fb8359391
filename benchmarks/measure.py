"""One measured run: a peer does one kind of work a number of times."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .peers.peer import NAME, PAGE, WRITES, Peer, TaskPeer, ThreadPeer, Work, prepare, written

EXPECTED = {"get": NAME, "list": PAGE, "insert": None, "change": None}


@dataclass
class Sample:
    """What one run measured."""

    peer: str
    way: str
    work: str
    tasks: int
    operations: int = 0
    """Those that succeeded."""
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time, of all threads."""
    errors: int = 0
    """Those that raised."""
    lost: int = 0
    """Those that were acknowledged and are not in the file."""
    fault: str = ""
    """The first error."""


@dataclass
class _Count:
    """Which operation is next, and how they ended."""

    limit: int
    seconds: float
    next: int = 0
    done: int = 0
    errors: int = 0
    fault: str = ""
    results: set[Any] = field(default_factory=set)

    def __iter__(self) -> Iterator[int]:
        end = time.perf_counter() + self.seconds
        while self.next < self.limit and time.perf_counter() < end:
            self.next += 1
            yield self.next

    @contextmanager
    def watch(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.errors += 1
            self.fault = self.fault or f"{type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            self.done += 1


async def _in_tasks(operation: Callable[[int], Any], count: _Count, tasks: int) -> None:
    async def task() -> None:
        for i in count:
            with count.watch():
                count.results.add(await operation(i))

    await asyncio.gather(*(task() for _ in range(tasks)))


def _in_thread(operation: Callable[[int], Any], count: _Count) -> None:
    for i in count:
        with count.watch():
            count.results.add(operation(i))


def _in_threads(operation: Callable[[int], Any], count: _Count, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for each in [pool.submit(_in_thread, operation, count) for _ in range(threads)]:
            each.result()


def run(
    kind: type[Peer], work: Work, file: Path, *, operations: int, tasks: int, seconds: float
) -> Sample:
    """Let a peer do at most `operations` of `work` from `tasks` tasks, on a new file.

    No operation begins later than `seconds` after the first, so that slow peers do not take
    for ever. A fifth is done before the clock starts: pools fill and statements are cached.
    Raises AssertionError when an operation did not return what it should.
    """
    prepare(file, wal=kind.wal)
    peer = kind(file)
    warm = _Count(max(tasks, operations // 5), seconds / 2)
    count = _Count(operations, seconds)
    sample = Sample(kind.name, kind.way, work, tasks)
    operation = getattr(peer, work)
    if isinstance(peer, TaskPeer):
        asyncio.run(_run_tasks(peer, operation, warm, count, sample))
    else:
        assert isinstance(peer, ThreadPeer)
        work_off = partial(_in_threads, threads=tasks) if peer.threads else _in_thread
        peer.start()
        work_off(operation, warm)
        with _clock(sample):
            work_off(operation, count)
        peer.stop()
    sample.operations, sample.errors, sample.fault = count.done, count.errors, count.fault
    assert warm.results | count.results <= {EXPECTED[work]}, (kind, work, count.results)
    if work in WRITES:
        sample.lost = warm.done + count.done - written(file, work)
    return sample


async def _run_tasks(
    peer: TaskPeer, operation: Callable[[int], Any], warm: _Count, count: _Count, sample: Sample
) -> None:
    await peer.start()
    await _in_tasks(operation, warm, sample.tasks)
    with _clock(sample):
        await _in_tasks(operation, count, sample.tasks)
    await peer.stop()


@contextmanager
def _clock(sample: Sample) -> Iterator[None]:
    with settled():
        began, cpu = time.perf_counter(), time.process_time()
        yield
        sample.seconds, sample.cpu = time.perf_counter() - began, time.process_time() - cpu


@contextmanager
def settled() -> Iterator[None]:
    """Leave what exists by now out of the garbage collections in between.

    The modules of all peers together take 25 ms in each full one, which is nobody's own cost.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
