"""The list as a stream: a new one after each change, whichever process has made it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from examples.web.models import Thing
from examples.web.page import listing
from qsession import observe
from qsession.ext.dashboard.feed import server_stops

router = APIRouter()
QUIET = 15.0
"""Seconds after which a client is told that nothing has changed, so that proxies keep it."""
STEP = 0.5
"""Seconds between two looks whether the server is told to end, which waits for open streams."""


@router.get("/live")
async def live() -> StreamingResponse:
    """Server-sent events. Each has the list as HTML, in a JSON string."""
    return StreamingResponse(events(), media_type="text/event-stream")


async def events() -> AsyncIterator[str]:
    quiet = 0.0
    async with observe(select(Thing).order_by(Thing.bought, Thing.name)).scalars() as lists:
        while not server_stops():
            try:
                things = await asyncio.wait_for(anext(lists), STEP)
            except asyncio.TimeoutError:
                quiet += STEP
                if quiet >= QUIET:
                    quiet = 0.0
                    yield ": nothing has changed\n\n"
            except StopAsyncIteration:  # the engine was disposed of
                return
            else:
                quiet = 0.0
                yield f"data: {json.dumps(listing(things))}\n\n"
