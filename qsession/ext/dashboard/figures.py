"""Figures: what is shown of a database, from samples of what the engines on it have told."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qsession.commands.engines import in_words
from qsession.statistics import Histogram

Key = tuple[int, int]
"""A process, and the number of an engine in it."""
SHOWN = 20
"""Waiters, and processes beyond this one, that are shown."""
_COUNTERS = ("commits", "syncs", "conflicts", "timeouts", "taken_away", "validations")


@dataclass(frozen=True)
class Sample:
    """What the engines on a database have told at one moment."""

    at: float
    """By ``time.monotonic()``."""
    engines: dict[Key, dict[str, Any]]
    locks: tuple[int, ...] = ()
    """The processes that hold SQLite's write lock."""


def figures(samples: Sequence[Sample], program: Callable[[int], str]) -> dict[str, Any]:
    """The newest sample in figures. Rates are since the one before, waits since the oldest."""
    now = samples[-1]
    pids = list(dict.fromkeys(pid for pid, _ in now.engines))
    foreign = [pid for pid in now.locks if pid not in pids]
    engines = list(now.engines.values())
    waits = total([waits_of(samples, key) for key in now.engines])
    longest = max((each["waits"]["maximum"] for each in engines), default=0.0)
    line = sorted(
        ({"pid": key[0], **each} for key, told in now.engines.items() for each in told["line"]),
        key=lambda each: -float(each["waited"]),
    )
    return {
        "waiting": sum(each["waiting"] for each in engines),
        "commits_per_second": rate(samples, list(now.engines), "commits"),
        "syncs_per_second": rate(samples, list(now.engines), "syncs"),
        "waits": {
            "seconds": now.at - samples[0].at if len(samples) > 1 else None,
            "count": waits.count,
            "p50": waits.quantile(0.5),
            "p95": waits.quantile(0.95),
            "p99": waits.quantile(0.99),
            "longest": longest,
        },
        "connections": {
            "open": sum(each["size"] for each in engines),
            "in_use": sum(each["in_use"] for each in engines),
        },
        "totals": {name: sum(each[name] for each in engines) for name in _COUNTERS},
        "holders": holders(now, foreign),
        "line": line[:SHOWN],
        "processes": [
            *({"pid": pid, "program": program(pid), "foreign": True} for pid in foreign[:SHOWN]),
            *(_process(samples, pid, foreign, program) for pid in pids[:SHOWN]),
        ],
    }


def holders(now: Sample, foreign: Sequence[int]) -> list[dict[str, Any]]:
    """Who holds a ticket; first the one that writes, or whose turn it is on the file.

    ``waits_for`` is ``process`` for one that waits for the turn of its process on the file,
    ``lock`` for one that waits for SQLite's lock, held by a program without qsession or by
    a process whose turn has stalled; and otherwise None.
    """
    found = []
    for (pid, _), told in now.engines.items():
        holder, turn = told["holder"], told["turn"]
        if holder is not None:
            goes_on = turn == "idle" and not holder["wrote"]  # without the turn, which has stalled
            others = foreign if turn == "holds" else [each for each in now.locks if each != pid]
            lock = "lock" if others and (turn == "holds" or goes_on) else None
            waits_for = "process" if turn == "waits" else lock
            found.append({"pid": pid, "waits_for": waits_for, **holder})
    found.sort(
        key=lambda each: (each["waits_for"] == "process", not each["wrote"], -float(each["held"]))
    )
    return found[:SHOWN]


def rate(samples: Sequence[Sample], keys: Sequence[Key], counter: str) -> float | None:
    """How fast a counter of some engines has grown since the last sample; None for the first."""
    if len(samples) < 2:
        return None
    before, now = samples[-2:]
    grown = sum(
        max(0, now.engines[key][counter] - before.engines[key][counter])
        for key in keys
        if key in before.engines
    )
    return float(grown / max(now.at - before.at, 0.001))


def waits_of(samples: Sequence[Sample], key: Key) -> Histogram:
    """The waits of an engine since the oldest sample without a new start of the engine in between.

    With one sample: all waits since the engine was made.
    """
    told = [histogram(each.engines[key]) for each in samples if key in each.engines]
    for older, newer in pairwise(told):
        if newer.count < older.count or newer.bounds != older.bounds:
            return told[-1]
    first, last = told[0], told[-1]
    if len(samples) > 1 and samples[0].engines.get(key) is not None:
        return last.since(first)
    return last


def histogram(told: dict[str, Any]) -> Histogram:
    """The waits that an engine has told of."""
    waits = told["waits"]
    return Histogram(
        tuple(waits["bounds"]), tuple(waits["counts"]), waits["total"], waits["maximum"]
    )


def total(parts: Sequence[Histogram]) -> Histogram:
    """The sum of histograms. Those with other buckets, of another version, are left out."""
    if not parts:
        return Histogram((), (0,), 0.0, 0.0)
    same = [each for each in parts if each.bounds == parts[0].bounds]
    counts = tuple(map(sum, zip(*(each.counts for each in same), strict=True)))
    longest = max(each.maximum for each in same)
    return Histogram(parts[0].bounds, counts, sum(each.total for each in same), longest)


def _process(
    samples: Sequence[Sample], pid: int, foreign: list[int], program: Callable[[int], str]
) -> dict[str, Any]:
    keys = [key for key in samples[-1].engines if key[0] == pid]
    engines = [samples[-1].engines[key] for key in keys]
    waits = total([waits_of(samples, key) for key in keys])
    return {
        "pid": pid,
        "program": program(pid),
        "foreign": False,
        "here": pid == os.getpid(),
        "waiting": sum(each["waiting"] for each in engines),
        "commits_per_second": rate(samples, keys, "commits"),
        "p99": waits.quantile(0.99) if waits.count else None,
        "does": [in_words(each, foreign) for each in engines],
    }
