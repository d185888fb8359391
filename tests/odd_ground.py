"""Cases that need a process of their own: no room, no rights, odd file systems."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from folders import TESTS


def run(case: str, path: Path) -> Any:
    """What ``case`` of ``odd_child.py`` saw on ``path``, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-B", TESTS / "odd_child.py", case, path],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
