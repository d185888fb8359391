"""Updates as Telegram sends them, and a bot whose requests go nowhere."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from aiogram import Bot
from aiogram.client.session.base import BaseSession
from aiogram.types import Update, User

ME = User(id=42, is_bot=True, first_name="Bot", username="a_bot")
numbers = count(1)


def message(text: str, user: int = 7, chat: int = 7, **more: Any) -> dict[str, Any]:
    """An update with a message of `user`, in a private chat or in a group."""
    number = next(numbers)
    sender = {"id": user, "is_bot": False, "first_name": f"U{user}", "username": f"user{user}"}
    where = {"id": chat, "type": "private"} if chat > 0 else {"id": chat, "type": "supergroup"}
    return {
        "update_id": number,
        "message": {
            "message_id": number,
            "date": 1_700_000_000,
            "chat": where if chat > 0 else {**where, "title": "Flat"},
            "from": sender,
            "text": text,
            **more,
        },
    }


def parsed(update: dict[str, Any], bot: Bot) -> Update:
    """As getUpdates returns it."""
    return Update.model_validate(update, context={"bot": bot})


def press(data: str, user: int = 7) -> dict[str, Any]:
    """An update with a button that was pressed."""
    number = next(numbers)
    sender = {"id": user, "is_bot": False, "first_name": f"U{user}"}
    query = {"id": str(number), "from": sender, "chat_instance": "1", "data": data}
    return {"update_id": number, "callback_query": query}


class Requests(BaseSession):
    """Keeps what a bot would send. Each request waits until `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.begun = 0
        self.free = asyncio.Event()
        self.free.set()

    async def make_request(self, bot: Bot, method: Any, timeout: Any = None) -> Any:
        self.begun += 1
        await self.free.wait()
        self.texts.append(getattr(method, "text", ""))

    async def stream_content(self, *args: Any, **kw: Any) -> Any:
        yield b""

    async def close(self) -> None:
        pass


def bot() -> tuple[Bot, Requests]:
    """A bot, and what it sends."""
    requests = Requests()
    return Bot("42:TEST", session=requests), requests
