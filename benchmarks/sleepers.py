"""Ten tasks that read, wait a second, and write: what do they take from ten short ones beside them?

They are what a handler is that asks another service in the middle of a transaction. Each task has
rows of its own, so nobody has to wait for anybody but the file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from .measure import settled
from .peers.model import Item
from .peers.peer import prepare, written
from .peers.sqlalchemy_async import OrmPeer, OursOrm, OursSession, RecipeOrm, StockOrm
from .setup import Setup
from .summary import Goal, Report, Row, Table, at_least, median, ratio, select, times, unique
from .throughput import OURS

TITLE = "Short writers beside ten that sleep for a second between reading and writing"
PEERS: tuple[type[OrmPeer], ...] = (OursOrm, OursSession, StockOrm, RecipeOrm)
SHORT = SLEEPERS = 10
SLEEP = 1.0
FIRST_ROW = 101
"""The sleepers' rows begin here; the short ones have others."""
PARTS = ("from the start", "afterwards")
"""Call sites are new at the start; afterwards it is known which of them wait."""
SECONDS = 1.5
GOAL = 0.9


def measure(setup: Setup) -> Iterator[Row]:
    """For each engine: the short ones alone, then a new file with the sleepers beside them."""
    for number in range(1, setup.rounds + 1):
        for kind in PEERS:
            for sleepers in (0, SLEEPERS):
                setup.say(f"round {number}: {kind.name}, {sleepers} sleepers", passing=True)
                file = setup.directory / "sleepers.db"
                prepare(file, wal=kind.wal)
                found = asyncio.run(_measure(kind(file), setup, sleepers))
                kept = written(file, "change")
                for part in PARTS:
                    yield {
                        "round": number,
                        "peer": kind.name,
                        "sleepers": sleepers,
                        "part": part,
                        "seconds": found.seconds,
                        "operations": found.short[part],
                        "slept": found.slept,
                        "errors": found.errors,
                        "lost": found.done - kept,
                    }


class _Found:
    """What was done so far."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """Of each part."""
        self.began = time.perf_counter()
        self.short = dict.fromkeys(PARTS, 0)
        self.slept = self.done = self.errors = 0

    def part(self) -> str | None:
        """Which part it is now; None when both are over."""
        number = int((time.perf_counter() - self.began) / self.seconds)
        return PARTS[number] if number < len(PARTS) else None


async def _measure(peer: OrmPeer, setup: Setup, sleepers: int) -> _Found:
    await peer.start()
    pause = SLEEP * min(1.0, setup.scale)
    found = _Found(max(0.1, SECONDS * setup.scale))

    async def repeat(operation: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well."""
        try:
            await operation()
        except Exception:
            found.errors += 1
            return False
        found.done += 1
        return True

    async def short(number: int) -> None:
        while found.part() is not None:
            if await repeat(lambda: peer.change(number)) and (part := found.part()):
                found.short[part] += 1

    async def sleeper(number: int) -> None:
        while found.part() is not None:
            if await repeat(lambda: _sleep_between(peer, FIRST_ROW + number, pause)):
                found.slept += 1

    with settled():
        found.began = time.perf_counter()
        await asyncio.gather(
            *(sleeper(number) for number in range(sleepers)),
            *(short(number) for number in range(SHORT)),
        )
    await peer.stop()
    return found


async def _sleep_between(peer: OrmPeer, row: int, pause: float) -> None:
    """Read a row, wait for something else, and write it."""
    async with peer.session() as session:
        found = await session.get_one(Item, row)
        await asyncio.sleep(pause)
        found.n += 1
        await session.commit()


def rate(row: Row) -> float:
    """Short transactions in a second."""
    return float(row["operations"] / row["seconds"])


def report(rows: list[Row]) -> Report:
    table = Table("Short read-modify-writes in a second", ["", "when"])
    table.head += ["alone", "beside sleepers", "kept", "slept and wrote", "errors", "lost"]
    out = Report([table])
    for peer in unique(row["peer"] for row in rows):
        for part in unique(row["part"] for row in rows):
            alone, beside = (
                select(rows, peer=peer, part=part, sleepers=each) for each in (0, SLEEPERS)
            )
            kept = ratio(beside, alone, rate)
            rates = [median(map(rate, each)) for each in (alone, beside)]
            last = part == PARTS[-1]
            counts = [sum(row[name] for row in beside) for name in ("slept", "errors", "lost")]
            table.rows.append(
                [
                    peer,
                    part,
                    *(f"{each:,.0f}" for each in rates),
                    times(kept),
                    *(f"{each:,}" if last else "" for each in counts),
                ]
            )
            if peer in OURS:
                what = f"{peer}: short writers beside sleepers to alone, {part}"
                out.goals.append(at_least(what, GOAL, kept))
        if peer in OURS:
            bad = counts[1] + counts[2]
            name = f"{peer}: errors and lost, beside sleepers"
            out.goals.append(Goal(name, "0", f"{bad}", bad == 0))
    return out
