"""examples/bot: started as its README says, used over HTTP, and by its dispatcher."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import updates
from cancelling import assert_free, rows
from folders import ROOT
from telegram_server import TelegramServer

FLAT = -1001234567890
PEOPLE = range(1, 8)
"""Seven, so that most amounts cannot be split evenly."""
EACH = 50
README = ROOT / "examples" / "bot" / "README.md"


def started(database: Path, telegram: TelegramServer) -> subprocess.Popen[Any]:
    """The bot, by the command of its README."""
    (line,) = re.findall(r"^BOT_TOKEN=.+$", README.read_text(), re.MULTILINE)
    token, python, *arguments = shlex.split(line)
    assert python == "python"
    environment = {
        **os.environ,
        "BOT_TOKEN": token.removeprefix("BOT_TOKEN="),
        "BOT_DATABASE": f"sqlite+aiosqlite:///{database}",
        "TELEGRAM_API": telegram.url,
    }
    return subprocess.Popen([sys.executable, "-W", "error", *arguments], cwd=ROOT, env=environment)


@contextmanager
def running(database: Path, telegram: TelegramServer) -> Iterator[subprocess.Popen[Any]]:
    """The bot, killed at the end if it still runs."""
    bot = started(database, telegram)
    try:
        yield bot
    finally:
        bot.kill()
        bot.wait()


async def ended(bot: subprocess.Popen[Any]) -> int:
    """Wait without stopping the loop, on which the server runs."""
    return await asyncio.to_thread(bot.wait, 60)


def say(person: int, text: str) -> dict[str, Any]:
    """A message in the group."""
    return updates.message(text, user=person, chat=FLAT)


def spent(number: int) -> dict[str, Any]:
    """One of many expenses, each of another amount."""
    person = PEOPLE[number % len(PEOPLE)]
    return say(person, f"/paid {number + 1}.{number % 100:02d} meal {number}")


def check(database: Path, expenses: int) -> dict[int, int]:
    """The books add up, seen from outside. Returns the balances."""
    assert_free(database)
    assert rows(database, "SELECT count(*) FROM expenses") == [(expenses,)]
    assert rows(database, "SELECT sum(balance) FROM members") == [(0,)]
    assert (
        rows(database, "SELECT 1 FROM entries GROUP BY chat, message HAVING sum(cents) <> 0") == []
    )
    by_entries = 'SELECT "user", sum(cents) FROM entries GROUP BY "user"'
    balances = dict(rows(database, 'SELECT "user", balance FROM members'))
    assert {**dict.fromkeys(balances, 0), **dict(rows(database, by_entries))} == balances
    return balances


async def test_the_command_of_the_readme(tmp_path):
    """Hundreds of messages at once, by HTTP: each is noted once, and who owes what adds up."""
    database = tmp_path / "bot.db"
    async with TelegramServer.running() as telegram:
        with running(database, telegram) as bot:
            telegram.put(*(say(person, "/join") for person in PEOPLE))
            await telegram.until(len(PEOPLE))
            many = EACH * len(PEOPLE)
            messages = [spent(number) for number in range(many)]
            telegram.put(*messages)
            await telegram.until(len(PEOPLE) + many)
            answers = {each["text"] for each in telegram.sent[len(PEOPLE) :]}
            assert answers == {f"Noted: {n + 1}.{n % 100:02d} for meal {n}" for n in range(many)}
            balances = check(database, many)
            assert any(balances.values())

            telegram.put(say(1, "/balance"))
            await telegram.until(len(telegram.sent) + 1)
            lines = telegram.sent[-1]["text"].splitlines()
            assert lines == [f"U{each}: {money(cents)}" for each, cents in sorted(balances.items())]
            telegram.put(say(1, "/paid"))
            await telegram.until(len(telegram.sent) + 1)
            telegram.put(say(1, "twelve"))
            await telegram.until(len(telegram.sent) + 1)
            telegram.put(say(1, "12,5 soap"))
            await telegram.until(len(telegram.sent) + 1)
            assert [each["text"] for each in telegram.sent[-3:]] == [
                "How much, and for what?",
                "Write an amount and what it was for: 12.50 pizza",
                "Noted: 12.50 for soap",
            ]
            check(database, many + 1)
            assert rows(database, "SELECT * FROM aiogram_states") == []

            telegram.put(say(1, "/settle"))
            await telegram.until(len(telegram.sent) + 1)
            owed = check(database, many + 1)
            pattern = r"U(\d) pays U(\d) (\d+)\.(\d\d)"
            for a, b, units, cents in re.findall(pattern, telegram.sent[-1]["text"]):
                owed[int(a)] += int(units + cents)
                owed[int(b)] -= int(units + cents)
            assert set(owed.values()) == {0}

            bot.send_signal(signal.SIGTERM)
            assert await ended(bot) == 0


async def test_stopped_and_killed_in_the_midst(tmp_path):
    """By SIGTERM, then by SIGKILL. What was answered is in the file; what is sent again is once."""
    database = tmp_path / "bot.db"
    many = EACH * len(PEOPLE)
    messages = [spent(number) for number in range(many)]
    async with TelegramServer.running() as telegram:
        telegram.put(*(say(person, "/join") for person in PEOPLE))
        with running(database, telegram) as bot:
            await telegram.until(len(PEOPLE))
            telegram.put(*messages)
            await telegram.until(len(PEOPLE) + 20)
            bot.send_signal(signal.SIGTERM)
            assert await ended(bot) == 0
        answered = {each["text"] for each in telegram.sent[len(PEOPLE) :]}
        first = messages[0]["update_id"]
        taken = [f"Noted: {n + 1}.{n % 100:02d} for meal {n}" for n in range(many)]
        assert set(taken[: telegram.confirmed - first + 1]) <= answered  # all that it has taken
        assert rows(database, "SELECT count(*) FROM expenses")[0][0] == len(answered)
        assert sum(check(database, len(answered)).values()) == 0

        telegram.sent.clear()
        with running(database, telegram) as bot:  # Telegram repeats what was not confirmed
            await telegram.until(min(20, len(telegram.updates)))
            bot.kill()
            await ended(bot)
        kept = rows(database, "SELECT cents, what FROM expenses")
        told = {f"Noted: {money(cents)} for {what}" for cents, what in kept}
        assert answered | {each["text"] for each in telegram.sent} <= told
        check(database, rows(database, "SELECT count(*) FROM expenses")[0][0])

        telegram.sent.clear()
        telegram.updates = messages  # after a crash of its own it may repeat all
        telegram.put(say(1, "/help"))
        with running(database, telegram) as bot:
            await telegram.until(many + 1)
            bot.send_signal(signal.SIGTERM)
            assert await ended(bot) == 0
        check(database, many)


DISPATCHER = """
import asyncio, sys
import updates
from examples.bot.__main__ import make_dispatcher

async def main(people, each):
    dispatcher = make_dispatcher()
    bot, requests = updates.bot()
    await dispatcher.emit_startup(dispatcher=dispatcher)

    async def say(person, text):
        message = updates.message(text, user=person, chat=-7)
        twice = [dispatcher.feed_webhook_update(bot, message) for _ in range(2)]
        return {answer.text for answer in await asyncio.gather(*twice)}

    said = [say(n % people + 1, f"/paid {n}.01 meal {n}") for n in range(1, people * each + 1)]
    answers = await asyncio.gather(*said)
    assert answers == [{f"Noted: {n}.01 for meal {n}"} for n in range(1, people * each + 1)]
    await dispatcher.emit_shutdown(dispatcher=dispatcher)

asyncio.run(main(*map(int, sys.argv[1:])))
"""
"""In a process of its own, as its tables belong to the Base that all models share."""


def test_the_dispatcher_with_each_message_twice(tmp_path):
    """Nobody has joined before, all messages come at once, and each comes twice together."""
    database = tmp_path / "bot.db"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", DISPATCHER, str(len(PEOPLE)), str(EACH)],
        cwd=ROOT,
        env={
            **os.environ,
            "BOT_DATABASE": f"sqlite+aiosqlite:///{database}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
        check=True,
        timeout=120,
    )
    check(database, EACH * len(PEOPLE))


def money(cents: int) -> str:
    """As the bot writes it."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"
