"""A primary of PostgreSQL with two standbys, for the tests of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from own_postgresql import own_postgresql, own_standbys
from replica_cluster import Cluster, until

from qsession import QueuedAsyncEngine
from qsession.servers import replica


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A primary with two standbys."""
    with own_postgresql() as primary, own_standbys(primary, 2) as standbys:
        yield Cluster(primary, standbys)


@pytest.fixture
async def cluster(running: Cluster) -> AsyncIterator[Cluster]:
    """With an empty table everywhere, and nothing left open in the end."""
    running.primary.tell("DROP TABLE IF EXISTS notes", "CREATE TABLE notes (id int)")
    running.catch_up()
    yield running
    made, running.made = running.made, []
    for engine in made:

        async def free(engine: QueuedAsyncEngine = engine) -> bool:
            stats = engine.stats()
            return not stats.in_use + sum(each.in_use for each in stats.replicas)

        await until(free)  # one that hung is closed in the background
        await engine.dispose()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that did not fit is asked again by the next reader."""
    monkeypatch.setattr(replica, "AGAIN", 0)
