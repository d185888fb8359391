"""The line of those who wait for a connection, by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qsession.waiting.connection_queue import ConnectionQueue


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_place_is_given_up_when_something_fails_before_the_wait(handed_over: bool) -> None:
    """As when the connection of somebody else is closed to make room, and that is cancelled."""
    queue = ConnectionQueue()

    def joined() -> None:
        if handed_over:
            queue.put("a connection")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.get(timeout=1.0, joined=joined)
    assert queue.waiting == 0
    if not handed_over:
        queue.put("a connection")
    assert queue.take() == "a connection"
    assert queue.take() is None


@pytest.mark.parametrize("use_lifo", [False, True])
def test_what_is_open_is_taken_first(use_lifo: bool) -> None:
    """A place whose connection could not be opened comes after all that can be used at once."""
    queue = ConnectionQueue(use_lifo=use_lifo)
    unopened, *others = [SimpleNamespace(dbapi_connection=each) for each in (None, "a", "b")]
    for each in (unopened, *others):
        queue.put(each)
    assert queue.qsize() == 3
    assert queue.open == 2
    assert [queue.take(), queue.take()] == (others[::-1] if use_lifo else others)
    assert not queue.empty()
    assert queue.pick(lambda each: each is unopened) is unopened
    assert queue.empty()
