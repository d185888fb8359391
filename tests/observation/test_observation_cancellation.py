"""An observer is cancelled at each of its suspensions."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from cancelling import settled
from observing import NEVER, Ground, Parent, soon
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from qsession.testing import When, cancel_at

COUNT = select(func.count()).select_from(Parent)
MOST = 200
"""Suspensions of one scenario at the most."""


@pytest.mark.parametrize("when", When)
async def test_a_step_is_cancelled(tmp_path: Path, when: When) -> None:
    """Nothing is held afterwards, and the same observer goes on and misses no commit."""
    ground = await Ground.ready(tmp_path / "a.db", pool_size=1, max_overflow=0)
    statement = select(Parent).options(selectinload(Parent.children))
    seen = 0
    for n in range(1, MOST):
        rows = ground.maker.observe(statement, look_every=NEVER)

        async def steps(rows: Any = rows, number: int = seen) -> None:
            assert len(await anext(rows)) == number
            await ground.add(Parent())
            assert len(await anext(rows)) == number + 1

        over = await cancel_at(steps(), n, when)
        await settled(ground.engine)
        async with ground.maker.reader() as s:
            seen = await s.scalar(COUNT) or 0
        rows._last = None  # the last result may have been lost with its task
        if rows._subscription is not None:
            rows._subscription.tell(None)
        assert len(await soon(anext(rows))) == seen
        await ground.add(Parent())
        seen += 1
        assert len(await soon(anext(rows))) == seen
        await rows.aclose()
        if over:
            break
    else:
        pytest.fail("it never came to an end")
    assert n > 5
    await ground.close()


@pytest.mark.parametrize("when", When)
async def test_a_commit_is_cancelled(tmp_path: Path, when: When) -> None:
    """Whether it took place or not, the observer ends with the state of the file."""
    ground = await Ground.ready(tmp_path / "a.db")
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    seen = (await soon(anext(rows)))[0][0]
    for n in range(1, MOST):
        over = await cancel_at(ground.add(Parent()), n, when)
        await settled(ground.engine)
        async with ground.maker.reader() as s:
            now = await s.scalar(COUNT)
        if now != seen:
            assert await soon(anext(rows)) == [(now,)]
            seen = now
        if over:
            break
    else:
        pytest.fail("it never came to an end")
    await rows.aclose()
    await ground.close()


@pytest.mark.parametrize("when", When)
async def test_changed_is_cancelled_anywhere(tmp_path: Path, when: When) -> None:
    """Nothing of it stays."""
    ground = await Ground.ready(tmp_path / "a.db", pool_size=1, max_overflow=0)

    async def change() -> None:
        while not [each for each in ground.commits._live() if each._tables]:
            await asyncio.sleep(0)
        await ground.add(Parent())

    for n in range(1, MOST):
        # A task of its own: how often it waits depends on the speed of the machine.
        changing = asyncio.create_task(change())
        over = await cancel_at(ground.maker.changed(Parent, look_every=NEVER), n, when)
        if not over:
            changing.cancel()
        await asyncio.wait([changing])
        gc.collect()
        await ground.settled()
        if over:
            changing.result()
            break
    else:
        pytest.fail("it never came to an end")
    assert n > 1
    await ground.close()
