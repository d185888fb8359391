"""openai-agents keeps its conversations in SQLAlchemy."""

from __future__ import annotations

import json

from agents.extensions.memory import SQLAlchemySession
from conftest import File, together

CONVERSATIONS, TURNS = 20, 10


async def test_every_item_that_was_added_is_there(file: File) -> None:
    """Twenty conversations at once, two items a turn, over one engine that the URL names."""
    first = SQLAlchemySession.from_url("0", url=file.url, create_tables=True)
    engine = first.engine

    async def turn(number: int) -> tuple[str, str]:
        conversation, which = str(number % CONVERSATIONS), number // CONVERSATIONS
        session = SQLAlchemySession(conversation, engine=engine, create_tables=True)
        await session.add_items(
            [
                {"role": "user", "content": f"question {which}"},
                {"role": "assistant", "content": f"answer {which}"},
            ]
        )
        return conversation, f"question {which}"

    told = await together(turn, CONVERSATIONS * TURNS)
    for conversation in range(CONVERSATIONS):
        items = await SQLAlchemySession(str(conversation), engine=engine).get_items()
        assert len(items) == 2 * TURNS
        roles = [item["role"] for item in items]
        assert roles == ["user", "assistant"] * TURNS, "what was added together is together"
    await engine.dispose()
    kept = file.rows("SELECT session_id, message_data FROM agent_messages")
    assert sorted(told) == sorted(
        (conversation, json.loads(data)["content"])
        for conversation, data in kept
        if json.loads(data)["role"] == "user"
    )
