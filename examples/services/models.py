"""What the two services share: the table, and how they end."""

from __future__ import annotations

import asyncio
import signal

from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base


class Job(Base):
    """Something to be done, once."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    done_by: Mapped[str | None]


def on_sigterm() -> asyncio.Event:
    """Set when the service is to end."""
    told = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, told.set)
    return told
