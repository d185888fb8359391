"""docs/howto/observe.md: its programs, and its live page on a real server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cancelling import PATIENCE, assert_free
from folders import ROOT
from test_readme import blocks, run_page

PAGE = ROOT / "docs" / "howto" / "observe.md"


def test_the_blocks(tmp_path: Path) -> None:
    """The first program prints each count; the others can be defined."""
    assert run_page(PAGE, tmp_path).split() == ["0", "1", "2"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The live page, served by uvicorn as the page says."""
    (live,) = (block for _, _, block in blocks(PAGE) if block.startswith("# live.py"))
    (tmp_path / "live.py").write_text(live)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        os.set_inheritable(listening.fileno(), True)
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "uvicorn", "live:app"),
                *("--fd", str(listening.fileno()), "--timeout-graceful-shutdown", "1"),
            ],
            cwd=tmp_path,
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )
    yield process, port
    process.kill()
    process.communicate()


def test_the_live_page(tmp_path: Path, server: tuple[subprocess.Popen[bytes], int]) -> None:
    """A client gets each state, by whomever it was committed; the server ends in time."""
    process, port = server
    with ExitStack() as open_ones:

        def request(method: str, path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            open_ones.callback(connection.close)
            connection.request(method, path)
            return open_ones.enter_context(connection.getresponse())

        first, second = request("GET", "/orders/live"), request("GET", "/orders/live")
        assert items(first) == items(second) == []
        assert request("POST", "/orders?item=tea").status == 201
        assert items(first) == items(second) == ["tea"]
        second.close()
        with closing(sqlite3.connect(tmp_path / "orders.db", isolation_level=None)) as outside:
            outside.execute("INSERT INTO orders (item) VALUES ('milk')")
        assert items(first) == ["tea", "milk"]
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE)
    assert b"Application shutdown complete" in told
    assert_free(tmp_path / "orders.db")


def items(stream: http.client.HTTPResponse) -> list[str]:
    """The next event of a stream."""
    line = b""
    while not line.startswith(b"data: "):
        line = stream.readline()
        assert line
    found: list[str] = json.loads(line[len("data: ") :])
    return found
