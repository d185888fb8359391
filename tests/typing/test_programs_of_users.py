"""Types of the public API: programs of users are clean to mypy and pyright, at their strictest.

Lines with ``type: ignore`` are mistakes that the checkers have to find: an unused one is an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from folders import ROOT

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"


def checked(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """What a type checker says, from the folder of the programs."""
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_mypy() -> None:
    """``mypy --strict`` finds what is marked, and nothing else."""
    cache = ROOT / ".mypy_cache" / "programs"
    done = checked("mypy", "--cache-dir", cache, PROGRAMS, MYPYPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright() -> None:
    """So does pyright in its strict mode, which also refuses what it cannot tell the type of."""
    done = checked("pyright", "--pythonpath", sys.executable, "--outputjson")
    told = json.loads(done.stdout)
    errors = [f"{each['file']}: {each['message']}" for each in told["generalDiagnostics"]]
    assert errors == []
    assert told["summary"]["filesAnalyzed"] == len(list(PROGRAMS.glob("*.py")))
