"""The ticket queue against a model of it, step by step on a clock that is set by hand."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qsession.waiting import ticket as module
from qsession.waiting.ticket import AGEING, Ticket, TicketQueue, TicketState

LONG = 3600.0
PRIORITIES = st.integers(-2, 2)
# Odd eighths against whole quarters: no moment of asking or waiting falls together with another's.
TIMEOUTS = st.integers(1, 20).map(lambda n: n / 4 + 1 / 8)
PAUSES = st.integers(1, 8).map(lambda n: n / 4)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is set by hand, and the clock of the queue."""

    now = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def settle(self) -> None:
        """Run until everybody waits for something that is not there."""

        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.run_until_complete(turns())


class Client:
    """One who asks for the ticket, and the state that the model says it is in."""

    def __init__(self, queue: TicketQueue, priority: int, deadline: float) -> None:
        self.ticket = Ticket(self, priority)
        self.queue = queue
        self.deadline = deadline
        self.expected = TicketState.NEW
        self.task: asyncio.Task[TicketState] | None = None

    def wait(self, loop: Clock, timeout: float) -> None:
        self.task = loop.create_task(self.queue.wait(self.ticket, timeout))

    def score(self) -> float:
        return self.ticket.asked_at + self.ticket.priority * AGEING


class TicketMachine(RuleBasedStateMachine):
    """Anything that clients may do, in any order; the model is a list in the order of asking."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Clock()
        self._time = module.time
        module.time = self.loop  # type: ignore[assignment]
        self.queue = TicketQueue()
        self.holder: Client | None = None
        self.waiting: list[Client] = []
        self.clients: list[Client] = []
        self.given_up = self.freed = 0
        self.queue.on_given_up = self.note_given_up
        self.queue.on_free = self.note_free

    def note_given_up(self, wanted: bool) -> None:
        self.given_up += 1
        assert wanted is (self.queue.waiting > 0)

    def note_free(self) -> None:
        self.freed += 1
        assert self.queue.holder is None

    def teardown(self) -> None:
        while self.holder is not None:  # no wake-up is lost: one release a client ends it
            self.release()
            self.settled()
        assert not self.waiting
        assert all(each.task is None or each.task.done() for each in self.clients)
        module.time = self._time
        self.loop.close()

    def new(self, priority: int, timeout: float) -> Client:
        client = Client(self.queue, priority, self.loop.now + timeout)
        self.clients.append(client)
        return client

    def heads(self) -> list[Client]:
        """Who may be next: the first of a priority, and none has waited enough to pass them."""
        first: dict[int, Client] = {}
        for each in self.waiting:
            first.setdefault(each.ticket.priority, each)
        best = min(each.score() for each in first.values())
        return [each for each in first.values() if each.score() == best]

    def leave(self, client: Client, end: TicketState) -> None:
        self.waiting.remove(client)
        client.expected = end

    def hand_on(self, end: TicketState = TicketState.RELEASED) -> Client | None:
        """The holder has it no more: who holds the ticket now, without a turn of the loop."""
        assert self.holder is not None
        self.holder.expected = end
        self.holder = None
        if self.waiting:
            assert self.queue.holder is not None
            self.holder = self.queue.holder.owner
            assert self.holder in self.heads()
            self.leave(self.holder, TicketState.HELD)
        return self.holder

    @rule(priority=PRIORITIES, timeout=TIMEOUTS, limit=st.none() | st.integers(0, 3))
    def ask(self, priority: int, timeout: float, limit: int | None) -> None:
        client = self.new(priority, timeout)
        state = self.queue.take(client.ticket, limit)
        if self.holder is None:
            client.expected, self.holder = TicketState.HELD, client
        elif limit is not None and len(self.waiting) >= limit:
            client.expected = TicketState.REFUSED
        else:
            client.expected = TicketState.WAITING
            self.waiting.append(client)
        assert state is client.expected
        client.wait(self.loop, timeout)

    @precondition(lambda self: self.holder and not self.waiting)
    @rule(timeout=TIMEOUTS)
    def released_before_it_waits(self, timeout: float) -> None:
        client = self.new(0, timeout)
        assert self.queue.take(client.ticket) is TicketState.WAITING
        self.waiting.append(client)
        self.release()
        client.wait(self.loop, timeout)

    @precondition(lambda self: self.holder)
    @rule()
    def release(self) -> None:
        assert self.holder is not None
        self.queue.release(self.holder.ticket)
        self.hand_on()

    @precondition(lambda self: self.waiting)
    @rule()
    def cancelled_at_the_moment_of_hand_off(self) -> None:
        self.release()
        heir = self.holder
        assert heir is not None
        assert heir.task is not None
        heir.task.cancel()
        self.loop.settle()
        self.hand_on()

    @precondition(lambda self: self.waiting)
    @rule()
    def cancelled_just_before_hand_off(self) -> None:
        assert self.holder is not None
        heir = self.heads()[0]
        assert heir.task is not None
        heir.task.cancel()
        self.leave(heir, TicketState.LEFT)
        self.queue.release(self.holder.ticket)
        self.hand_on()

    @precondition(lambda self: self.waiting)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        client = self.waiting[pick % len(self.waiting)]
        assert client.task is not None
        client.task.cancel()
        self.leave(client, TicketState.LEFT)

    @precondition(lambda self: self.holder)
    @rule()
    def claim(self) -> None:
        assert self.holder is not None
        assert self.holder.ticket.claim()
        assert self.holder.ticket.claimed

    @precondition(lambda self: self.holder)
    @rule()
    def take_away(self) -> None:
        holder = self.holder
        assert holder is not None
        if holder.ticket.claimed:
            assert not self.queue.take_away(holder.ticket)
            return
        assert self.queue.take_away(holder.ticket)
        self.hand_on(TicketState.TAKEN)
        assert not holder.ticket.claim()
        self.queue.release(holder.ticket)  # no effect: it is not its own any more

    @precondition(lambda self: self.waiting)
    @rule(pick=st.integers(0, 99))
    def nothing_can_be_taken_from_one_that_waits(self, pick: int) -> None:
        client = self.waiting[pick % len(self.waiting)]
        assert not self.queue.take_away(client.ticket)

    @rule(priority=PRIORITIES)
    def at_once_or_not_at_all(self, priority: int) -> None:
        client = self.new(priority, LONG)
        state = self.queue.take(client.ticket)
        if state is TicketState.HELD:
            client.expected, self.holder = TicketState.HELD, client
        else:
            self.queue.leave(client.ticket)
            client.expected = TicketState.LEFT

    @rule(pause=PAUSES)
    def time_passes(self, pause: float) -> None:
        self.loop.now += pause
        for client in [each for each in self.waiting if each.deadline < self.loop.now]:
            self.leave(client, TicketState.EXPIRED)

    @precondition(lambda self: self.waiting)
    @rule(pause=PAUSES)
    def handed_over_as_time_runs_out(self, pause: float) -> None:
        assert self.holder is not None
        self.loop.now += pause
        self.release()
        self.time_passes(0.0)

    @precondition(lambda self: self.clients)
    @rule(pick=st.integers(0, 99))
    def a_ticket_is_used_once(self, pick: int) -> None:
        with pytest.raises(ValueError, match="used before"):
            self.queue.take(self.clients[pick % len(self.clients)].ticket)

    @invariant()
    def settled(self) -> None:
        self.loop.settle()
        assert self.queue.holder is (self.holder and self.holder.ticket)
        assert self.queue.waiting == len(self.waiting)
        waiting = [each.ticket for each in self.waiting]
        assert sorted(self.queue.waiters(), key=waiting.index) == waiting
        for client in self.clients:
            state, task = client.ticket.state, client.task
            if task is not None and task.done() and task.cancelled():
                assert state in (TicketState.LEFT, TicketState.RELEASED)
                continue
            assert state is client.expected
            if task is not None:
                assert task.done() is (state is not TicketState.WAITING)
        states = [each.ticket.state for each in self.clients]
        assert self.queue.taken_away == states.count(TicketState.TAKEN)
        ended = states.count(TicketState.RELEASED) + states.count(TicketState.TAKEN)
        assert self.given_up == ended
        assert self.freed <= ended
        held = [each for each in self.clients if each.ticket.state is TicketState.HELD]
        assert held == ([self.holder] if self.holder else [])


TestTicketQueue = TicketMachine.TestCase
TestTicketQueue.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@given(asked=st.lists(st.tuples(PRIORITIES, PAUSES), max_size=12))
def test_waiting_makes_up_for_priority(asked: list[tuple[int, float]]) -> None:
    """Lower priorities go first, but ``AGEING`` seconds of waiting outweigh a step of them."""
    loop, time, queue, served = Clock(), module.time, TicketQueue(), []
    module.time = loop  # type: ignore[assignment]
    try:
        queue.take(Ticket("first"))
        for priority, pause in asked:
            loop.now += pause
            queue.take(Ticket("waiter", priority))
        while queue.waiting:
            assert queue.holder is not None
            queue.release(queue.holder)
            served.append(queue.holder.asked_at + queue.holder.priority * AGEING)
    finally:
        module.time = time
        loop.close()
    assert len(served) == len(asked)
    assert served == sorted(served)


def test_dismissing_looks_only_at_those_who_may_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each arrival behind a holder that stays may dismiss: the line may be 100,000 long."""

    def look_at_all(_: TicketQueue) -> None:
        raise AssertionError("it looks at everybody in the line")

    queue = TicketQueue()
    tickets = [Ticket(None, gives_up=number % 2 == 1) for number in range(6)]
    for ticket in tickets:
        queue.take(ticket)
    queue.leave(tickets[1])
    monkeypatch.setattr(TicketQueue, "waiters", look_at_all)
    queue.dismiss(lambda ticket: ticket is tickets[3])
    queue.dismiss()
    states = [ticket.state for ticket in tickets]
    waiting, left, gone = TicketState.WAITING, TicketState.LEFT, TicketState.DISMISSED
    assert states == [TicketState.HELD, left, waiting, gone, waiting, gone]
    assert queue.waiting == 2
