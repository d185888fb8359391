"""Stream: the figures for one client as they change, as server-sent events.

See https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

from qsession.ext.dashboard.feed import Feed
from qsession.ext.dashboard.reply import Reply

Receive: TypeAlias = Callable[[], Awaitable[Any]]

STREAMS = 20
"""Streams at a time in each process."""
STREAM_LIFE = 60.0
"""Seconds after which a stream ends. The page asks again, and whether it may is decided anew."""
FAREWELL = 1.0
"""Seconds that the end of a stream may take, for a client that reads nothing any more."""


async def send_stream(feed: Feed, reply: Reply, receive: Receive) -> None:
    """Send the figures until the client has gone, the server stops, or the time is over."""
    if reply.is_for_head:
        await reply.whole(200, b"", "text/event-stream")
        return
    if feed.watching >= STREAMS:
        await reply.whole(503, b"Too many look already.\n", headers={"retry-after": "5"})
        return
    with feed.watch():
        sending = asyncio.create_task(_send(feed, reply))
        gone = asyncio.create_task(_gone(receive))
        try:
            done, _ = await asyncio.wait(
                (sending, gone), timeout=STREAM_LIFE, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
    if gone in done:
        return
    with suppress(OSError, asyncio.TimeoutError):  # the client has gone, or does not read
        if sending in done:
            sending.result()
        await asyncio.wait_for(reply.end(), FAREWELL)


async def _send(feed: Feed, reply: Reply) -> None:
    """Send each state that is newer than the one sent before.

    While ``send`` waits for a slow client, nothing is kept for it.
    """
    await reply.start(200, "text/event-stream", {"x-accel-buffering": "no"})
    await reply.part(b"retry: 1000\n\n")
    version = -1 if feed.state else feed.version
    while True:
        await feed.newer(version)
        if feed.ended:
            return
        version, state = feed.version, feed.state
        await reply.part(b"data: " + state + b"\n\n")


async def _gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
