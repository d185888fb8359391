"""`OtherLoop`: an event loop in another thread, which can be made to stand still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, final

_P = ParamSpec("_P")
_T = TypeVar("_T")


@final
class OtherLoop:
    """An event loop in a thread of its own, from the beginning of a ``with`` block to its end.

    At the end its tasks are cancelled, as by `asyncio.run`.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self._runs = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="qsession other loop", daemon=True
        )

    def __enter__(self) -> OtherLoop:
        self._thread.start()
        self._runs.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._runs.set()
        await self._end.wait()

    def submit(
        self, function: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kw: _P.kwargs
    ) -> Future[_T]:
        """Start ``function(*args, **kw)`` there. Await it by `asyncio.wrap_future`.

        If the future is cancelled, the task in the other loop is cancelled too.
        """
        return asyncio.run_coroutine_threadsafe(function(*args, **kw), self._loop)

    def run(
        self, function: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kw: _P.kwargs
    ) -> _T:
        """Run ``function(*args, **kw)`` there. Stops the calling thread until it has ended.

        If that is interrupted, the task is cancelled.
        """
        future = self.submit(function, *args, **kw)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """A ``with`` block during which the other loop does not turn.

        A breakpoint, a long computation or a stopped process does the same to a loop. The block
        begins when the loop stands.
        """
        stands, goes_on = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            goes_on.wait()

        try:
            self._loop.call_soon_threadsafe(stand)
            stands.wait()
            yield
        finally:
            goes_on.set()
