"""Tasks that start at once, as asyncio.eager_task_factory makes them, on any loop."""

from __future__ import annotations

import asyncio
from typing import Any


def start_tasks_eagerly() -> None:
    """From now on, for the running loop. Needs Python 3.12.

    uvloop hands ``eager_start`` on, which asyncio.eager_task_factory of Python 3.13.0 refuses.
    """

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **kw: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=loop, **{**kw, "eager_start": True})

    asyncio.get_running_loop().set_task_factory(make)
