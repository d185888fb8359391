"""Client: whether the client of a request has gone, asked without losing what it has sent."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from anyio import CancelScope
from starlette.requests import Request

if TYPE_CHECKING:
    from starlette.types import Message, Receive


async def has_gone(request: Request) -> bool:
    """Whether the client has gone. `Request.is_disconnected` would lose a part of the body that a
    handler has not received yet.
    """
    receive = request._receive
    if not isinstance(receive, _Ahead):
        receive = request._receive = _Ahead(receive)
    return request._is_disconnected or await receive.has_gone()


class _Ahead:
    """Receives the messages of a request, and may look ahead."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._early: deque[Message] = deque()
        """Those that were looked at, to be received yet."""

    async def __call__(self) -> Message:
        return self._early.popleft() if self._early else await self._receive()

    async def has_gone(self) -> bool:
        """Whether the client has gone, as far as is known without waiting."""
        while not self._early or _may_follow(self._early[-1]):
            message: Message | None = None
            with CancelScope() as scope:  # as in Starlette: what has come is received all the same
                scope.cancel()
                message = await self._receive()
            if message is None:
                return False
            self._early.append(message)
        return bool(self._early[-1]["type"] == "http.disconnect")


def _may_follow(message: Message) -> bool:
    """Whether the next message tells if the client has gone, and is no part of its body."""
    return bool(message["type"] == "http.request") and not message.get("more_body", False)
