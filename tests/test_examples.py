"""The examples run, and do what they say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cancelling import assert_free, eventually, rows
from server_databases import database_on

ROOT = Path(__file__).parents[1]


def start(module, *args):
    """An example in a process of its own, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", f"examples.{module}", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() in ("filing\n", "working\n")
    return process


async def test_services_lose_nothing_at_sigterm(tmp_path):
    """Two services on one file, told to end in the midst of it: what each counted is there."""
    path = tmp_path / "jobs.db"
    url = f"sqlite+qsession:///{path}"
    services = [start("services.producer", url)]
    try:
        services += [start("services.worker", url, name) for name in ("ann", "ben")]
        count = "SELECT count(*) FROM jobs WHERE done_by"
        for name in ("ann", "ben"):
            await eventually(lambda name=name: rows(path, f"{count} = '{name}'")[0][0] > 20)
        for each in services:
            each.send_signal(signal.SIGTERM)
        said = [int(each.communicate(timeout=30)[0].split()[0]) for each in services]
    finally:
        for each in services:
            each.kill()
            each.wait()
    assert [each.returncode for each in services] == [0, 0, 0]
    assert rows(path, "SELECT count(*) FROM jobs") == [(said[0],)]
    assert rows(path, f"{count} = 'ann'") == [(said[1],)]
    assert rows(path, f"{count} = 'ben'") == [(said[2],)]
    assert_free(path)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def url(request, tmp_path):
    """An empty database, by a URL without a driver."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    with database_on("postgresql") as url:
        yield url.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("module", "said"),
    [("gather_connection", "one ran\ntwo ran\n"), ("gather_pool", "0 left, 20 sold\n")],
)
def test_gather_over_a_pool_and_over_one_connection(url, module, said):
    """Both programs of the tutorial run to their end, on either database."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.pool.{module}", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr
