"""A PgBouncer of the tests' own, in transaction mode, in a folder of its own on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server_databases import required
from sqlalchemy.engine import URL

SETTINGS = """
[databases]
* = host={host} port={server} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
server_round_robin = 1
logfile = {folder}/log
pidfile = {folder}/pid
"""
"""Each transaction gets the connection that was longest idle: seldom the one before."""


@contextmanager
def own_pgbouncer(server: URL, connections: int = 3) -> Iterator[URL]:
    """The URL of a running one, before a server. It refuses to run as root."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        told = "no pgbouncer here. To have one: apt-get install pgbouncer"
        if required():
            pytest.fail(told)
        pytest.skip(told)
    folder = tempfile.mkdtemp(prefix="qsession-pgbouncer-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = os.path.join(folder, "pgbouncer.ini")
    place = {"host": server.host, "server": server.port, "user": server.username, "port": port}
    with open(file, "w") as ini:
        ini.write(SETTINGS.format(**place, folder=folder, connections=connections))
    user = []
    if os.geteuid() == 0:
        user = ["-u", "postgres"]
        for each in (folder, file):
            shutil.chown(each, "postgres")
    process = subprocess.Popen(
        [program, *user, file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(process, port)
        yield server.set(host="127.0.0.1", port=port)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it accepts connections."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < deadline, "pgbouncer does not answer"
            time.sleep(0.01)
