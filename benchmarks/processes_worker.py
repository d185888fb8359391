"""One process of the comparison of processes: its tasks work side by side, and it prints times.

Arguments: the name of a peer, the file, how many tasks, how many times each, and for how many
seconds at the most. It says "ready", waits for a line, works, and prints JSON. With "wake" as the
name it says when it had its turn, for each line it reads.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from .peers.model import item
from .peers.peer import NAME
from .peers.sqlalchemy_async import OrmPeer, OursOrm, RecipeOrm, StockOrm, ours

PEERS: dict[str, type[OrmPeer]] = {each.name: each for each in (OursOrm, StockOrm, RecipeOrm)}


async def work(peer: OrmPeer, tasks: int, times: int, seconds: float) -> dict[str, Any]:
    """Each task changes one row and inserts one, so many times; when each of that was done."""
    ended: list[list[float]] = [[] for _ in range(tasks)]
    waits: list[float] = []
    done = {"change": 0, "insert": 0}
    faults: list[str] = []
    limit = time.monotonic() + seconds

    async def task(number: int) -> None:
        for kind in ("change", "insert") * times:
            began = time.monotonic()
            if began > limit:
                return
            try:
                await (peer.change(0) if kind == "change" else peer.insert(0))
            except Exception as error:
                faults.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
                continue
            now = time.monotonic()
            done[kind] += 1
            waits.append(now - began)
            ended[number].append(now)

    began = time.monotonic()
    await asyncio.gather(*map(task, range(tasks)))
    return {
        "began": began,
        "over": time.monotonic(),
        "ended": ended,
        "waits": waits,
        "done": done,
        "errors": len(faults),
        "fault": faults[0] if faults else "",
    }


async def main(name: str, file: str, tasks: int, times: int, seconds: float) -> None:
    peer = PEERS[name](Path(file))
    await peer.get(0)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await work(peer, tasks, times, seconds)), flush=True)
    await peer.stop()


async def wake(file: str) -> None:
    """Write once for each line; the next line is read when the write before it is over."""
    engine = ours(f"sqlite+aiosqlite:///{file}")
    statement = insert(item).values(n=0, name=NAME)
    async with engine.begin() as connection:
        await connection.execute(statement)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        async with engine.begin() as connection:
            await connection.execute(statement)
            print(time.monotonic(), flush=True)
    await engine.dispose()


if __name__ == "__main__":
    if sys.argv[1] == "wake":
        asyncio.run(wake(sys.argv[2]))
    else:
        given = sys.argv[1:]
        asyncio.run(main(given[0], given[1], int(given[2]), int(given[3]), float(given[4])))
