"""The line of those who wait for a connection, by itself."""

from __future__ import annotations

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
