"""examples/web runs as its README says, and several people use it at once."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html import unescape

import httpx
import pytest
from cancelling import rows
from folders import ROOT

from qsession.testing import assert_free

README = (ROOT / "examples" / "web" / "README.md").read_text(encoding="utf-8")
STUCK = 60
LINE = re.compile(
    r'<li id="thing-(\d+)" class="(\w+)">.*?name="name" value="(.*?)".*?<b>(\d+)</b>', re.DOTALL
)


left_open = []
"""Streams that a test leaves open when the application is told to end."""


@pytest.fixture
def web(tmp_path):
    """The address of the application, started by the command of the README, on a free port."""
    (words,) = re.findall(r"^python (-m examples\.web)$", README, re.MULTILINE)
    process = subprocess.Popen(
        [sys.executable, *words.split(), "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    said, ready, address = [], 0, ""
    try:
        while ready < 4 or not address:  # the four workers of the README
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
            ready += "Application startup complete" in said[-1]
            found = re.search(r"running on (http://\S+)", said[-1])
            address = found[1] if found else address
        yield address
        process.send_signal(signal.SIGINT)  # as Ctrl-C
        said += process.communicate(timeout=STUCK)[1]
        assert "Traceback" not in "".join(said)
        while left_open:
            reader, answer = left_open.pop()
            answer.close()
            reader.close()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert_free(tmp_path / "shopping.db")


def on(client):
    """The list on the page: names, with their number, whether they were bought, and how many."""
    text = client.get("/").raise_for_status().text
    return {
        unescape(name): (int(number), state == "bought", int(amount))
        for number, state, name, amount in LINE.findall(text)
    }


def test_a_list_is_made_changed_and_cleared(web):
    """One person does all that there is to do."""
    with httpx.Client(base_url=web, timeout=STUCK) as client:
        assert "Nothing is needed" in client.get("/").text

        def post(where, **fields):
            answer = client.post(where, data=fields)
            assert (answer.status_code, answer.headers["location"]) == (303, "/")

        post("/things", name="milk", amount=2)
        post("/things", name="<b>bread & butter</b>")
        post("/things", name="milk", amount=3)
        listed = on(client)
        milk, bread = listed["milk"][0], listed["<b>bread & butter</b>"][0]
        assert listed == {"milk": (milk, False, 5), "<b>bread & butter</b>": (bread, False, 1)}
        post(f"/things/{milk}/change", by=-1)
        post(f"/things/{bread}/rename", name="bread")
        post(f"/things/{bread}/bought")
        assert on(client) == {"milk": (milk, False, 4), "bread": (bread, True, 1)}
        post(f"/things/{bread}/needed")
        post(f"/things/{bread}/rename", name="milk")  # two lines become one
        assert on(client) == {"milk": (milk, False, 5)}
        post(f"/things/{milk}/bought")
        post("/things", name="tea")
        post("/delete-bought")
        ((name, (tea, _, _)),) = on(client).items()
        assert name == "tea"
        post(f"/things/{tea}/delete")
        post(f"/things/{tea}/delete")  # somebody else was faster
        post(f"/things/{tea}/bought")
        post("/things", name="ink")
        ((_, (ink, _, _)),) = on(client).items()
        post(f"/things/{ink}/change", by=-1)  # nothing is left of it
        assert on(client) == {}
        for fields in ({}, {"name": " "}, {"name": "x" * 101}, {"name": "x", "amount": "many"}):
            assert client.post("/things", data=fields).status_code == 422
        assert client.post("/things", content=b"name=\xff").status_code == 422
        assert on(client) == {}


def test_people_use_it_at_once(web, tmp_path):
    """Eight browsers change one line, on four processes: nothing of it is lost."""
    with httpx.Client(base_url=web, timeout=STUCK) as client:
        client.post("/things", data={"name": "eggs", "amount": 100})
        number = on(client)["eggs"][0]

    def person(n):
        workers = set()
        with httpx.Client(base_url=web, timeout=STUCK) as client:
            for step in range(30):
                if step % 3 == 0:
                    answer = client.post("/things", data={"name": "eggs", "amount": 2})
                else:
                    answer = client.post(f"/things/{number}/change", data={"by": -1})
                assert answer.status_code == 303
                client.post("/things", data={"name": f"of person {n}"})
                page = client.get("/").text
                workers.add(re.search(r"process (\d+)", page)[1])
                mine = [line for line in LINE.findall(page) if line[2] == f"of person {n}"]
                assert int(mine[0][3]) == step + 1  # everybody sees at once what was answered
        return workers

    with ThreadPoolExecutor(8) as threads:
        workers = set().union(*threads.map(person, range(8)))
    assert len(workers) > 1
    found = dict(rows(tmp_path / "shopping.db", "SELECT name, amount FROM things"))
    assert found == {"eggs": 100, **{f"of person {n}": 30 for n in range(8)}}


def test_the_dashboard_shows_what_the_workers_do(web):
    """Whichever of them answers, the commits of all count. It is there for this machine only."""
    with httpx.Client(base_url=web, timeout=STUCK) as client:
        for _ in range(3):
            client.post("/things", data={"name": "milk"})
        (told,) = client.get("/qsession/state.json").raise_for_status().json()["databases"]
        assert told["name"] == "shopping.db"
        assert told["totals"]["commits"] >= 3
        proxied = client.get("/qsession/", headers={"X-Forwarded-For": "203.0.113.9"})
        assert proxied.status_code == 403


def test_a_page_that_is_open_shows_what_others_change(web):
    """Each list that it is sent was committed, the last one is the newest."""
    with httpx.Client(base_url=web, timeout=STUCK) as reader, httpx.Client(base_url=web) as writer:
        with reader.stream("GET", "/live") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lists = listings(answer)
            assert next(lists) == {}
            for amount in range(1, 6):
                writer.post("/things", data={"name": "<milk>"})
                while (found := next(lists)) != {"<milk>": amount}:
                    assert found == ({"<milk>": amount - 1} if amount > 1 else {})


def test_ctrl_c_ends_the_pages_that_are_open(web):
    """Without a traceback, which the fixture looks for."""
    reader = httpx.Client(base_url=web, timeout=STUCK)
    answer = reader.send(reader.build_request("GET", "/live"), stream=True)
    assert next(listings(answer)) == {}
    left_open.append((reader, answer))


def listings(answer):
    """The lists of a stream: names, and how many."""
    for each in answer.iter_lines():
        if each.startswith("data: "):
            found = LINE.findall(json.loads(each[6:]))
            yield {unescape(name): int(amount) for _, _, name, amount in found}
