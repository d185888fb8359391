"""A process that follows a file and kills itself before its n-th statement or COMMIT of a stage.

``python follow_child.py SOURCE TARGET`` reads lines ``STAGE N``, follows in a fork for each, and
prints how that ended: the number of the signal, or 0. The stage ``start`` begins at once, and
``command`` when the application gets its new URL, before a statement is sent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from itertools import count

from following import followed
from sqlalchemy import Engine, event

from qsession.errors import CopyError
from qsession.transfer.events import Progress


def run(source: str, target: str, stage: str, n: int) -> None:
    """Follow it to the end, or to the n-th statement."""
    statements = count(1)
    begun = stage == "start"

    def progress(step: Progress) -> None:
        nonlocal begun
        begun = begun or step.stage.value == stage

    def statement(*_: object) -> None:
        if begun and next(statements) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    async def command() -> None:
        nonlocal begun
        begun = begun or stage == "command"
        statement()

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", statement)
    try:
        asyncio.run(followed(source, target, progress, pause=60, switched=command))
    except CopyError as error:
        if "has moved to" not in str(error):  # it was killed when all was done
            raise


def main(source: str, target: str) -> None:
    """A fork for each line. It has no threads yet, and what it needs is imported."""
    for line in sys.stdin:
        stage, n = line.split()
        child = os.fork()
        if not child:
            try:
                run(source, target, stage, int(n))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
