"""Libraries that are loaded before the C library's own, to watch what is done to files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc")
needs_shim = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux",
    reason="needs a C compiler, and Linux for LD_PRELOAD and /proc",
)


def build(name: str, folder: Path) -> str:
    """The library made of ``shim/NAME.c``, for LD_PRELOAD."""
    source = Path(__file__).parent / "shim" / f"{name}.c"
    made = folder / f"{name}.so"
    flags = ["-O1", "-Wall", "-Werror", "-fPIC", "-shared"]
    subprocess.run([str(COMPILER), *flags, source, "-o", made, "-ldl"], check=True)
    return str(made)
