"""A PostgreSQL of the tests' own, in a folder of its own on a free port, to be stopped at will.

It can have standbys, which stream from it.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil
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

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs, and return what it says; fails with that."""
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
        return done.stdout

    @property
    def data(self) -> str:
        """The folder of its files."""
        return os.path.join(self.folder, "data")

    def create(self) -> None:
        """Make its files."""
        if self.user:
            shutil.chown(self.folder, "postgres")
        options = ["-U", self.name, "--auth=trust", "--no-sync", "-E", "UTF8"]
        self.run("initdb", "-D", self.data, *options)

    def copy_of(self, primary: OwnPostgresql) -> None:
        """Make its files from those of a running server, as its standby."""
        if self.user:
            shutil.chown(self.folder, "postgres")
        where = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", primary.name]
        self.run("pg_basebackup", *where, "-D", self.data, "-R", "-X", "stream", "-c", "fast", "-N")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        log = os.path.join(self.folder, "log")
        self.run("pg_ctl", "start", "-w", "-D", self.data, "-l", log, "-o", options)

    def stop(self, mode: str) -> None:
        """Stop it: ``fast`` tells its clients, ``immediate`` is a crash."""
        self.run("pg_ctl", "stop", "-w", "-m", mode, "-D", self.data)

    def processes(self) -> list[psutil.Process]:
        """Its main process, and those of its connections."""
        with open(os.path.join(self.data, "postmaster.pid")) as file:
            main = psutil.Process(int(file.readline()))
        return [main, *main.children(recursive=True)]

    def signal(self, number: int) -> None:
        """Send a signal to all its processes: SIGKILL is a crash, SIGSTOP makes it hang."""
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def kill(self) -> None:
        """End all its processes at once, as if the machine were switched off."""
        processes = self.processes()
        self.signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self.run("pg_ctl", "promote", "-w", "-D", self.data)

    def tell(self, *statements: str) -> str:
        """Send statements, each by itself; what the last one answers."""
        answer = ""
        for each in statements:
            options = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.name, "-d", "postgres"]
            answer = self.run("psql", "-X", "-A", "-t", "-q", *options, "-c", each)
        return answer.strip()


@contextmanager
def own_postgresql() -> Iterator[OwnPostgresql]:
    """A running server, stopped and removed afterwards."""
    with _server() as server:
        server.create()
        server.start()
        yield server


@contextmanager
def own_standbys(primary: OwnPostgresql, number: int) -> Iterator[list[OwnPostgresql]]:
    """Running standbys of a server, which stream from it."""
    with ExitStack() as stack:
        standbys = [stack.enter_context(_server()) for _ in range(number)]
        for each in standbys:
            each.copy_of(primary)
            each.start()
        yield standbys


@contextmanager
def _server() -> Iterator[OwnPostgresql]:
    """A server without files, stopped and removed afterwards."""
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
        yield server
    finally:
        if os.path.exists(os.path.join(server.data, "postmaster.pid")):
            with suppress(psutil.NoSuchProcess):
                server.signal(signal.SIGCONT)
                server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
