"""The judge judged: each of these faults is told within a few hundred examples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import hypothesis
import pytest
from checker import Wrong
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from invariants import Broken
from playing import play
from script import casts, stages

from qsession.sqlite.durability.syncer import Syncer
from qsession.sqlite.queue import stall
from qsession.sqlite.transaction import sending
from qsession.waiting.ticket import Ticket

EXAMPLES = int(os.environ.get("MODEL_MUTANT_EXAMPLES", "400"))


async def _waits_for_nothing(syncer: Any, number: int, **kw: Any) -> None:
    """In place of the wait for the disk."""


def _blind_judge(look: Any, *args: Any) -> Any:
    return _judge(replace(look, claimed=False), *args)


_judge = stall.judge
NO_VALIDATION = ((sending, "_find_conflict", lambda *args: None),)
NO_FSYNC = ((Syncer, "wait", _waits_for_nothing),)
TAKEN_FROM_WRITERS = (
    (Ticket, "lose", lambda ticket: True),
    (stall, "judge", _blind_judge),
)


@contextmanager
def mutated(mutant: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for target, name, stand_in in mutant:
            stack.enter_context(mock.patch.object(target, name, stand_in))
        yield


@pytest.mark.parametrize(
    ("mutant", "told"),
    [
        pytest.param(NO_VALIDATION, "commit|whole", id="no validation"),
        pytest.param(NO_FSYNC, "before it was on the disk", id="no fsync"),
        pytest.param(TAKEN_FROM_WRITERS, "its ticket is|given up", id="taken from writers"),
    ],
)
def test_each_mutant_is_caught(mutant: Any, told: str) -> None:
    """A library with one fault is caught, by what users see of it where they see it."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(1)
    @given(stage=stages, cast=casts, seed=st.integers(0, 2**32))
    def check(stage: Any, cast: Any, seed: int) -> None:
        play(stage, cast, seed)

    with mutated(mutant), pytest.raises((Wrong, Broken, AssertionError), match=told):
        check()
