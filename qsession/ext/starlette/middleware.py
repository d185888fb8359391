"""`QSessionMiddleware`: a request is run again after a conflict, and errors become 409 and 503.

It is a pure ASGI middleware, and no route class. FastAPI commits the session of a dependency after
the handler of a route class has returned, so a route class cannot see a commit that fails. A
middleware sees each attempt whole, also under plain Starlette. It need not hold back what a handler
sends: `request_session` commits before there is an answer, and notes a conflict in the scope of the
request. Until then nothing was sent, so streams pass through as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from qsession import events
from qsession.ext.refusals import BUSY, refusal_for
from qsession.ext.starlette.session import ATTEMPT, Attempt
from qsession.session.retry import ATTEMPTS, check_attempts, pause

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class QSessionMiddleware:
    """Runs a request again after a conflict, and answers 409 and 503 where the application raises.

    **Again.** If the transaction of `request_session` ended in a conflict, the application is
    called again with the same request, at most `attempts` times, with short pauses. Later attempts
    take the write lock with their first statement, as in `qsession.run`. So what a handler does
    outside the database, or commits in a session of its own, must be repeatable. It is not called
    again if a session of `request_session` has committed already, if something was sent, or if more
    than `max_body` bytes of the body were received. The conflict of a session that a handler opens
    in another way is a 409: use `qsession.run` for it.

    **Answers**, as JSON with ``detail``. 409: a conflict, its transaction has no effect. 503 with
    ``Retry-After``: `QueueFull`, `QueueTimeout`, or `EngineDraining`. A client that was refused
    shall stay away for as long as its request has waited, between 1 and 30 seconds. All other
    errors pass through: `DurabilityError` is a 500, because the changes are in the file and nobody
    may send them again blindly; `ReadOnlyError` and `NestedWriteError` are faults of the program.

    Handlers of exceptions in the application come first; their answer to a conflict is given after
    the last attempt. Add this middleware first, so that all others are around it: each sees one
    request and one answer. WebSockets pass through. A cancellation is raised.
    """

    def __init__(
        self, app: ASGIApp, *, attempts: int = ATTEMPTS, max_body: int = 1024 * 1024
    ) -> None:
        self.app = app
        self.attempts = check_attempts(attempts)
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = asyncio.get_running_loop().time()
        first, body, answer = dict(scope), _Body(receive, self.max_body), _Answer(send)
        for number in range(1, self.attempts + 1):
            attempt = Attempt(number)
            scope.clear()  # a router has changed it; those around look at it afterwards
            scope.update({**first, ATTEMPT: attempt})

            def again(attempt: Attempt = attempt) -> bool:
                may = attempt.conflict and not attempt.committed and not answer.begun
                return may and body.whole and attempt.number < self.attempts

            try:
                await self.app(scope, body.receiver(), answer.sender(again))
            except Exception as error:
                if not again():
                    waited = asyncio.get_running_loop().time() - began
                    response = _response(error, waited)
                    if response is None or answer.begun:
                        raise
                    await response(scope, receive, send)
                    return
            else:
                if not again():
                    return
            seconds = pause(number)
            if events.observers:
                events.emit(events.Retry(attempt.database, number, seconds))
            await asyncio.sleep(seconds)


class _Body:
    """The body of a request, kept to be received again while it is not longer than a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._room = limit
        self._kept: list[Message] = []

    @property
    def whole(self) -> bool:
        """Whether all that was received is kept."""
        return self._room >= 0

    def receiver(self) -> Receive:
        """Receives what is kept, and then what comes."""
        kept = iter(tuple(self._kept))

        async def receive() -> Message:
            for message in kept:
                return message
            message = await self._receive()
            if message["type"] == "http.request":
                self._room -= len(message.get("body", b""))
                self._kept.append(message)
                if not self.whole:
                    self._kept.clear()
            return message

        return receive


class _Answer:
    """What was sent to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    def sender(self, again: Callable[[], bool]) -> Send:
        """Sends, but drops the answer to a conflict of an attempt that is not the last."""

        async def send(message: Message) -> None:
            if not again():
                self.begun = True
                await self._send(message)

        return send


def _response(error: Exception, waited: float) -> JSONResponse | None:
    refusal = refusal_for(error)
    if refusal is None:
        return None
    seconds = min(30, max(1, round(waited)))
    headers = {"Retry-After": str(seconds)} if refusal is BUSY else None
    return JSONResponse({"detail": refusal.detail}, refusal.status, headers)
