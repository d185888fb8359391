"""Reply: the answer to one request, with the headers that keep a browser to this page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from qsession.ext.dashboard.access import Scope

Send: TypeAlias = Callable[[Any], Awaitable[None]]

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Reply:
    """Sends it, as a whole or in parts."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.is_for_head = scope["method"] == "HEAD"
        self._send = send

    async def whole(
        self,
        status: int,
        body: bytes,
        kind: str = "text/plain; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send all of it."""
        await self.start(status, kind, {"content-length": str(len(body)), **(headers or {})})
        await self._part(b"" if self.is_for_head else body, more=False)

    async def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        """Send its status and headers."""
        every = {"content-type": kind, **_HEADERS, **headers}
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in every.items()],
            }
        )

    async def part(self, body: bytes) -> None:
        """Send a part of the body."""
        await self._part(body, more=True)

    async def end(self) -> None:
        """Send that the body has ended."""
        await self._part(b"", more=False)

    async def _part(self, body: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
