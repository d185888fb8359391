"""Waiting for a lock by polling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.util import await_only

LONGEST_PAUSE = 0.5
"""The longest time between two attempts, in seconds."""
_pause = asyncio.sleep


def wait_until(locked: Callable[[], bool], wait: float) -> bool:
    """Poll until ``locked()`` is true, for up to ``wait`` seconds, else False. In a greenlet."""
    deadline = time.monotonic() + wait
    pause = 0.01
    while not locked():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        await_only(_pause(min(pause, left)))
        pause = min(2 * pause, LONGEST_PAUSE)
    return True
