"""A Telegram of the tests' own: the Bot API over HTTP, on a free port of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class TelegramServer:
    """Hands out updates as getUpdates does, and keeps what the bot sends."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []
        """What the bot has not confirmed yet."""
        self.confirmed = 0
        """The number of the last update that the bot has confirmed: it is not sent again."""
        self.sent: list[dict[str, str]] = []
        self.changed = asyncio.Event()
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[TelegramServer]:
        """One that runs until the end of the block."""
        self = cls()
        application = web.Application()
        application.router.add_post("/bot{token}/{method}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def put(self, *updates: dict[str, Any]) -> None:
        """From now on the bot gets these as well."""
        self.updates += updates
        self._change()

    async def until(self, number: int) -> None:
        """Wait until the bot has sent so many messages."""
        while len(self.sent) < number:
            await self.changed.wait()

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        method = request.match_info["method"]
        result: Any = True
        if method == "getMe":
            result = {"id": 42, "is_bot": True, "first_name": "Bot", "username": "a_bot"}
        elif method == "getUpdates":
            result = await self._next(int(form.get("offset", 0)))
        elif method == "sendMessage":
            self.sent.append(form)
            self._change()
            chat = {"id": int(form["chat_id"]), "type": "supergroup", "title": "Flat"}
            result = {"message_id": len(self.sent), "date": 1_700_000_000, "chat": chat}
            result["text"] = form["text"]
        return web.json_response({"ok": True, "result": result})

    async def _next(self, offset: int) -> list[dict[str, Any]]:
        self.confirmed = max(self.confirmed, offset - 1)
        self.updates = [each for each in self.updates if each["update_id"] >= offset]
        while not self.updates:
            await self.changed.wait()
        return self.updates[:100]
