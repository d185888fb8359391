"""What ``import qsession`` costs beside the part of SQLAlchemy that it needs.

In processor time, which other programs disturb least, and with compiled files, as an installed
package has them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import qsession

from .setup import Setup
from .summary import Report, Row, Table, at_most, median, ratio, select

TITLE = "Import time"
ROUNDS = 9
GOAL = 1.15
MODULES = ("sqlalchemy.ext.asyncio", "qsession")
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
began = time.process_time()
import {module}
print(time.process_time() - began)
"""


def measure(setup: Setup) -> Iterator[Row]:
    """Fresh processes, the two modules in turn. The first round compiles."""
    top = str(Path(qsession.__file__).parent.parent)
    with tempfile.TemporaryDirectory() as compiled:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        for number in range(setup.scaled(ROUNDS) + 1):
            for module in MODULES:
                command = [sys.executable, "-c", PROGRAM.format(module=module), top]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=env
                )
                if number:
                    yield {"round": number, "module": module, "seconds": float(done.stdout)}


def report(rows: list[Row]) -> Report:
    table = Table("Milliseconds of processor time", ["", "median"])
    for module in MODULES:
        ms = median(row["seconds"] for row in select(rows, module=module)) * 1000
        table.rows.append([f"`import {module}`", f"{ms:.0f}"])
    theirs, ours = (select(rows, module=module) for module in MODULES)
    cost = ratio(ours, theirs, lambda row: float(row["seconds"]))
    return Report([table], goals=[at_most("import qsession", GOAL, cost)])
