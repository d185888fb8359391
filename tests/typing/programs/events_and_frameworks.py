"""Events of the queue, and the integrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiogram import Dispatcher
from aiogram.types import Message
from prometheus_client import CollectorRegistry
from typing_extensions import assert_type

from qsession import QSession, create_async_engine, create_engine, events, qsession
from qsession.ext.aiogram import Sessions, finish
from qsession.ext.aiogram_states import StateStorage
from qsession.ext.logs import log_events
from qsession.ext.opentelemetry import QSessionInstrumentor
from qsession.ext.prometheus import QueueCollector

engine = create_async_engine("sqlite+aiosqlite:///app.db")
waits: list[float] = []


def note(event: events.Event) -> None:
    """An observer."""
    assert_type(event.database, str)
    if isinstance(event, events.TicketWait):
        waits.append(event.seconds)


assert_type(events.subscribe(note), Callable[[], None])

registry = CollectorRegistry()
collector = QueueCollector(engine, registry=registry)
collector.add(create_engine("sqlite:///other.db"), "other")
QSessionInstrumentor().instrument(engine=engine)
log_events()

dispatcher = Dispatcher(storage=StateStorage(qsession))
Sessions(access="auto").setup(dispatcher)


@dispatcher.message(flags={"session": {"attempts": 10}})
async def hello(message: Message, session: QSession) -> Any:
    """A handler with its session."""
    await session.commit()
    return message.answer("done")


@dispatcher.shutdown()
async def stop() -> None:
    """The end."""
    await finish(dispatcher, timeout=10)
    await qsession.engine.drain()


# Mistakes.
events.subscribe(lambda: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Sessions(engine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
