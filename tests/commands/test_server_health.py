"""What `qsession doctor` says of a server that it cannot ask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sqlalchemy import make_url

from qsession import QueueTimeout
from qsession.commands import server_health


async def test_a_server_that_does_not_answer_is_not_called_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of qsession has an ``orig`` for retry code, which speaks of SQLite."""

    def connect() -> None:
        raise QueueTimeout("The server cannot be reached")

    async def dispose() -> None:
        """There is nothing to close."""

    engine = SimpleNamespace(connect=connect, dispose=dispose)
    monkeypatch.setattr(server_health, "create_async_engine", lambda *_, **__: engine)
    (finding,) = await server_health.examine_server(make_url("postgresql+asyncpg://h/app"))
    assert finding.found == "The server cannot be reached"
