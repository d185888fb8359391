"""What qsession costs on a server, in messages to it, beside a session of SQLAlchemy's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from contract_tables import Counter, Database
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import create_async_engine
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers


class Wire:
    """A relay to a server that counts what a client sends: each message waits for its answer."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.sent = 0
        self._relays: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port of the relay, while it listens. In the end its connections are closed."""

        def relay(*streams: Any) -> None:
            self._relays.add(asyncio.create_task(self._relay(*streams)))

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await asyncio.gather(*self._relays)  # the client has closed its end

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.host, self.port)
        copies = self._copy(reader, back, count=True), self._copy(there, writer)
        await asyncio.gather(*copies, return_exceptions=True)  # either end may be gone
        for each in (back, writer):
            each.close()
            await asyncio.gather(each.wait_closed(), return_exceptions=True)

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, count: bool = False
    ) -> None:
        while chunk := await source.read(65536):
            self.sent += count
            target.write(chunk)
            await target.drain()
        target.write_eof()


async def messages(wire: Wire, work: Callable[[], Awaitable[None]]) -> int:
    """How many messages an operation takes, on a connection that has done it before."""
    for _ in range(3):
        await work()
    before = wire.sent
    await work()
    return wire.sent - before


async def test_messages_of_a_transaction(database: Database) -> None:
    """On PostgreSQL isolation costs no message, on MySQL one a transaction."""
    url = make_url(database.url)
    wire = Wire(url.host or "", url.port or 0)
    async with wire.listening() as port:
        engine = create_async_engine(url.set(port=port), max_size=1)
        maker = SessionMaker(bind=engine)
        query = select(Counter.value).where(Counter.id == 1)

        async def plain() -> None:
            async with AsyncSession(engine) as s:
                await s.scalar(query)
                await s.commit()

        async def written() -> None:
            async with maker() as s:
                await s.scalar(query)
                await s.commit()

        async def read() -> None:
            async with maker.reader() as s:
                await s.scalar(query)
                await s.commit()

        counts = [await messages(wire, each) for each in (plain, written, read, plain)]
        await engine.dispose()
    extra = 0 if "postgresql" in database.driver else 1
    assert counts[3] == counts[0]
    assert counts[1:3] == [counts[0] + extra] * 2
