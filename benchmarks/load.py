"""Load: kinds of tasks that repeat an operation for some seconds, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

TICK = 0.001


@dataclass(frozen=True)
class Kind:
    """A number of tasks that do one kind of operation."""

    tasks: int
    operation: Callable[[int], Awaitable[object]]
    """It is told which one it is: 0, 1, and so on."""
    rate: float | None = None
    """Of them all in a second, spread evenly; None for as many as they can do."""


@dataclass
class Done:
    """What the tasks of one kind have done."""

    counts: list[int]
    """Operations of each task that ended in time without an error."""
    waits: list[float] = field(default_factory=list)
    """Seconds that each operation took."""
    errors: int = 0


async def load(kinds: dict[str, Kind], seconds: float) -> dict[str, Done]:
    """Let all tasks work side by side; none begins an operation after `seconds`."""
    began = time.perf_counter()
    end = began + seconds
    found = {name: Done([0] * kind.tasks) for name, kind in kinds.items()}

    async def task(kind: Kind, done: Done, number: int) -> None:
        for i in count(number, kind.tasks):
            if kind.rate is not None:
                await asyncio.sleep(began + i / kind.rate - time.perf_counter())
            before = time.perf_counter()
            if before >= end:
                return
            try:
                await kind.operation(i)
            except Exception:  # "database is locked" is part of what is measured
                done.errors += 1
                continue
            now = time.perf_counter()
            done.waits.append(now - before)
            done.counts[number] += now < end

    await asyncio.gather(
        *(
            task(kind, found[name], number)
            for name, kind in kinds.items()
            for number in range(kind.tasks)
        )
    )
    return found


@asynccontextmanager
async def lateness() -> AsyncIterator[list[float]]:
    """By how many seconds sleeps of 1 ms last longer, one after the other, in the meantime."""
    late: list[float] = []

    async def sample() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(max(0.0, time.perf_counter() - before - TICK))

    sampler = asyncio.create_task(sample())
    await asyncio.sleep(TICK)
    try:
        yield late
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(TICK)  # a stop that has just ended is seen
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
