"""Optuna: several processes, each with threads, optimise one study in one file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import PATIENCE, File

PROCESSES, TRIALS, THREADS = 3, 20, 4
WORKER = """
import os, sys
import optuna

def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    trial.report(x * x, 0)
    trial.set_user_attr("process", os.getpid())
    return x * x

def told(study, trial):
    os.write(1, f"{trial.number}\\n".encode())  # at once, or not at all

study = optuna.create_study(study_name="study", storage=sys.argv[1], load_if_exists=True)
study.optimize(objective, int(sys.argv[2]), n_jobs=int(sys.argv[3]), callbacks=[told])
"""


def start(file: File, out: Path) -> subprocess.Popen[bytes]:
    """A process that optimises, and writes the number of each trial that it was told is done."""
    command = [sys.executable, "-c", WORKER, file.url, str(TRIALS), str(THREADS)]
    with out.open("wb") as told:
        return subprocess.Popen(command, stdout=told)


def numbers(out: Path) -> list[int]:
    return [int(line) for line in out.read_text().splitlines()]


def test_processes_make_the_tables_and_share_a_study(file: File, tmp_path: Path) -> None:
    """All make the tables at once; each trial has a number of its own, and none is lost."""
    outs = [tmp_path / f"out {number}" for number in range(PROCESSES)]
    processes = [start(file, out) for out in outs]
    assert [process.wait(PATIENCE) for process in processes] == [0] * PROCESSES
    told = [number for out in outs for number in numbers(out)]
    assert sorted(told) == list(range(PROCESSES * TRIALS))
    assert file.rows("SELECT state, count(DISTINCT number) FROM trials GROUP BY state") == [
        ("COMPLETE", PROCESSES * TRIALS)
    ]


def test_a_process_that_is_killed_delays_nobody(file: File, tmp_path: Path) -> None:
    """What it was told is done is there, and the others do all of theirs."""
    outs = [tmp_path / f"out {number}" for number in range(PROCESSES)]
    processes = [start(file, out) for out in outs]
    until = time.monotonic() + PATIENCE
    while len(numbers(outs[0])) < TRIALS // 4 and time.monotonic() < until:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    assert [process.wait(PATIENCE) for process in processes[1:]] == [0] * (PROCESSES - 1)
    processes[0].wait(PATIENCE)
    told = {number for out in outs for number in numbers(out)}
    done = {number for (number,) in file.rows("SELECT number FROM trials WHERE state = 'COMPLETE'")}
    assert told <= done
    assert len(told) >= (PROCESSES - 1) * TRIALS + TRIALS // 4
