"""google-adk keeps sessions and their events in SQLAlchemy."""

from __future__ import annotations

from conftest import File, together
from google.adk.events import Event, EventActions
from google.adk.sessions import DatabaseSessionService
from google.genai import types

SESSIONS, EVENTS = 20, 10


async def test_every_event_and_every_state_is_there(file: File) -> None:
    """Sessions of many users get events at once; each event changes the state of its session."""
    service = DatabaseSessionService(file.url)
    made = await together(
        lambda number: service.create_session(
            app_name="tried", user_id=f"user{number}", session_id=f"session{number}"
        ),
        SESSIONS,
    )

    async def talk(number: int) -> list[str]:
        session, told = made[number], []
        for count in range(EVENTS):
            event = Event(
                author="user",
                content=types.Content(role="user", parts=[types.Part(text=f"{number}/{count}")]),
                actions=EventActions(state_delta={"count": count + 1}),
            )
            appended = await service.append_event(session, event)
            told.append(appended.id)
        return told

    told = [each for ids in await together(talk, SESSIONS) for each in ids]
    for session in made:
        found = await service.get_session(
            app_name="tried", user_id=session.user_id, session_id=session.id
        )
        assert found is not None
        assert found.state["count"] == EVENTS
    await service.close()
    assert sorted(told) == sorted(row[0] for row in file.rows("SELECT id FROM events"))
