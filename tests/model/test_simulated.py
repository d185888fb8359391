"""Drawn transactions in a simulated machine: all that they saw and left has a serial order.

MODEL_SECONDS=600 goes on for that long. MODEL_SEED repeats the examples of a run.
"""

from __future__ import annotations

import os
import random
import time

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from playing import play
from script import Play, Stage, casts, stages

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))
EXAMPLES = 300


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(stage=stages, cast=casts, seed=st.integers(0, 2**32))
def check(stage: Stage, cast: list[list[Play]], seed: int) -> None:
    told = play(stage, cast, seed)
    for name, number in told.items():
        hypothesis.event(f"{name}: {min(number, 3) if name != 'steps' else number // 1000}")


def test_every_history_is_serial() -> None:
    """What was acknowledged is there and durable, and everybody saw what a serial order shows."""
    until = time.monotonic() + SECONDS
    seed = SEED
    while True:
        print(f"MODEL_SEED={seed}")
        hypothesis.seed(seed)(check)()
        if time.monotonic() >= until:
            return
        seed += 1
