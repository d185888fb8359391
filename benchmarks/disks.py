"""The disk as it is, and the same disk with a slower fsync: that of a cloud machine.

The delay is made by a small library that is built with ``cc`` and loaded before libc's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .child import command, environment, rows_of, setup_of, text_of
from .machine import fsync_ms
from .setup import Setup
from .summary import Row

DELAY_MS, LONG_DELAY_MS = 2.0, 5.0
HERE, SLOW = DISKS = ("this disk", f"fsync {DELAY_MS:g} ms slower")
SLOWER = f"fsync {LONG_DELAY_MS:g} ms slower"
_DELAYS = {HERE: 0.0, SLOW: DELAY_MS, SLOWER: LONG_DELAY_MS}
"""Milliseconds."""
_MICROSECONDS = "QSESSION_FSYNC_US"
"""What the library reads at each fsync."""


def build(directory: Path) -> Path | None:
    """The library for LD_PRELOAD; None where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    shim = directory / "disks.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    return shim


def with_disk(shim: Path | None, disk: str) -> dict[str, str]:
    """The environment of a child process on one of the disks."""
    if shim is None:
        return environment()
    return environment(**{"LD_PRELOAD": str(shim), _MICROSECONDS: _delay(disk)})


def change_to(disk: str) -> None:
    """Let this process, which was started with the library, go on with another disk."""
    os.environ[_MICROSECONDS] = _delay(disk)


def _delay(disk: str) -> str:
    return str(round(_DELAYS[disk] * 1000))


def rows_of_child(setup: Setup, module: str, shim: Path | None) -> Iterator[Row]:
    """Run `module` in a child process that can change its disk. It prints a row in each line."""
    yield from rows_of(command(module, text_of(setup)), with_disk(shim, HERE))


def setup_of_child(text: str) -> tuple[Setup, tuple[str, ...]]:
    """What the child was told, and which disks it has. It leaves if the delay has no effect."""
    setup = setup_of(text)
    if "LD_PRELOAD" not in os.environ:
        return setup, (HERE,)
    change_to(SLOW)
    if (slow := fsync_ms(setup.directory)) < DELAY_MS:
        raise SystemExit(f"fsync takes {slow:.2f} ms: the delay is not in force")
    change_to(HERE)
    return setup, DISKS
