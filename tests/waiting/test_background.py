"""Background: what a thread that calls may rely on."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar

import pytest
from sqlalchemy.util import await_only
from threads import Interrupted, interruptible, result, start

from qsession.waiting.background import Background
from qsession.waiting.callers import current_call, current_caller, frames_of, name_of

background = Background()
variable: ContextVar[str] = ContextVar("variable", default="nothing")


def test_what_a_function_returns_and_raises_comes_back() -> None:
    """As if it were called here; but it runs on a loop, in another thread."""
    assert background.run(threading.get_ident) != threading.get_ident()
    assert background.run(lambda: await_only(asyncio.sleep(0, "waited"))) == "waited"
    with pytest.raises(ZeroDivisionError):
        background.run(lambda: 1 // 0)


def test_nothing_is_kept_of_a_call() -> None:
    """Neither what it returned nor what it raised, without a run of the garbage collector."""

    class Thing(Exception):
        pass

    def fails() -> None:
        raise Thing

    gc.disable()
    try:
        kept = weakref.ref(background.run(Thing))
        try:
            background.run(fails)
        except Thing as error:
            failed = weakref.ref(error)
        background.run(lambda: None)
        assert kept() is None
        assert failed() is None
    finally:
        gc.enable()


def test_it_runs_in_the_context_of_the_caller() -> None:
    """What is set here is seen there, and what is set there is set here, also if it fails."""

    def change(value: str) -> str:
        before = variable.get()
        variable.set(value)
        if value == "failed":
            raise ValueError(value)
        return before

    token = variable.set("here")
    try:
        assert background.run(lambda: change("there")) == "here"
        assert variable.get() == "there"
        with pytest.raises(ValueError, match="failed"):
            background.run(lambda: change("failed"))
        assert variable.get() == "failed"
    finally:
        variable.reset(token)


def test_functions_of_several_threads_run_at_the_same_time() -> None:
    """Each waits for all the others."""
    together = []
    everybody = asyncio.Event()

    def arrive() -> None:
        together.append(None)
        if len(together) == 8:
            everybody.set()
        await_only(everybody.wait())

    for each in [start(background.run, arrive) for _ in range(8)]:
        result(each)


def test_on_the_loop_itself_it_is_a_plain_call() -> None:
    """Waiting for the loop in the loop would never end."""
    assert background.run(lambda: background.run(lambda: await_only(asyncio.sleep(0, 1)))) == 1


def test_the_caller_is_the_thread_that_waits() -> None:
    """By name, and by where it stands, as it is told of a task."""
    caller = result(start(background.run, current_caller, name="caller"))
    assert name_of(caller) == "thread 'caller'"
    assert caller is not None
    assert caller.done()
    assert not list(frames_of(caller))

    def stands() -> list[str]:
        return [code.co_name for code, _ in frames_of(current_caller())]

    assert "test_the_caller_is_the_thread_that_waits" in background.run(stands)
    assert current_call() is None


async def test_the_caller_is_the_task_where_a_loop_runs() -> None:
    """The task stands still with its loop."""
    call = background.run(current_call)
    assert call is not None
    assert call.stopped is asyncio.get_running_loop()
    assert call.caller is asyncio.current_task()
    assert background.run(current_caller) is asyncio.current_task()


def run_interrupted(function: Callable[[], None], seen: list[str]) -> None:
    """Run it, and interrupt the thread once it has noted something."""
    with interruptible() as interrupt_when:
        interrupt_when(lambda: seen)
        with pytest.raises(Interrupted):
            background.run(function, lambda: seen.append("lost"))


def test_interrupted_it_is_cancelled_and_its_end_is_waited_for() -> None:
    """The exception of the signal handler goes on only when nothing runs any more."""
    seen: list[str] = []

    def function() -> None:
        seen.append("begun")
        try:
            await_only(asyncio.Event().wait())
        except asyncio.CancelledError:
            await_only(asyncio.sleep(0))
            seen.append("cleaned up")
            raise

    run_interrupted(function, seen)
    assert seen == ["begun", "cleaned up"]
    assert background.run(lambda: "works") == "works"


def test_what_an_interrupted_thread_does_not_get_to_know_is_told() -> None:
    """A function that runs to its end through the cancellation, as a COMMIT does."""
    seen: list[str] = []

    def function() -> None:
        seen.append("begun")
        try:
            await_only(asyncio.Event().wait())
        except asyncio.CancelledError:
            seen.append("ended well")

    run_interrupted(function, seen)
    assert seen == ["begun", "ended well", "lost"]


FORKS = """
import asyncio, os, sys, threading
from qsession.waiting.background import Background

background = Background()
first = background.run(asyncio.get_running_loop)
standing = threading.Event()

def child():
    assert background.run(asyncio.get_running_loop) is not first
    os._exit(7)

def fork():
    "In a thread, while the loop is at work: the fork waits for the end of its step."
    standing.wait()
    pid = os.fork()
    if not pid:
        child()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes = []
thread = threading.Thread(target=lambda: codes.append(fork()))
thread.start()
background.run(standing.set)
thread.join()
assert codes == [7], codes
assert background.run(asyncio.get_running_loop) is first
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """And the parent keeps the one that it has."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
