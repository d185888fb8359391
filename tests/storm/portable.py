"""An engine that takes its turns as on Windows, for `process_worker.py`."""

from __future__ import annotations

from qsession import create_async_engine
from qsession.sqlite.processes import locking

__all__ = ["create_async_engine"]

locking.system = locking.Portable()
