"""Start the bot: BOT_TOKEN=... python -m examples.bot."""

from __future__ import annotations

import asyncio
import os
import sys

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import PRODUCTION, TelegramAPIServer
from aiogram.fsm.storage.memory import SimpleEventIsolation

from examples.bot.chat import router
from qsession import Base, qsession
from qsession.ext.aiogram import Sessions, finish
from qsession.ext.aiogram_states import StateStorage


async def start() -> None:
    """Open the database."""
    url = os.environ.get("BOT_DATABASE", "sqlite+aiosqlite:///bot.db")
    qsession.configure(url, queue_timeout=10)
    async with qsession.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def stop(dispatcher: Dispatcher) -> None:
    """Finish what was begun, and close the database."""
    await finish(dispatcher, timeout=10)
    await qsession.engine.drain(timeout=10)
    await qsession.dispose()


def make_dispatcher() -> Dispatcher:
    """All that handles updates."""
    dispatcher = Dispatcher(storage=StateStorage(), events_isolation=SimpleEventIsolation())
    Sessions(attempts=10).setup(dispatcher)
    dispatcher.include_router(router)
    dispatcher.startup.register(start)
    dispatcher.shutdown.register(stop)
    return dispatcher


async def main() -> None:
    """Poll until SIGTERM or Ctrl-C."""
    token = os.environ.get("BOT_TOKEN")
    if not token:
        sys.exit("BOT_TOKEN is not set. @BotFather of Telegram gives you one.")
    base = os.environ.get("TELEGRAM_API")
    api = TelegramAPIServer.from_base(base) if base else PRODUCTION
    bot = Bot(token, session=AiohttpSession(api=api))
    await make_dispatcher().start_polling(bot)


if __name__ == "__main__":
    asyncio.run(main())
