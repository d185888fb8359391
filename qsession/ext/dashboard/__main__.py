"""``python -m qsession.ext.dashboard app.db``: the dashboard of a file, as a server of its own.

It asks the processes that have the file open, as ``qsession top`` does. It does not open the file.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import uvicorn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from qsession.ext.dashboard.access import is_loopback
from qsession.ext.dashboard.app import Dashboard
from qsession.sqlite.files.read_only import path_of

PASSWORD = "QSESSION_DASHBOARD_PASSWORD"  # noqa: S105 - the name of a variable


def main(arguments: list[str] | None = None) -> None:
    """Serve until Ctrl-C. Exit code 2: an argument makes no sense, or is not safe."""
    parser = argparse.ArgumentParser(
        prog="python -m qsession.ext.dashboard",
        description="Show in a browser who writes to a SQLite file, who waits, and how fast it "
        f"goes. A password in {PASSWORD} is asked for; without one, only this machine is served.",
    )
    parser.add_argument("database", nargs="+", help="a file or its URL")
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8321, help="the port (default: %(default)s)")
    given = parser.parse_args(arguments)
    password = os.environ.get(PASSWORD) or None
    if password is None and not is_private(given.host):
        parser.error(
            f"other machines could reach {given.host!r}: set a password in {PASSWORD}; or omit "
            "--host, and connect through a tunnel: ssh -L 8321:127.0.0.1:8321 THIS-MACHINE"
        )
    try:
        app = Dashboard(*map(file_of, given.database), password=password)
    except ValueError as error:
        parser.error(str(error))
    host = f"[{given.host}]" if ":" in given.host else given.host
    print(f"http://{host}:{given.port}/ - Ctrl-C stops it", file=sys.stderr)  # noqa: T201
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
    )


def _port(text: str) -> int:
    """The number of a port. The system would take others modulo 65536."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def is_private(host: str) -> bool:
    """Whether only this machine can reach what listens at ``host``."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)


def file_of(target: str) -> Path:
    """The file of a path or URL. Raises ``ValueError`` if there is none."""
    path = target
    if "://" in target:
        try:
            url = make_url(target)
        except ArgumentError:
            raise ValueError("this is not a database URL") from None
        if url.get_backend_name() != "sqlite":
            raise ValueError("only processes on a SQLite file can be asked from outside")
        path = path_of(url.database or "")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    return Path(path).resolve()


if __name__ == "__main__":
    main()
