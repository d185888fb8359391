"""A copy that follows is killed again and again, under a writer of another process.

The source loses nothing, its writer meets no error, and the same command ends what was begun.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager

import pytest
from copy_databases import ask, tables
from folders import ROOT
from following import leftovers, plain, same, source

from qsession.transfer.schema import BOOKS

HERE = ROOT / "tests"


@contextmanager
def writer(file, said):
    """The other process. At the end it has failed at nothing."""
    with said.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, HERE / "follow_writer.py", file],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
        )
        try:
            yield
        finally:
            _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()


class Killed:
    """Copies of one file to one target, in processes that are killed."""

    def __init__(self, process):
        self.process = process

    async def run(self, stage, n):
        """Whether the copy came to its end; if not, it was killed."""
        self.process.stdin.write(f"{stage} {n}\n".encode())
        ended = (await self.process.stdout.readline()).decode().strip()
        if ended == str(-signal.SIGKILL):
            return False
        assert ended == "0", (await self.process.stderr.read(10_000)).decode()
        return True


@asynccontextmanager
async def killed(file, url):
    """A process for all of them."""
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, HERE / "follow_child.py", file, url, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield Killed(process)
    finally:
        process.stdin.close()
        await process.wait()


def acknowledged(said):
    """What the writer was told is committed."""
    return {int(line) for line in said.read_text().split()}


@pytest.mark.storm
@pytest.mark.parametrize(
    ("stage", "step"),
    [("start", 41), ("following", 13), ("comparing", 13), ("switching", 2), ("command", 1)],
)
@pytest.mark.parametrize(
    "kind",
    [
        "sqlite",
        *(pytest.param(each, marks=pytest.mark.servers) for each in ("asyncpg", "asyncmy")),
    ],
)
async def test_killed_again_and_again(new, tmp_path, kind, stage, step):
    """Each time some statements later, until it comes to its end before that."""
    file, url, said = source(tmp_path), await new(kind), tmp_path / "said"
    with writer(file, said):
        async with killed(file, url) as copies:
            at = 1
            while not await copies.run(stage, at):
                at += step if kind == "sqlite" else 3 * step
                there, told = await tables(url), acknowledged(said)
                with plain(file) as raw:
                    rows = {n for (n,) in raw.execute("SELECT number FROM words")}
                    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert told <= rows
                assert BOOKS in there or not there or "qsession_moved_1_insert" in leftovers(file)
    assert await same(file, url)
    numbers = await ask(url, "SELECT number FROM words")
    assert acknowledged(said) <= {n for (n,) in numbers}
    assert BOOKS not in await tables(url)
    assert at > step
