"""Several processes on one file: what is lost, who gets how much, and how much it is in all.

The same work is done by four processes and by one with as many tasks: each task changes one
row that all of them change, and inserts another, ten times. On this disk, and with a slower fsync.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from qsession.sqlite.processes.lock_files import LockFiles

from .child import command
from .disks import DISKS, HERE, SLOW, build, with_disk
from .peers.peer import prepare, written
from .peers.sqlalchemy_async import OursOrm, RecipeOrm, StockOrm
from .processes_worker import PEERS
from .setup import Setup
from .summary import Goal, Report, Row, Table, at_least, at_most, median, quantile, ratio
from .summary import select as pick

TITLE = "Several processes on one file"
PROCESSES = 4
TIMES = 10
ROUNDS = 3
SECONDS = 5.0
"""After which no operation is begun: the stock engine waits for a lock for as long each time."""
WAKES = 100
OURS, STOCK, RECIPE = OursOrm.name, StockOrm.name, RecipeOrm.name
KINDS = ((OURS, PROCESSES), (OURS, 1), (STOCK, PROCESSES), (RECIPE, PROCESSES))


def measure(setup: Setup) -> Iterator[Row]:
    """A row for each engine, number of processes and disk; and one for the wake-ups."""
    shim = build(setup.directory)
    if shim is None:
        setup.say("left out: a slower fsync needs Linux and a C compiler called cc")
    for number in range(1, min(ROUNDS, setup.rounds) + 1):
        for disk in DISKS if shim else (HERE,):
            for peer, processes in KINDS:
                setup.say(f"round {number}: {peer}, {processes} processes, {disk}", passing=True)
                tasks = setup.tasks * PROCESSES // processes
                found = _run(setup, peer, processes, tasks, shim if disk == SLOW else None)
                yield {
                    "round": number,
                    "kind": "work",
                    "disk": disk,
                    "peer": peer,
                    "processes": processes,
                    **found,
                }
        yield {"round": number, "kind": "wake", "waits": _wakes(setup)}


def _start(shim: Path | None, *arguments: str) -> subprocess.Popen[str]:
    module = f"{__package__}.processes_worker"
    return subprocess.Popen(
        command(module, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=with_disk(shim, SLOW),
    )


def _say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise subprocess.CalledProcessError(process.wait(), process.args)
    return line


def _run(setup: Setup, peer: str, processes: int, tasks: int, shim: Path | None) -> Row:
    file = setup.directory / "processes.db"
    prepare(file, wal=PEERS[peer].wal)
    arguments = (peer, str(file), str(tasks), str(setup.scaled(TIMES)), str(SECONDS))
    running = [_start(shim, *arguments) for _ in range(processes)]
    for each in running:
        _line(each)
    for each in running:
        _say(each)
    told = [json.loads(_line(each)) for each in running]
    for each in running:
        each.communicate()
    done = {kind: sum(each["done"][kind] for each in told) for kind in ("change", "insert")}
    seconds = max(each["over"] for each in told) - min(each["began"] for each in told)
    waits = list(chain.from_iterable(each["waits"] for each in told)) or [0.0]
    return {
        "operations": sum(done.values()),
        "seconds": seconds,
        "errors": sum(each["errors"] for each in told),
        "fault": next((each["fault"] for each in told if each["fault"]), ""),
        "lost": sum(done[kind] - written(file, kind) for kind in ("change", "insert")),
        "p50": median(waits),
        "p99": quantile(waits, 0.99),
        "longest": max(waits),
        **_fairness(told),
    }


def _fairness(told: list[dict[str, Any]]) -> dict[str, float]:
    """Of what each had done when the first task was through; 1 is fair, 1/n is one for all."""
    tasks = [ended for each in told for ended in each["ended"]]
    most = max(map(len, tasks))
    first = min(ended[-1] for ended in tasks if len(ended) == most) if most else 0.0
    counts = [[sum(at <= first for at in ended) for ended in each["ended"]] for each in told]
    return {
        "fair_processes": jain([sum(each) for each in counts]),
        "fair_tasks": jain(list(chain.from_iterable(counts))),
    }


def jain(shares: list[int]) -> float:
    """Jain's index of fairness."""
    squares = sum(each * each for each in shares)
    return float(sum(shares)) ** 2 / (len(shares) * squares) if squares else 0.0


def _wakes(setup: Setup) -> list[float]:
    """Seconds from the end of another process's turn to the end of a first statement."""
    file = setup.directory / "processes.db"
    prepare(file, wal=True)
    worker = _start(None, "wake", str(file))
    _line(worker)
    locks = LockFiles(str(file))
    found = []
    for _ in range(setup.scaled(WAKES)):
        locks.wait()
        _say(worker)
        while not locks.wanted():
            time.sleep(0.001)
        time.sleep(0.002)  # it has told the kernel by now that it waits
        let_go = time.monotonic()
        locks.unlock()
        found.append(float(_line(worker)) - let_go)
    worker.communicate()
    locks.close()
    return found


def rate(row: Row) -> float:
    """What was acknowledged, in a second."""
    return float(row["operations"] / row["seconds"])


def kept(row: Row) -> float:
    """What was acknowledged and is in the file, in a second."""
    return float((row["operations"] - row["lost"]) / row["seconds"])


def report(rows: list[Row]) -> Report:
    out = Report([])
    for disk in DISKS:
        mine = pick(rows, kind="work", disk=disk)
        if not mine:
            continue
        out.tables.append(_table(disk, mine))
        out.goals += _goals(disk, mine)
    waits = list(chain.from_iterable(row["waits"] for row in pick(rows, kind="wake")))
    wakes = Table("From the end of another process's turn to the first result, ms", [""])
    wakes.head += ["p50", "p99", "longest"]
    shown = (median(waits), quantile(waits, 0.99), max(waits))
    wakes.rows.append([OURS, *(f"{each * 1000:.2f}" for each in shown)])
    out.tables.append(wakes)
    return out


def _table(disk: str, rows: list[Row]) -> Table:
    table = Table(
        f"By number of processes, {disk}; Jain's index for fairness", ["", "commits/s", "kept/s"]
    )
    table.head += ["errors", "lost", "p50 ms", "p99 ms", "longest ms", "processes", "tasks"]
    for peer, number in KINDS:
        mine = pick(rows, peer=peer, processes=number)
        table.rows.append(
            [
                f"{peer}, {number}",
                *(f"{median(map(each, mine)):,.0f}" for each in (rate, kept)),
                *(f"{sum(row[name] for row in mine):,}" for name in ("errors", "lost")),
                *(
                    f"{median(row[name] for row in mine) * 1000:,.0f}"
                    for name in ("p50", "p99", "longest")
                ),
                *(
                    f"{median(row[name] for row in mine):.3f}"
                    for name in ("fair_processes", "fair_tasks")
                ),
            ]
        )
    return table


def _goals(disk: str, rows: list[Row]) -> list[Goal]:
    ours = pick(rows, peer=OURS, processes=PROCESSES)
    alone = pick(rows, peer=OURS, processes=1)
    bad = sum(row["errors"] + row["lost"] for row in ours)
    processes, tasks = (
        median(row[name] for row in ours) for name in ("fair_processes", "fair_tasks")
    )
    longest = median(row["longest"] / row["p50"] for row in ours)
    return [
        Goal(f"{disk}: errors and lost", "0", f"{bad}", bad == 0),
        Goal(f"{disk}: fair to processes", "≥ 0.98", f"{processes:.3f}", processes >= 0.98),
        Goal(f"{disk}: fair to tasks", "≥ 0.98", f"{tasks:.3f}", tasks >= 0.98),
        at_most(f"{disk}: longest wait to the median", 3, longest),
        at_least(f"{disk}: four processes to one", 1.5, ratio(ours, alone, rate)),
    ]
