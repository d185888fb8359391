"""Waiting for a lock that can only be asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.util import await_only

LONGEST_PAUSE = 0.5
"""Seconds between two looks at the lock, at the most."""
_pause = asyncio.sleep


def wait_until(locked: Callable[[], bool], wait: float) -> bool:
    """Ask until it is so, for ``wait`` seconds; False if it never was. In a greenlet."""
    deadline = time.monotonic() + wait
    pause = 0.01
    while not locked():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        await_only(_pause(min(pause, left)))
        pause = min(2 * pause, LONGEST_PAUSE)
    return True
