"""The file of a target on SQLite, which a copy removes only if it has made it.

Others may open a file as soon as it is there, another copy for instance, and wait for their turn to
write. What is removed under them takes their rows along. So a copy removes its file before it ends
its turn, and whoever comes next sees that the file it has opened is no longer there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import CopyError
from ..sqlite.driver import file_identity

_BESIDE = ("", "-journal", "-wal", "-shm", "-qsession", "-qsession-next")
_MODE = 0o644
"""As SQLite makes files: https://sqlite.org/compile.html, SQLITE_DEFAULT_FILE_PERMISSIONS."""


@dataclass
class Opened:
    """The file before SQLite opens it."""

    file: Path
    made: bool
    """Whether this copy has made it."""
    identity: tuple[int, ...] | None

    def refuse_another(self) -> None:
        """Raise :class:`CopyError` if it is not the file by this name. The caller may write."""
        if file_identity(str(self.file)) != self.identity:
            raise CopyError(
                f"nothing was copied: {self.file} was removed before its turn to write came, by "
                "another copy that has failed"
            )

    def drop_unused(self) -> None:
        """Remove it if nobody has written to it: SQLite writes when it is switched to WAL mode."""
        if self.made and self.file.exists() and not self.file.stat().st_size:
            remove(self.file)


def open_or_make(path: Path) -> Opened:
    """The file that a path leads to, made if there is none. SQLite says why that is impossible."""
    file = Path(os.path.realpath(path))
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, _MODE))
    except OSError:
        return Opened(file, False, file_identity(str(file)))
    return Opened(file, True, file_identity(str(file)))


def remove(file: Path) -> bool:
    """Remove it, with what is beside it; False if Windows keeps it, as somebody has it open."""
    try:
        for end in _BESIDE:
            Path(f"{file}{end}").unlink(missing_ok=True)
    except PermissionError:
        return False
    return True
