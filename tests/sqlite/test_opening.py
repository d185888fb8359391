"""Who may try to open a connection while the server is away: one at a time, in order, in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from qsession import QueueTimeout
from qsession.servers import opening as module
from qsession.servers.opening import Opening, longest_pause


class Server:
    """Answers attempts when it is told to, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, asyncio.Future[str]] = {}
        self.discarded: list[str] = []
        self.opening = Opening(self.discard)

    async def discard(self, connection: str) -> None:
        """Note a connection that nobody wants any more."""
        self.discarded.append(connection)

    def connect(self, name: str) -> str:
        """Wait for the answer to an attempt."""
        self.asked.append(name)
        self.answers[name] = asyncio.get_running_loop().create_future()
        answer: str = await_only(self.answers[name])
        return answer

    def ask(self, name: str, seconds: float = 60) -> asyncio.Task[str]:
        """Begin an attempt in a task."""
        deadline = time.monotonic() + seconds
        return asyncio.ensure_future(
            greenlet_spawn(self.opening.open, lambda: self.connect(name), deadline)
        )

    async def until_asked(self, *names: str) -> None:
        """Wait until exactly these attempts have begun."""
        for _ in range(50):
            await asyncio.sleep(0)
        assert self.asked == list(names)

    def refuse(self, name: str) -> None:
        """Let an attempt fail."""
        self.answers[name].set_exception(ConnectionRefusedError(name))

    def accept(self, name: str) -> None:
        """Let an attempt succeed."""
        self.answers[name].set_result(f"connection of {name}")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server whose pauses are over at once."""
    monkeypatch.setattr(module, "_jitter", lambda low, high: 0)
    return Server()


async def away(server: Server) -> None:
    """Let the server be known to be away."""
    task = server.ask("first")
    await server.until_asked("first")
    server.refuse("first")
    with pytest.raises(ConnectionRefusedError, match="first"):
        await task


async def test_while_the_server_answers_nobody_waits(server: Server) -> None:
    """Attempts run side by side, and each gets its own connection."""
    tasks = [server.ask("a"), server.ask("b")]
    await server.until_asked("a", "b")
    server.accept("b")
    assert await tasks[1] == "connection of b"
    server.accept("a")
    assert await tasks[0] == "connection of a"


async def test_away_one_tries_and_the_others_wait_in_order(server: Server) -> None:
    """After a failure one attempt is made at a time; each failure goes to the one who made it."""
    await away(server)
    tasks = [server.ask(name) for name in "abc"]
    await server.until_asked("first", "a")
    assert server.opening.waiting == 2
    server.refuse("a")
    await server.until_asked("first", "a", "b")
    with pytest.raises(ConnectionRefusedError, match="a"):
        await tasks[0]
    assert server.opening.failures == 2
    server.accept("b")
    assert await tasks[1] == "connection of b"
    assert server.opening.failures == 0
    await server.until_asked("first", "a", "b", "c")
    server.accept("c")
    assert await tasks[2] == "connection of c"


async def test_failures_at_once_count_as_one(server: Server) -> None:
    """Attempts that were under way together when the server went do not add up."""
    tasks = [server.ask(name) for name in "abc"]
    await server.until_asked("a", "b", "c")
    for name in "abc":
        server.refuse(name)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert server.opening.failures == 1


async def test_out_of_time_while_waiting(server: Server) -> None:
    """Whose time is up before its turn gets QueueTimeout with the last error in it."""
    await away(server)
    prober = server.ask("a")
    with pytest.raises(
        QueueTimeout, match=r"1 attempts .* 0 more tasks are waiting .*Refused.*first"
    ):
        await server.ask("b", seconds=0.01)
    server.accept("a")
    await prober


async def test_out_of_time_in_the_pause(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause longer than the time that is left ends in QueueTimeout, without an attempt."""
    monkeypatch.setattr(module, "_jitter", lambda low, high: 3600)
    await away(server)
    with pytest.raises(QueueTimeout):
        await server.ask("a", seconds=0.01)
    assert server.asked == ["first"]


async def test_an_attempt_that_takes_too_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer in time is one that is away."""
    monkeypatch.setattr(module, "LEAST_PATIENCE", 0.01)
    with pytest.raises(asyncio.TimeoutError, match="did not answer in time"):
        await server.ask("a", seconds=0.01)
    assert server.opening.failures == 1


@pytest.mark.parametrize("state", ["waiting", "pausing", "trying"])
async def test_cancelled_the_turn_goes_on(
    server: Server, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in the line, in its pause or in its attempt, a task lets the next one try."""
    await away(server)
    if state == "pausing":
        server.opening._not_before = time.monotonic() + 3600
    tasks = [server.ask(name) for name in "ab"]
    await server.until_asked(*(["first"] if state == "pausing" else ["first", "a"]))
    cancelled, other = tasks if state != "waiting" else reversed(tasks)
    server.opening._not_before = 0
    cancelled.cancel()
    if state == "waiting":
        server.accept("a")
        assert await other == "connection of a"
    else:
        await server.until_asked("first", *(["b"] if state == "pausing" else ["a", "b"]))
        server.accept("b")
        assert await other == "connection of b"
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert server.opening.waiting == 0


async def test_a_connection_that_nobody_waits_for_is_discarded(server: Server) -> None:
    """When the answer comes after the cancellation, the connection is closed."""
    task = server.ask("a")
    await server.until_asked("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.accept("a")
    await server.until_asked("a")
    assert server.discarded == ["connection of a"]
    assert server.opening.failures == 0


def test_pauses_double_up_to_a_second() -> None:
    """Backoff is exponential and bounded, however long the server is away."""
    assert [longest_pause(n) for n in (1, 2, 5, 6, 10_000)] == [0.05, 0.1, 0.8, 1.0, 1.0]


def test_pauses_are_of_random_length() -> None:
    """Processes that saw the same outage do not come back at the same moment."""
    draw: Callable[[float, float], Any] = module._jitter
    assert len({draw(0.5, 1.0) for _ in range(20)}) > 1
