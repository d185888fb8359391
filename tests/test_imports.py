"""What is imported when: `import qsession` is light, and each part comes with its first use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from folders import ROOT

import qsession

AT_ONCE = {"by_url", "config", "copying", "creation", "engine", "errors", "models"}
AT_ONCE |= {"session", "urls", "waiting"}
"""The rooms of the package that every program needs."""
NOT_AT_ONCE = {"alembic", "typer", "rich", "psutil", "unittest", "sqlalchemy.testing"}
NOT_AT_ONCE |= {"aiosqlite", "asyncpg"}
SQLITE = {"sqlite", "events", "statistics"}
SERVERS = {"servers", "events", "statistics"}


def told_by(program: str) -> list[str]:
    """What a program prints as JSON, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys, qsession\n{program}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def loaded_by(program: str) -> set[str]:
    """The modules that are loaded at the end of a program."""
    return set(told_by(f"{program}\nprint(json.dumps(list(sys.modules)))"))


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms of the package that modules belong to."""
    return {name.split(".")[1] for name in modules if name.startswith("qsession.")}


def test_importing_the_package_imports_no_framework() -> None:
    """No optional package, no driver, no Alembic, no test framework."""
    assert not loaded_by("") & NOT_AT_ONCE


def test_importing_the_package_imports_what_every_program_needs() -> None:
    """Of the package itself: neither SQLite nor servers, pool, observers, events nor tools."""
    assert rooms_of(loaded_by("")) == AT_ONCE


DRIVER = "types.SimpleNamespace(paramstyle='format')"


@pytest.mark.parametrize(
    ("program", "more"),
    [
        ("qsession.create_async_engine('sqlite://')", SQLITE),
        ("qsession.create_engine('sqlite://')", SQLITE),
        ("qsession.qsession.configure('sqlite://')", SQLITE),
        ("qsession.create_pool('sqlite://')", SQLITE | {"pool"}),
        (f"qsession.create_async_engine('postgresql+asyncpg://h/d', module={DRIVER})", SERVERS),
        (f"qsession.create_engine('mysql+pymysql://h/d', module={DRIVER})", SERVERS),
        ("qsession.Observation", {"observation"}),
        ("qsession.Stats", {"statistics"}),
        ("qsession.events.subscribe(print)", {"events"}),
    ],
)
def test_a_part_comes_with_its_first_use(program: str, more: set[str]) -> None:
    """And no other with it: a file needs nothing of servers, a server nothing of SQLite."""
    assert rooms_of(loaded_by(f"import types\n{program}")) == AT_ONCE | more


FIRST_WRITE = """
import asyncio, tempfile

async def main(folder):
    qsession.qsession.configure(f"sqlite:///{folder}/a.db")
    before = set(sys.modules)
    async with qsession.qsession.begin() as s:
        await s.run_sync(lambda s: s.connection().exec_driver_sql("CREATE TABLE t (a)"))
    await qsession.qsession.dispose()
    print(json.dumps(sorted(set(sys.modules) - before)))

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
"""


def test_the_first_write_imports_nothing() -> None:
    """All that it needs came with the engine, when nobody waited yet."""
    assert told_by(FIRST_WRITE) == []


def test_all_names_are_there_before_they_are_used() -> None:
    """For `dir`, and for a star import; both in a process that has used none of them."""
    names = set(qsession.__all__)
    assert names <= set(told_by("print(json.dumps(dir(qsession)))"))
    assert names <= set(told_by("from qsession import *\nprint(json.dumps(list(globals())))"))


def test_a_name_that_does_not_exist() -> None:
    """The error is that of any module."""
    with pytest.raises(AttributeError, match="module 'qsession' has no attribute 'create_poll'"):
        qsession.create_poll  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'create_poll'"):
        from qsession import create_poll  # noqa: F401


FROM_THREADS = """
import threading
names, found, begin = ["create_pool", "Observation", "Stats"] * 4, [], threading.Barrier(12)

def use(name):
    begin.wait()
    found.append((name, id(getattr(qsession, name))))

threads = [threading.Thread(target=use, args=[name]) for name in names]
for each in threads: each.start()
for each in threads: each.join()
print(json.dumps([len(found), len(set(found))]))
"""


def test_threads_may_use_a_name_first_at_the_same_time() -> None:
    """Each of them gets the same object."""
    assert told_by(FROM_THREADS) == [12, 3]
