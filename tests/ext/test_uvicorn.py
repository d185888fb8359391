"""A real server with several workers on one file, real clients, and clients that die."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from cancelling import rows
from serving import STUCK, serving

from qsession.testing import assert_free

COMMAND = ("uvicorn", "--workers", "3", "--fd", "{fd}", "fastapi_app:app")
CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("POST", sys.argv[2])
connection.getresponse()
"""


def ask(port: int, method: str, where: str) -> tuple[int, object]:
    """Status and body of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=STUCK)) as connection:
        connection.request(method, where)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def hang_up(port: int) -> None:
    """Send a request and reset the connection, wherever the server is with it."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /hits/4 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def kill_in_the_middle(port: int, folder: Path, name: str) -> None:
    """A client that is killed when its request has written, and has not committed."""
    words = [sys.executable, "-c", CLIENT, str(port), f"/hold/{name}"]
    with subprocess.Popen(words) as client:
        deadline = time.monotonic() + STUCK
        while not (folder / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        client.kill()


def test_what_was_acknowledged_is_in_the_file(tmp_path):
    """Three workers and sixteen clients count up, beside clients that die in the midst of it."""
    with serving(COMMAND, tmp_path) as port, ThreadPoolExecutor(16) as threads:
        assert ask(port, "GET", "/hits/1") == (200, 0)
        dying = [
            threads.submit(kill_in_the_middle, port, tmp_path, f"held-{number}")
            for number in range(4)
        ]
        writes = [threads.submit(ask, port, "POST", "/hits/1") for _ in range(200)]
        gone = [threads.submit(hang_up, port) for _ in range(50)]
        writes += [threads.submit(ask, port, "POST", "/auto/2") for _ in range(200)]
        reads = [threads.submit(ask, port, "GET", "/hits/1") for _ in range(100)]
        answers = [each.result() for each in writes]
        assert {each.result()[0] for each in reads} == {200}
        for each in dying + gone:
            each.result()
    assert {status for status, _ in answers} == {200}
    told = [body for _, body in answers]
    assert sorted(each["count"] for each in told[:200]) == list(range(1, 201))
    assert sorted(each["count"] for each in told[200:]) == list(range(1, 201))
    assert len({each["pid"] for each in told}) > 1
    found = dict(rows(tmp_path / "app.db", "SELECT id, count FROM hits"))
    assert (found[1], found[2], found[3]) == (200, 200, 0)
    assert 0 <= found[4] <= 50
    assert_free(tmp_path / "app.db")


def until_the_end(port: int, answered: threading.Event) -> tuple[int, int]:
    """Ask until the server is gone: how many answers were 200, and how many questions had none."""
    good = 0
    while True:
        try:
            status, _ = ask(port, "POST", "/hits/1")
        except ConnectionRefusedError:
            return good, 0
        except (OSError, http.client.HTTPException):
            return good, 1
        assert status in (200, 503)
        good += status == 200
        answered.set()


def test_the_end_in_the_midst_of_it(tmp_path):
    """SIGTERM while sixteen clients count up: no answer without its change in the file."""
    answered = [threading.Event() for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        with serving(COMMAND, tmp_path) as port:
            asking = [threads.submit(until_the_end, port, each) for each in answered]
            for each in answered:
                assert each.wait(STUCK)
        told = [each.result() for each in asking]
    good, unknown = (sum(each) for each in zip(*told, strict=True))
    ((count,),) = rows(tmp_path / "app.db", "SELECT count FROM hits WHERE id = 1")
    assert good <= count <= good + unknown
    assert_free(tmp_path / "app.db")
