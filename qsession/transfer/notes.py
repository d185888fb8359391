"""What an error says besides its text: notes, as PEP 678 has them, on any version of Python.

They leave an error the class that callers catch. Python 3.11 shows them in a traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import URL

from qsession.urls import place_of


def add_note(error: BaseException, note: str) -> None:
    """``BaseException.add_note``, which Python 3.10 lacks."""
    noted: Any = error
    noted.__notes__ = [*notes_of(error), note]


def notes_of(error: BaseException) -> Sequence[str]:
    """Those that an error has."""
    return list(getattr(error, "__notes__", ()))


@contextlib.contextmanager
def naming(side: str, url: URL) -> Iterator[None]:
    """Note on an error which of the two databases could not be opened, and where it is."""
    try:
        yield
    except Exception as error:
        if side:
            add_note(error, f"the {side}, {place_of(url)}, could not be opened")
        raise
