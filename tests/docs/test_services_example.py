"""examples/services runs as its README says, and loses nothing and does nothing twice."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from itertools import chain, count

import httpx
from cancelling import rows
from folders import ROOT

from qsession.testing import assert_free

README = (ROOT / "examples" / "services" / "README.md").read_text(encoding="utf-8")
STUCK = 60
ORDERS = 300
LEASE = 5
FILE = "orders.db"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


async def until(condition):
    """Wait until something holds that other processes bring about."""
    deadline = time.monotonic() + STUCK
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_there(pid):
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start(folder):
    """The command of the README, with short days, on a free port."""
    (words,) = re.findall(r"^python (-m examples\.services)$", README, re.MULTILINE)
    return subprocess.Popen(
        [sys.executable, *words.split(), "--port", "0", "--day", "1"],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@asynccontextmanager
async def services(folder, ending):
    """Run them. Gives the address, and the processes by service; ends all by a signal."""
    parent, said, pids = start(folder), [], defaultdict(list)
    try:
        while "scheduler" not in pids:
            said.append(await asyncio.to_thread(parent.stdout.readline))
            assert said[-1], "".join(said)
            if found := re.fullmatch(r"process (\d+) is (\w+)\n", said[-1]):
                pids[found[2]].append(int(found[1]))
        yield re.search(r"http://[\d.:]+", said[0])[0], pids
        os.killpg(parent.pid, ending)  # as a terminal does at Ctrl-C
        said += (await asyncio.to_thread(parent.communicate, timeout=STUCK))[0]
    finally:
        if parent.poll() is None:
            parent.kill()
            for pid in chain(*pids.values()):
                if is_there(pid):
                    os.kill(pid, signal.SIGKILL)
            parent.communicate()
    said = "".join(said)
    assert parent.returncode == 0, said
    assert "Traceback" not in said, said
    started = [int(pid) for pid in re.findall(r"process (\d+) is", said)]
    assert not any(map(is_there, started))
    assert_free(folder / FILE)


def hold_orders(path, pids):
    """Whether these processes, which are stopped for that, have orders at this moment."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    taken = f"SELECT count(*) FROM orders WHERE state = 'new' AND taken_until > {time.time()}"
    if rows(path, taken) != [(0,)]:
        return True
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return False


def check(path):
    """What is true at any time: each charge counts once, and each invoice, in one summary."""
    paid = "SELECT customer, sum(cents) FROM orders WHERE state != 'new' GROUP BY 1 ORDER BY 1"
    assert rows(path, "SELECT * FROM customers ORDER BY name") == rows(path, paid)
    invoiced = rows(path, "SELECT id, cents FROM orders WHERE state = 'invoiced' ORDER BY id")
    assert rows(path, "SELECT order_id, cents FROM invoices ORDER BY order_id") == invoiced
    numbers = rows(path, "SELECT number FROM invoices ORDER BY number")
    assert numbers == [(number,) for number in range(1, len(invoiced) + 1)]
    summed = "SELECT summary_id, count(*), sum(cents) FROM invoices WHERE summary_id GROUP BY 1"
    made = "SELECT id, invoices, cents FROM summaries WHERE invoices ORDER BY id"
    assert rows(path, made) == rows(path, f"{summed} ORDER BY 1")


async def test_no_order_is_lost_or_done_twice_when_workers_are_killed(tmp_path):
    """Workers are killed while they hold orders, all ends while more come in, and starts again."""
    path, acknowledged, amounts, told = tmp_path / FILE, {}, count(1), False

    async def send(client):
        while True:
            cents = next(amounts)
            order = {"customer": f"customer {cents % 7}", "item": f"item {cents}", "cents": cents}
            try:
                answer = await client.post("/orders", json=order)
            except httpx.TransportError:
                assert told
                return
            if answer.status_code == 503:
                assert told
                return
            assert answer.status_code == 201, answer.text
            acknowledged[answer.json()["number"]] = tuple(order.values())

    async with httpx.AsyncClient(timeout=STUCK) as client:
        async with services(tmp_path, signal.SIGTERM) as (client.base_url, pids):
            sending = [asyncio.create_task(send(client)) for _ in range(100)]
            await until(lambda: rows(path, "SELECT 1 FROM invoices"))
            os.kill(pids["invoicing"][0], signal.SIGKILL)
            await until(lambda: hold_orders(path, pids["charging"]))
            theirs = time.time() + LEASE  # what they have taken is theirs until then, at most
            for pid in pids["charging"]:
                os.kill(pid, signal.SIGKILL)
            late = f"SELECT count(*) FROM orders WHERE taken_until > {theirs} AND state"
            await until(lambda: rows(path, f"{late} != 'new'") > [(0,)])
            await until(lambda: len(acknowledged) >= ORDERS)
            told = True
        await asyncio.gather(*sending)
    check(path)
    assert rows(path, f"{late} = 'new'") == [(0,)]  # what the others had begun is done
    stored = rows(path, "SELECT id, customer, item, cents FROM orders")
    assert acknowledged.items() <= {number: tuple(order) for number, *order in stored}.items()

    async with services(tmp_path, signal.SIGINT) as (address, pids):
        orders = rows(path, "SELECT count(*), sum(cents) FROM orders")
        await until(lambda: rows(path, "SELECT sum(invoices), sum(cents) FROM summaries") == orders)
        os.kill(pids["api"][0], signal.SIGKILL)
        await until(lambda: not is_there(pids["api"][0]))
        async with httpx.AsyncClient(base_url=address, timeout=STUCK) as client:
            shown = (await client.get("/orders/1")).json()  # waits for the API
            assert shown == {"item": acknowledged[1][1], "state": "invoiced"}
            assert (await client.get("/orders/0")).status_code == 404
            assert len((await client.get("/summaries")).json()) > 1
            assert (await client.get("/qsession/")).status_code == 200
    check(path)
    assert rows(path, "SELECT DISTINCT state FROM orders") == [("invoiced",)]


LATE = """
import asyncio, sys
from examples.services import charging
from examples.services.models import Order
from qsession import qsession

async def main():
    async with qsession.engine.begin() as connection:
        await connection.run_sync(Order.metadata.create_all)
    async with qsession.begin() as s:
        s.add(Order(customer="ann", item="tea", cents=450))
    charging.LEASE = -1.0  # it ends before anything is paid
    ((number, first),) = await qsession.run(charging.take)
    charging.LEASE = 60.0
    ((number, second),) = await qsession.run(charging.take)
    assert await qsession.run(charging.take) == []
    for taken_until in (first, second, second):
        await qsession.run(charging.note, number, taken_until)
        async with qsession.reader() as s:
            print((await s.get_one(Order, number)).state)
    await qsession.dispose()

asyncio.run(main())
"""


def test_a_payment_is_noted_only_by_who_has_the_order(tmp_path):
    """A process whose lease has ended, and one that notes it again, change nothing."""
    url = f"sqlite+aiosqlite:///{tmp_path / FILE}"
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATE],
        env={**ENVIRONMENT, "QSESSION_URL": url},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert said.split() == ["new", "charged", "charged"]
    assert rows(tmp_path / FILE, "SELECT * FROM customers") == [("ann", 450)]
