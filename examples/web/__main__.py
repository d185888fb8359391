"""Serve the shopping list with several worker processes on one file.

python -m examples.web [--file shopping.db] [--host 127.0.0.1] [--port 8000] [--workers 4]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import uvicorn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.web", description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("shopping.db"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=4)
    chosen = parser.parse_args()
    # The workers are new processes, and `qsession` finds its database in their environment.
    os.environ["QSESSION_URL"] = f"sqlite+aiosqlite:///{chosen.file.absolute()}?queue_timeout=5"
    uvicorn.run(
        "examples.web.app:app",
        host=chosen.host,
        port=chosen.port,
        workers=chosen.workers,
        timeout_graceful_shutdown=5,  # no client can keep it from ending
    )


if __name__ == "__main__":
    main()
