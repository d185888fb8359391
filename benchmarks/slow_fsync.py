"""The writes again, on a disk whose fsync takes 2 ms more: the disk of a cloud machine.

The delay is made by a small library that is built with ``cc`` and loaded before libc's own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from .child import command, environment
from .machine import fsync_ms
from .peers.all import installed
from .peers.peer import Work
from .setup import Setup
from .summary import Report, Row
from .throughput import rounds, summarise

TITLE = "Writes with fsync 2 ms slower"
OPERATIONS: dict[Work, int] = {"insert": 400, "change": 400}
GOALS: dict[str, tuple[float, float]] = {"insert": (20, 6), "change": (20, 6)}
SECONDS = 0.5
DELAY_MS = 2.0


def build(directory: Path) -> Path | None:
    """The library for LD_PRELOAD; None where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    shim = directory / "slow_fsync.so"
    source = Path(__file__).with_name("slow_fsync.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    return shim


def measure(setup: Setup) -> Iterator[Row]:
    """The rounds of `throughput` in a child process that has the slow fsync."""
    shim = build(setup.directory)
    if shim is None:
        setup.say("left out: a slower fsync needs Linux and a C compiler called cc")
        return
    text = json.dumps({**asdict(setup), "directory": str(setup.directory)})
    env = environment(LD_PRELOAD=str(shim), QSESSION_FSYNC_US=str(round(DELAY_MS * 1000)))
    with subprocess.Popen(
        command(__name__, text), env=env, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield json.loads(line)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)


def report(rows: list[Row]) -> Report:
    return summarise(rows, GOALS)


def main(text: str) -> None:
    """What the child does: print a row as JSON for each run."""
    settings = json.loads(text)
    setup = replace(Setup(Path(settings.pop("directory"))), **settings)
    if (slow := fsync_ms(setup.directory)) < DELAY_MS:
        raise SystemExit(f"fsync takes {slow:.2f} ms: the delay is not in force")
    peers, _ = installed()
    for row in rounds(setup, peers, OPERATIONS, SECONDS):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
