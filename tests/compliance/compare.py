"""Run the suite on the stock driver and on qsession; list what passes on stock and not on ours."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
DRIVERS = {"stock": "sqlite+aiosqlite", "default": "sqlite+qsession"}


def outcomes(db: str, report: Path, arguments: list[str]) -> dict[str, str]:
    """Test name -> passed, failed or skipped, for one entry of [db] in setup.cfg."""
    command = [sys.executable, "-m", "pytest", str(HERE), "--db", db, "--tb=no"]
    subprocess.run(  # a failing test makes the exit status useless here
        [*command, f"--junitxml={report}", *arguments], check=False, stdout=subprocess.DEVNULL
    )
    result = {}
    for case in ElementTree.parse(report).iter("testcase"):
        suite = re.sub(r"_sqlite\+\w+$", "", case.get("classname", ""))
        children = {child.tag for child in case}
        verdict = "passed"
        if children & {"failure", "error"}:
            verdict = "failed"
        elif "skipped" in children:
            verdict = "skipped"
        result[f"{suite}::{case.get('name')}"] = verdict
    return result


def main(arguments: list[str]) -> int:
    """Arguments go to both pytest runs; the status is 1 if anything was lost."""
    with tempfile.TemporaryDirectory() as directory:
        found = {db: outcomes(db, Path(directory, f"{db}.xml"), arguments) for db in DRIVERS}
    for db, driver in DRIVERS.items():
        print(driver, dict(sorted(Counter(found[db].values()).items())))
    lost = {
        name: found["default"].get(name, "missing")
        for name, verdict in found["stock"].items()
        if verdict == "passed" and found["default"].get(name) != "passed"
    }
    for name, verdict in sorted(lost.items()):
        print(f"{verdict:8} {name}")
    print(f"{len(lost)} of the tests that pass on the stock driver do not pass on qsession")
    return 1 if lost or not found["stock"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
