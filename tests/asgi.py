"""One request to an ASGI application, by hand: what comes in when, and what was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any


class Exchange:
    """A request, and the answer to it. ``hang_up`` ends the connection."""

    def __init__(self, method: str, path: str, chunks: Sequence[bytes] = (b"",)) -> None:
        headers = [(b"content-type", b"application/json")]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "state": {},
        }
        self.coming = [
            {"type": "http.request", "body": chunk, "more_body": n < len(chunks)}
            for n, chunk in enumerate(chunks, 1)
        ]
        self._gone = asyncio.Event()
        self.sent: list[Any] = []

    def hang_up(self) -> None:
        """As a client that closes its connection."""
        self._gone.set()

    async def receive(self) -> Any:
        """As a server: what is left of the body, and then nothing until the client is gone."""
        if self._gone.is_set() or not self.coming:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        return self.coming.pop(0)

    async def send(self, message: Any) -> None:
        """As a server."""
        await asyncio.sleep(0)
        self.sent.append(message)

    async def through(self, app: Any) -> Exchange:
        """Ask an application; returns this exchange. Its errors are raised, as a server logs."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        """The status of the answer; 0 if there is none."""
        return next((each["status"] for each in self.sent if "status" in each), 0)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        found = next(each["headers"] for each in self.sent if "status" in each)
        return {name.decode(): value.decode() for name, value in found}

    @property
    def body(self) -> bytes:
        """All that was sent."""
        return b"".join(each.get("body", b"") for each in self.sent)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def ask(app: Any, method: str, path: str, body: Any = None) -> Exchange:
    """A request with a body of JSON, or none."""
    given = b"" if body is None else json.dumps(body).encode()
    return await Exchange(method, path, (given,)).through(app)
