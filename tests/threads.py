"""Threads for the tests of the synchronous engine: started, waited for, and their errors told."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

PATIENCE = 60.0
"""Seconds after which something that does not happen is taken for stuck."""
T = TypeVar("T")


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        threading.Event().wait(0.001)


def start(function: Callable[..., T], *args: Any, name: str | None = None) -> Future[T]:
    """Run a function in a thread of its own; ``result()`` waits for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def result(future: Future[T]) -> T:
    """What came of it."""
    return future.result(PATIENCE)


class Interrupted(BaseException):
    """What a signal handler raises in the main thread, as Ctrl-C raises KeyboardInterrupt."""


@contextmanager
def interruptible(
    error: type[BaseException] = Interrupted,
) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Gives a function that interrupts the main thread, from another one, once something is so."""

    def raises(*_: Any) -> None:
        raise error

    def interrupt_when(condition: Callable[[], Any]) -> None:
        def run() -> None:
            until(condition)
            signal.pthread_kill(main, signal.SIGUSR1)

        threads.append(start(run))

    main, threads = threading.main_thread().ident, []
    assert main is not None
    before = signal.signal(signal.SIGUSR1, raises)
    try:
        yield interrupt_when
        for each in threads:
            result(each)
    finally:
        signal.signal(signal.SIGUSR1, before)
