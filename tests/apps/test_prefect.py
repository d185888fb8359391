"""Prefect's server, with nothing changed but the URL of its database."""

from __future__ import annotations

from pathlib import Path

import httpx
from conftest import File, free_port, served, together

RUNS = 100


async def test_every_run_that_was_acknowledged_is_in_the_file(file: File, tmp_path: Path) -> None:
    """A hundred flow runs are made at once, and each goes through two states."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_API_DATABASE_CONNECTION_URL": file.url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": api,
        "NO_COLOR": "1",
    }
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]

    def ready() -> bool:
        try:
            return httpx.get(f"{api}/ready").status_code == 200
        except httpx.HTTPError:
            return False

    with served([*command, "--no-ui"], ready, tmp_path / "log", **environment):
        async with httpx.AsyncClient(base_url=api, timeout=120) as client:
            flow = (await client.post("/flows/", json={"name": "tried"})).json()["id"]

            async def run(number: int) -> str:
                made = await client.post(
                    "/flow_runs/",
                    json={"flow_id": flow, "name": f"run {number}", "state": {"type": "PENDING"}},
                )
                assert made.status_code == 201, made.text
                run = str(made.json()["id"])
                for state in ("RUNNING", "COMPLETED"):
                    answer = await client.post(
                        f"/flow_runs/{run}/set_state", json={"state": {"type": state}}
                    )
                    assert answer.status_code == 201, answer.text
                    assert answer.json()["status"] == "ACCEPT", answer.text
                return run

            told = await together(run, RUNS)
    kept = {row[0] for row in file.rows("SELECT id FROM flow_run WHERE state_type = 'COMPLETED'")}
    assert {each.replace("-", "") for each in told} == {str(each).replace("-", "") for each in kept}
    assert "database is locked" not in (tmp_path / "log").read_text(errors="replace")
