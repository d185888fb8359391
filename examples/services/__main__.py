"""Start all services on one file, and start again those that die, until SIGTERM or Ctrl-C.

python -m examples.services [--file orders.db] [--port 8000] [--day 10]
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from examples.services.models import Order
from examples.services.stopping import Stop
from qsession import create_engine

SERVICES = ("api", "charging", "charging", "invoicing", "scheduler")


def start(name: str, listening: int) -> subprocess.Popen[bytes]:
    """Start a service. Ctrl-C does not reach it, as it is in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"examples.services.{name}"],
        pass_fds=[listening],
        start_new_session=True,
    )
    print(f"process {process.pid} is {name}", flush=True)
    return process


def supervise(listening: int, stop: Stop) -> None:
    """Keep a process for each service. At the end, tell all of them, and wait for them."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [start(name, listening) for name in SERVICES]
        while not stop.asked:
            for place, process in enumerate(processes):
                if process.poll() is not None:
                    print(f"process {process.pid} has ended ({process.returncode})", flush=True)
                    processes[place] = start(SERVICES[place], listening)
            time.sleep(0.5)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.services", description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("orders.db"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--day", type=float, default=10.0, help="how many seconds a day has")
    chosen = parser.parse_args()
    stop = Stop()
    url = f"sqlite+aiosqlite:///{chosen.file.absolute()}"
    engine = create_engine(url)
    Order.metadata.create_all(engine)
    engine.dispose()
    # The socket stays here: while the API is started again, clients wait for it.
    with socket.create_server(("127.0.0.1", chosen.port), backlog=1000) as listening:
        print("orders go to http://{}:{}/orders".format(*listening.getsockname()), flush=True)
        fd = listening.fileno()
        os.environ.update(QSESSION_URL=url, DAY=str(chosen.day), LISTENING=str(fd))
        supervise(fd, stop)


if __name__ == "__main__":
    main()
