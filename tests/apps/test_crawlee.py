"""Crawlee keeps its queue of requests and its results in SQLAlchemy, for several processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from conftest import PATIENCE, File
from crawlee.configuration import Configuration
from crawlee.storage_clients import SqlStorageClient
from crawlee.storages import Dataset, RequestQueue

CRAWLERS, REQUESTS = 25, 200


async def crawl(url: str) -> int:
    """Handle requests until the queue is empty. How many it was, also printed as they are done."""
    settings = Configuration(purge_on_start=False)
    handled = 0
    async with SqlStorageClient(connection_string=url) as client:
        queue = await RequestQueue.open(name="q", storage_client=client, configuration=settings)
        pages = await Dataset.open(name="d", storage_client=client, configuration=settings)
        await queue.add_requests(
            [f"https://example.com/{number}" for number in range(REQUESTS)],
            wait_for_all_requests_to_be_added=True,
        )

        async def crawler() -> None:
            nonlocal handled
            while (request := await queue.fetch_next_request()) is not None:
                await pages.push_data({"url": request.url})
                await queue.mark_request_as_handled(request)
                handled += 1
                print(request.url, flush=True)

        await asyncio.gather(*(crawler() for _ in range(CRAWLERS)))
    return handled


async def test_what_a_killed_crawler_has_handled_stays(file: File, tmp_path: Path) -> None:
    """Two processes share a queue, and one of them is killed. No page is there twice."""
    log = tmp_path / "log"
    with log.open("w") as out:
        other = await asyncio.create_subprocess_exec(
            sys.executable, __file__, file.url, stdout=out, cwd=tmp_path
        )

    async def kill() -> None:
        try:
            while log.read_text().count("\n") < 20:
                assert other.returncode is None
                await asyncio.sleep(0.01)
        finally:
            other.kill()
            await other.wait()

    async def here() -> int:
        while not file.path.exists():
            await asyncio.sleep(0.01)
        return await crawl(file.url)

    handled, _ = await asyncio.wait_for(asyncio.gather(here(), kill()), PATIENCE)
    told = set(log.read_text().split("\n")[:-1])
    pages = [url for (url,) in file.rows("SELECT json_extract(data, '$.url') FROM dataset_records")]
    done = file.rows(
        "SELECT json_extract(data, '$.url') FROM request_queue_records WHERE is_handled"
    )
    assert file.rows("SELECT count(*) FROM request_queue_records") == [(REQUESTS,)]
    assert told <= {url for (url,) in done} <= set(pages)
    assert len(set(pages)) == len(pages) >= handled + len(told)


if __name__ == "__main__":
    asyncio.run(crawl(sys.argv[1]))
