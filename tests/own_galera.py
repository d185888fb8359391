"""A Galera cluster of the tests' own: three MariaDB in a folder, on free ports of this machine.

Each may be killed and started again. https://mariadb.com/kb/en/galera-cluster/
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from server_databases import required
from sqlalchemy.engine import URL

PROVIDERS = "/usr/lib/galera/libgalera_smm.so", "/usr/lib*/galera*/libgalera_smm.so"
PATIENCE = 90
"""Seconds after which a node that has not come is given up."""
# Nothing here has to survive a power cut.
QUICK = (
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=24M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-log-bin",
)


class Node:
    """One server of the cluster."""

    def __init__(self, folder: str, number: int, provider: str) -> None:
        self.folder = os.path.join(folder, f"node{number}")
        self.number = number
        self.provider = provider
        self.port, self.group, self.transfer, self.copying = free_ports(4)
        self.process: subprocess.Popen[bytes] | None = None
        self.socket = f"{self.folder}.sock"
        self.log = f"{self.folder}.log"

    def url(self, driver: str = "asyncmy", database: str = "test") -> str:
        """Where a database of it is."""
        return URL.create(
            f"mysql+{driver}", "root", host="127.0.0.1", port=self.port, database=database
        ).render_as_string()

    def _options(self, members: Sequence[Node]) -> list[str]:
        # The first members are asked; the node itself may be among them.
        others = ",".join(f"127.0.0.1:{each.group}" for each in members)
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{self.group}",
            "ist.recv_addr": f"127.0.0.1:{self.transfer}",
            "gcache.size": "32M",
            # A node that was killed is missed sooner than after five seconds, but one that only
            # gets no processor for a while is not.
            "evs.keepalive_period": "PT0.3S",
            "evs.inactive_check_period": "PT0.3S",
            "evs.suspect_timeout": "PT2.5S",
            "evs.inactive_timeout": "PT8S",
        }
        return [
            "--no-defaults",
            *QUICK,
            f"--datadir={self.folder}",
            f"--port={self.port}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder}.pid",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--wsrep-on=ON",
            f"--wsrep-provider={self.provider}",
            f"--wsrep-provider-options={';'.join(f'{k}={v}' for k, v in provider.items())}",
            f"--wsrep-cluster-address=gcomm://{others}",
            "--wsrep-cluster-name=qsession",
            f"--wsrep-node-name=node{self.number}",
            f"--wsrep-node-address=127.0.0.1:{self.group}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address=127.0.0.1:{self.copying}",
            "--wsrep-slave-threads=2",
        ]

    def remember(self, members: Sequence[Node]) -> None:
        """Let it believe that it has been in a view with these, all of which went down at once.

        https://galeracluster.com/library/documentation/pc-recovery.html
        """
        names = [f"0000000{each.number}-0000-11ee-8000-000000000000" for each in members]
        mine = names[members.index(self)]
        view = [
            f"view_id: 3 {names[0]} 3",
            "bootstrap: 0",
            *(f"member: {each} 0" for each in names),
        ]
        path = os.path.join(self.folder, "gvwstate.dat")
        with open(path, "w") as file:
            file.write("\n".join([f"my_uuid: {mine}", "#vwbeg", *view, "#vwend", ""]))
        if user := _user():
            shutil.chown(path, user["user"], user["group"])

    def launch(self, members: Sequence[Node], *more: str) -> None:
        """Start its process; `await_ready` waits for it."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [shutil.which("mariadbd") or "/usr/sbin/mariadbd", *self._options(members), *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **_user(),
            )

    def await_ready(self) -> None:
        """Wait until it takes statements, as a member of the cluster."""
        until = time.monotonic() + PATIENCE
        while "wsrep_ready\tON" not in self.tell("SHOW STATUS LIKE 'wsrep_ready'", check=False):
            assert self.process is not None
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < until, self.told()
            time.sleep(0.05)

    def told(self) -> str:
        """The end of its log."""
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-60:])

    def kill(self) -> None:
        """End it at once, as if the machine were switched off."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # also a copy that is under way
        self.process.wait(30)

    def freeze(self) -> None:
        """Let it hang, and wait until each of its threads does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)
        until = time.monotonic() + PATIENCE
        while not all(state == "T" for state in self._states()):
            assert time.monotonic() < until
            time.sleep(0.001)

    def _states(self) -> list[str]:
        assert self.process is not None
        found = []
        for path in glob.glob(f"/proc/{self.process.pid}/task/*/stat"):
            with suppress(OSError), open(path) as file:
                found.append(file.read().rpartition(")")[2].split()[0])
        return found

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End it in good order."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(PATIENCE)

    def recovered(self) -> str:
        """How far its files went when it was killed: ``uuid:seqno``."""
        log = f"{self.folder}.recovery"
        with suppress(FileNotFoundError):
            os.unlink(log)
        subprocess.run(
            [
                shutil.which("mariadbd") or "/usr/sbin/mariadbd",
                *self._options([]),
                "--wsrep-recover",
                f"--log-error={log}",
            ],
            check=False,
            timeout=PATIENCE,
            capture_output=True,
            **_user(),
        )
        with open(log, errors="replace") as file:
            text = file.read()
        found = re.findall(r"Recovered position: (\S+)", text)
        assert found, text
        return str(found[-1])

    def rejoin(self, members: Sequence[Node]) -> None:
        """Start it again after it was killed, as galera_recovery does, and wait until it is ready.

        It gets what it has missed from the memory of another one, which goes on working.
        """
        self.launch(members, f"--wsrep-start-position={self.recovered()}")
        self.await_ready()

    def tell(self, statement: str, check: bool = True) -> str:
        """Send a statement by the server's own client; what it answers, without headings."""
        done = subprocess.run(
            ["mariadb", "--no-defaults", "-NB", "-u", "root", "-S", self.socket, "-e", statement],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout.strip()


def _user() -> dict[str, Any]:
    """Who runs the servers: the copies between them do not work as root."""
    return {"user": "mysql", "group": "mysql", "extra_groups": []} if os.geteuid() == 0 else {}


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class OwnGalera:
    """Three nodes."""

    def __init__(self, folder: str, provider: str) -> None:
        self.folder = folder
        self.nodes = [Node(folder, number, provider) for number in (1, 2, 3)]

    def start(self) -> None:
        """Make the files of one node, start it, and let the others copy them."""
        first, *others = self.nodes
        install = [
            "mariadb-install-db",
            "--no-defaults",
            *QUICK,
            f"--datadir={first.folder}",
            "--auth-root-authentication-method=normal",
        ]
        done = subprocess.run(
            install, capture_output=True, text=True, check=False, timeout=PATIENCE, **_user()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # A position in the history of the cluster is written down with the first start. Nodes with
        # the same files and position, that were in one view, need nothing from one another.
        first.launch(self.nodes, "--wsrep-new-cluster")
        first.await_ready()
        first.end()
        for each in others:
            subprocess.run(["cp", "-a", first.folder, each.folder], check=True)
        for each in self.nodes:
            each.remember(self.nodes)
            each.launch(self.nodes)
        for each in self.nodes:
            each.await_ready()

    def stop(self) -> None:
        """End all at once."""
        for each in self.nodes:
            if each.process is not None:
                each.kill()


@contextmanager
def own_galera() -> Iterator[OwnGalera]:
    """A running cluster, stopped and removed afterwards."""
    found = [path for pattern in PROVIDERS for path in glob.glob(pattern)]
    if not found or not shutil.which("mariadb-install-db"):
        told = "no Galera here. To have it: apt install galera-4 mariadb-server"
        if required():
            pytest.fail(told)
        pytest.skip(told)
    folder = tempfile.mkdtemp(prefix="qsession-galera-")
    if user := _user():
        shutil.chown(folder, user["user"], user["group"])
    cluster = OwnGalera(folder, found[0])
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
