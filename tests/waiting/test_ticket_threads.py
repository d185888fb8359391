"""The ticket queue between the event loops of several threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qsession.waiting.ticket import Ticket, TicketQueue, TicketState

LONG = 3600.0


@contextmanager
def threads(count: int, run: Any) -> Iterator[None]:
    """Run ``run(number)``, a coroutine function, in so many threads with a loop each."""
    failures: list[BaseException] = []

    def thread(number: int) -> None:
        try:
            asyncio.run(run(number))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    started = [threading.Thread(target=thread, args=(number,)) for number in range(count)]
    for each in started:
        each.start()
    yield
    for each in started:
        each.join(60)
    sys.setswitchinterval(interval)
    assert not any(each.is_alive() for each in started)
    assert not failures, failures


async def use(queue: TicketQueue, inside: list[int]) -> bool:
    """Take the ticket, be alone with it for a few turns of the loop, and give it back."""
    ticket = Ticket("use")
    queue.take(ticket)
    if await queue.wait(ticket, LONG) is not TicketState.HELD:
        return False
    try:
        inside[0] += 1
        assert inside[0] == 1
        await asyncio.sleep(0)
        inside[0] -= 1
    finally:
        queue.release(ticket)
    return True


def test_loops_of_two_threads_share_one_ticket() -> None:
    """Hundreds of tasks in each of two loops: one holds at a time, and all get their turn."""
    queue, inside, served = TicketQueue(), [0], [0, 0]

    async def run(number: int) -> None:
        served[number] = sum(await asyncio.gather(*(use(queue, inside) for _ in range(400))))

    with threads(2, run):
        pass
    assert served == [400, 400]
    assert queue.holder is None
    assert queue.waiting == 0


def test_cancelled_in_one_thread_while_handed_over_in_the_other() -> None:
    """Tasks are cancelled while another thread releases: the ticket is never lost."""
    queue, inside = TicketQueue(), [0]

    async def worker(number: int) -> None:
        if number == 0:
            assert all(await asyncio.gather(*(use(queue, inside) for _ in range(400))))
            return
        for _ in range(100):
            tickets = [Ticket("victim") for _ in range(4)]
            for each in tickets:
                queue.take(each)
            tasks = [asyncio.ensure_future(queue.wait(each, LONG)) for each in tickets]
            await asyncio.sleep(0)
            for each in tasks:
                each.cancel()
            for each, task in zip(tickets, tasks, strict=True):
                try:
                    await task
                except asyncio.CancelledError:
                    continue
                queue.release(each)

    with threads(2, worker):
        pass
    assert queue.holder is None
    assert queue.waiting == 0


def test_a_waiter_whose_loop_is_closed_is_passed_over() -> None:
    """A loop that ended with a task still waiting does not stop those of other loops."""
    queue = TicketQueue()
    first, lost, last = Ticket("first"), Ticket("lost"), Ticket("last")
    queue.take(first)
    queue.take(lost)
    queue.take(last)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(queue.wait(lost, LONG))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    queue.release(first)
    assert queue.holder is last
    assert lost.state is not TicketState.HELD
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    waiting.get_coro().close()  # type: ignore[union-attr]
    assert queue.holder is last


def test_taken_away_while_its_holder_claims_it() -> None:
    """Of a thread that takes a ticket away and a holder that claims it, exactly one succeeds."""
    queue, rounds = TicketQueue(), 300
    both, outcomes = threading.Barrier(2), [[False] * rounds, [False] * rounds]
    tickets = [Ticket(number) for number in range(rounds)]

    async def run(number: int) -> None:
        for turn, ticket in enumerate(tickets):
            if number == 0:
                assert queue.take(ticket) is TicketState.HELD
            both.wait(60)
            outcomes[number][turn] = queue.take_away(ticket) if number else ticket.claim()
            both.wait(60)
            if number == 0:
                queue.release(ticket)

    with threads(2, run):
        pass
    assert all(claimed != taken for claimed, taken in zip(*outcomes, strict=True))
    assert queue.taken_away == sum(outcomes[1])
    assert queue.holder is None
