"""arize-phoenix takes spans over HTTP, through SQLAlchemy and a SQLite library of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
from conftest import File, free_port, served, together

SPANS = 200


def span(number: int) -> dict[str, object]:
    """A span as its client sends it."""
    return {
        "name": f"span {number}",
        "context": {"trace_id": f"{number:032x}", "span_id": f"{number + 1:016x}"},
        "span_kind": "LLM",
        "start_time": "2026-01-01T00:00:00Z",
        "end_time": "2026-01-01T00:00:01Z",
        "status_code": "OK",
        "attributes": {},
    }


async def test_every_span_that_was_acknowledged_is_in_the_file(file: File, tmp_path: Path) -> None:
    """Spans come one by one and many at once, and readers look at the projects meanwhile."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_SQL_DATABASE_URL": f"sqlite:///{file.path}",
        "PHOENIX_PORT": str(port),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    server = [str(Path(__file__).with_name("phoenix_server.py")), "serve"]
    with served(server, ready, tmp_path / "log", **environment):
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            made = await client.post("/v1/projects", json={"name": "tried"})
            assert made.status_code == 200, made.text

            async def send(number: int) -> str:
                answer = await client.post(
                    "/v1/projects/tried/spans", json={"data": [span(number)]}
                )
                assert answer.status_code == 202, answer.text
                assert (await client.get("/v1/projects")).status_code == 200
                return f"{number + 1:016x}"

            told = await together(send, SPANS)
    kept = {row[0] for row in file.rows("SELECT span_id FROM spans")}
    assert kept == set(told)
    assert "database is locked" not in (tmp_path / "log").read_text(errors="replace")
