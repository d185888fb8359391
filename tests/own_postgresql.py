"""A PostgreSQL of the tests' own, in a folder of its own on a free port, to be stopped at will."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server_databases import required


class OwnPostgresql:
    """A server with its files in one folder. PostgreSQL refuses to run as root."""

    def __init__(self, programs: str, folder: str) -> None:
        self.programs = programs
        self.folder = folder
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name = "postgres"

    def url(self, driver: str) -> str:
        """Where its database is."""
        return f"postgresql+{driver}://{self.name}@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs; fails with what it says."""
        done = subprocess.run(
            [*self.user, os.path.join(self.programs, program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout

    def create(self) -> None:
        """Make its files."""
        if self.user:
            shutil.chown(self.folder, "postgres")
        data = os.path.join(self.folder, "data")
        self.run("initdb", "-D", data, "-U", self.name, "--auth=trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        log = os.path.join(self.folder, "log")
        data = os.path.join(self.folder, "data")
        self.run("pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options)

    def stop(self, mode: str) -> None:
        """Stop it: ``fast`` tells its clients, ``immediate`` is a crash."""
        self.run("pg_ctl", "stop", "-w", "-m", mode, "-D", os.path.join(self.folder, "data"))


@contextmanager
def own_postgresql() -> Iterator[OwnPostgresql]:
    """A running server, stopped and removed afterwards."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [
        os.path.dirname(shutil.which("initdb") or "")
    ]
    if not os.path.exists(os.path.join(found[-1], "initdb")):
        told = "no initdb here. To have PostgreSQL: apt-get install postgresql"
        if required():
            pytest.fail(told)
        pytest.skip(told)
    folder = tempfile.mkdtemp(prefix="qsession-pg-")
    server = OwnPostgresql(found[-1], folder)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            if os.path.exists(os.path.join(folder, "data", "postmaster.pid")):
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
