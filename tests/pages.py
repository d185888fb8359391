"""Run the code of a page of the docs as one program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from folders import ROOT


async def ran(page: str, folder: Path, **env: str) -> str:
    """Run ``docs/howto/<page>`` in a fresh interpreter, in ``folder``. Returns what it printed."""
    runner, path = ROOT / "tests" / "docs" / "test_readme.py", ROOT / "docs" / "howto" / page
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", str(runner), str(path)],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
