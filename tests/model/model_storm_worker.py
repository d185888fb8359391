"""One process of the storm: tasks in several event loops play drawn transactions on one engine.

Arguments: the file, the log, a seed, how many loops, tasks in each, transactions for each of them.
Every transaction is written to the log before its COMMIT is sent, and again when it has ended, so
that a judge knows what happened when this process is killed. A line on standard output says that
one more was acknowledged.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import pickle
import random
import signal
import sqlite3
import sys
import threading
import time
import warnings
from dataclasses import replace
from typing import Any

from playing import foreign_keys
from recorder import Record, Recorder
from script import Actor, Play, random_play
from simulation import places
from sqlalchemy import event

from qsession import QSessionError, UncommittedChangesWarning, create_async_engine

FOR_EVER = 1000.0
"""Seconds: who is stuck is to be found where it stands."""


class Hurry:
    """Stands in for the simulation: here the machine draws."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._called_off: set[asyncio.Task[Any]] = set()

    async def gate(self) -> None:
        for _ in range(self.chance.randrange(5)):
            await asyncio.sleep(0)

    def cancel_later(self, task: asyncio.Task[Any], steps: int) -> None:
        self._called_off.discard(task)
        self._count_down(task, steps * self.chance.randrange(1, 4))

    def call_off(self, task: asyncio.Task[Any]) -> None:
        self._called_off.add(task)

    def _count_down(self, task: asyncio.Task[Any], turns: int) -> None:
        if task in self._called_off or task.done():
            return
        if turns == 0:
            task.cancel()
            return
        asyncio.get_running_loop().call_soon(self._count_down, task, turns - 1)


class Log:
    """Where the transactions are told to the judge."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, record: Record) -> None:
        told = replace(record, error=_plain(record.error), dead=_plain(record.dead))
        told.statements = [replace(each, error=_plain(each.error)) for each in record.statements]
        data = pickle.dumps(told)
        os.write(self._file, len(data).to_bytes(8, "little") + data)
        if record.outcome == "committed" and record.writes:
            os.write(1, b"acknowledged\n")


def _plain(error: BaseException | None) -> BaseException | None:
    """An error of the same class that can be sent to another process."""
    if error is None or type(error) in vars(sqlite3).values():
        return error if error is None else type(error)(str(error))
    if isinstance(error, QSessionError):
        return type(error)(str(error))
    return asyncio.CancelledError(repr(error))


async def work(engine: Any, recorder: Recorder, name: str, tasks: int, times: int) -> None:
    actors = []
    for number in range(tasks):
        chance = random.Random(f"{name}.{number}")
        actor = Actor(Hurry(chance), recorder, engine, f"{name}.{number}")
        actors.append(actor.play(plays(chance, times)))
    await asyncio.gather(*actors)


def plays(chance: random.Random, times: int) -> list[Play]:
    return [random_play(chance) for _ in range(times)]


def tell_where(engine: Any) -> None:
    """On standard error: where everybody stands, for whoever finds this process stuck."""
    pool = engine.pool
    print(engine.stats(), pool.write_queue.queue, file=sys.stderr)
    for transaction in pool.admission:
        print(transaction, transaction.last_statement, transaction.work, file=sys.stderr)
    for task in [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]:
        if not task.done():
            print(task, *places(task.get_coro()), sep="\n    ", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGUSR1)


def main(path: str, log: str, seed: str, loops: int, tasks: int, times: int) -> None:
    warnings.simplefilter("ignore", UncommittedChangesWarning)
    chance = random.Random(seed)
    recorder = Recorder(time.monotonic_ns, Log(log).note)
    recorder.prefix = f"{seed}-"
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=chance.choice((1, 3, 5)),
        max_overflow=chance.choice((0, 5)),
        pool_timeout=FOR_EVER,
        queue_timeout=FOR_EVER,
        stall_after=chance.choice((0.0, 0.005, 0.25)),
        inline=chance.random() < 0.8,
    )
    event.listen(engine.sync_engine, "connect", foreign_keys)
    failed: list[BaseException] = []
    signal.signal(signal.SIGTERM, lambda *_: tell_where(engine))
    faulthandler.register(signal.SIGUSR1)

    def run(number: int) -> None:
        try:
            asyncio.run(work(engine, recorder, f"{seed}.{number}", tasks, times))
        except BaseException as error:
            failed.append(error)

    with recorder.installed():
        threads = [threading.Thread(target=run, args=(number,)) for number in range(loops)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        asyncio.run(engine.dispose())
    for error in failed:
        raise error


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))  # type: ignore[arg-type]
