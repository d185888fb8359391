"""What strangers tell `qsession who` and `qsession top`, at sockets with names like ours."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from sqlalchemy import text
from test_status import running
from typer.testing import CliRunner

from qsession import create_async_engine
from qsession.cli import app
from qsession.commands import engines
from qsession.sqlite.processes import status

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the sockets lie in a folder for this user alone"
)


CHILD = """
import asyncio, sys
from sqlalchemy import text
from qsession import create_async_engine

async def main(path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await engine.dispose()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
async def engine(tmp_path):
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with made.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    yield made
    await made.dispose()


@contextmanager
def answering(name, answer):
    """Somebody who answers at a socket with a name like ours, to as many as ask."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0qsession.{name}")
        listening.listen(8)

        def answer_all():
            with suppress(OSError):  # it is shut down
                while True:
                    asking, _ = listening.accept()
                    with asking:
                        asking.recv(100)
                        asking.sendall(answer)

        serving = threading.Thread(target=answer_all)
        serving.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()


ANSWERS = (
    b"[]",
    b"{}",
    b"1",
    b"[1]",
    b"{",
    b'[{"holder": null}]',
    b'[{"holder": {}, "turn": "idle", "waiting": 1, "readers": 0, "draining": false}]',
    b'[{"holder": null, "turn": 1, "waiting": "x", "readers": 0, "draining": false}]',
    b"\xff",
)


def test_answers_that_are_none(tmp_path):
    """Whoever answers at whatever name: `who` and `top` show those that tell them something."""
    path = tmp_path / "app.db"
    top = ["top", str(path), "--count", "1", "--interval", "0.05"]
    with running(CHILD, path) as child:
        for name in ("abc", "", "-1", "\u0661", "9" * 80):
            with answering(name, b"[]"):
                assert [each for each, _ in engines.engines_on(str(path))] == [child.pid]
        for answer in ANSWERS:
            with answering(1, answer):
                assert [each for each, _ in engines.engines_on(str(path))] == [child.pid]
                for command in (["who", str(path)], top):
                    shown = CliRunner().invoke(app, command)
                    assert shown.exit_code == 0, shown.output
                    assert str(child.pid) in shown.output


async def test_nobody_speaks_for_another_process(engine, tmp_path):
    """What is said at the socket of process 1 is told of the process that said it."""
    path = str(tmp_path / "app.db")
    ((pid, told),) = engines.engines_on(path)
    with answering(1, json.dumps(told).encode()):
        assert [each for each, _ in engines.engines_on(path)] == [pid] * 2 == [os.getpid()] * 2


async def test_other_users_are_not_believed(engine, tmp_path, monkeypatch):
    """Only this user, root, and the owner of the file."""
    path = str(tmp_path / "app.db")
    here = threading.get_ident()
    user = os.stat(path).st_uid

    def peer(_):
        return os.getpid(), user if threading.get_ident() == here else 0

    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(status, "peer_of", peer)
    assert len(list(engines.engines_on(path))) == 1
    user = 54321
    assert list(engines.engines_on(path)) == []


@pytest.mark.parametrize("kind", ["none", "mine", "open to all", "a link"])
async def test_sockets_in_a_folder(kind, engine, tmp_path, monkeypatch):
    """Where sockets have no namespace of their own: in a folder that nobody else can get into."""
    path = str(tmp_path / "app.db")
    folder = tmp_path / f"qsession-{os.getuid()}"
    if kind == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    monkeypatch.setattr(status, "ABSTRACT", False)
    monkeypatch.setattr(status, "_serving", None)
    monkeypatch.setattr(status.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if kind != "none":
        status.serve()
    expected = [os.getpid()] if kind == "mine" else []
    assert [pid for pid, _ in engines.engines_on(path)] == expected
