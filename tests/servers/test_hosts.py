"""Several hosts in one URL: each is tried by itself, and none keeps the others waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from qsession.servers.hosts import HOST_PATIENCE, Hosts


class Driver:
    """A dialect whose hosts do as they are told, and who was tried."""

    name = "postgresql"

    def __init__(self, driver: str, **does: Any) -> None:
        self.driver = driver
        self.does = does
        self.tried: list[str] = []
        self.last: dict[str, Any] = {}
        self.loaded_dbapi = SimpleNamespace(OperationalError=ConnectionError)

    def connect(self, **kw: Any) -> str:
        """A connection, or the error of that host."""
        self.last = kw
        attributes = kw.get("target_session_attrs")
        self.tried.append(f"{kw['host']} {attributes}" if attributes else kw["host"])
        what = self.does.get(str(kw["host"]))
        if isinstance(what, BaseException):
            raise what
        if what is not None and attributes not in (what, "any", None):
            raise ValueError(f"it is {what}")
        return f"connection to {kw['host']}:{kw.get('port')}"


def lists(driver: str, hosts: str, **kw: Any) -> dict[str, Any]:
    """Hosts as each driver has them."""
    ports = [str(number + 1) for number in range(len(hosts))]
    if driver == "asyncpg":
        return {"host": list(hosts), "port": list(map(int, ports)), **kw}
    return {"host": ",".join(hosts), "port": ",".join(ports), **kw}


drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@drivers
def test_the_one_that_has_served_comes_first(driver: str) -> None:
    """And the others after it, in their order."""
    dialect = Driver(driver, a=OSError("refused"), b=asyncio.TimeoutError())
    hosts = Hosts(dialect)
    assert hosts.connect(**lists(driver, "abc")) == "connection to c:3"
    assert hosts.connect(**lists(driver, "abc")) == "connection to c:3"
    dialect.does = {"c": OSError("refused")}
    assert hosts.connect(**lists(driver, "abc")) == "connection to a:1"
    assert dialect.tried == ["a", "b", "c", "c", "c", "a"]
    assert hosts.connect(**lists(driver, "bc")) == "connection to b:1"


@drivers
def test_each_host_has_a_limit(driver: str) -> None:
    """Of some seconds, or that of the application; one host alone has the driver's."""
    limit = "timeout" if driver == "asyncpg" else "connect_timeout"
    dialect = Driver(driver)
    hosts = Hosts(dialect)
    hosts.connect(**lists(driver, "ab"))
    assert dialect.last[limit] == HOST_PATIENCE
    hosts.connect(**lists(driver, "ab", **{limit: 3}))
    assert dialect.last[limit] == 3
    hosts.connect(**lists(driver, "a"))
    assert limit not in dialect.last


@drivers
def test_all_are_named_if_none_can_be_used(driver: str) -> None:
    """With what each has said."""
    dialect = Driver(driver, a=OSError("refused"), b=asyncio.TimeoutError())
    with pytest.raises(ConnectionError) as raised:
        Hosts(dialect).connect(**lists(driver, "ab"), password="secret")
    assert str(raised.value) == (
        "None of the servers can be used. a:1 failed: refused. b:2 did not answer within 5 s"
    )


@drivers
def test_a_standby_is_preferred(driver: str) -> None:
    """All are asked whether they are one, before any other is taken."""
    dialect = Driver(driver, a="primary", b=OSError("refused"), c="standby")
    wanted = {"target_session_attrs": "prefer-standby"}
    hosts = Hosts(dialect)
    assert hosts.connect(**lists(driver, "abc"), **wanted) == "connection to c:3"
    dialect.does["c"] = OSError("refused")
    dialect.tried.clear()
    assert hosts.connect(**lists(driver, "abc"), **wanted) == "connection to a:1"
    assert dialect.tried == ["c standby", "a standby", "b standby", "c any", "a any"]


@drivers
def test_who_gives_up_leaves_out_the_host_that_hangs(driver: str) -> None:
    """As the pool does when its time is over: the next attempt begins with the next host."""
    dialect = Driver(driver, a=asyncio.CancelledError())
    hosts = Hosts(dialect)
    with pytest.raises(asyncio.CancelledError):
        hosts.connect(**lists(driver, "ab"))
    assert hosts.connect(**lists(driver, "ab")) == "connection to b:2"


@pytest.mark.parametrize("special", [{"load_balance_hosts": "random"}, {"hostaddr": "1.1.1.1,::1"}])
def test_what_libpq_does_with_hosts_is_left_to_it(special: dict[str, str]) -> None:
    """If the order is chosen, or the addresses stand beside the names."""
    dialect = Driver("psycopg")
    Hosts(dialect).connect(**lists("psycopg", "ab", **special))
    assert dialect.tried == ["a,b"]


def test_one_port_for_all() -> None:
    """As the drivers take it."""
    dialect = Driver("psycopg", a=OSError())
    hosts = Hosts(dialect)
    assert hosts.connect(host="a,b", port="5433") == "connection to b:5433"
    assert hosts.connect(host="a,b") == "connection to b:None"
