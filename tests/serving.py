"""Web servers as processes of their own, on a socket of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from folders import TESTS

STUCK = 60
"""Seconds after which a server or an answer is taken for stuck."""


@contextmanager
def serving(command: Sequence[str], folder: Path, **environment: str) -> Iterator[int]:
    """A server, in a process group of its own; gives its port, and ends it by SIGTERM.

    ``{fd}`` in the command is the descriptor of its socket. What it said is in ``folder / "log"``,
    and holds no traceback.
    """
    log = folder / "log"
    with log.open("w") as writing, socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [sys.executable, "-m", *(each.format(fd=listening.fileno()) for each in command)],
            cwd=folder,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            stdout=writing,
            stderr=writing,
            env={
                **os.environ,
                **environment,
                "DATABASE": str(folder / "app.db"),
                "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            },
        )
        port = listening.getsockname()[1]
    try:
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(STUCK)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text()
    assert "Traceback" not in said, said
