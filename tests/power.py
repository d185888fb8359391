"""Power cuts: the files as a disk may have them when the power goes, from a log of all writes.

What had been synced is there. Of what had not, any part may be: each write, and each sector of a
write, for itself. A name that was made or deleted is so for certain when its folder was synced.
Bytes around a write stay as they were, as SQLite takes for granted
(https://sqlite.org/psow.html). The log is written by ``shim/write_log.c`` and by the processes that
are watched, who put a line into it when something has been acknowledged to them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

SECTORS = (512, 4096)


@dataclass
class Write:
    """Bytes at an offset of a file; without bytes, its new length."""

    at: int
    """Where it stands in the log."""
    offset: int
    data: bytes | None


@dataclass
class File:
    """One file from its first write to its deletion."""

    made_at: int
    writes: list[Write]
    deleted_at: int | None = None


class Log:
    """Everything that happened, by its place in the log."""

    def __init__(self, content: bytes) -> None:
        self.moments: list[int] = []
        """After which the power may go."""
        self.exposed: list[int] = []
        """Those at which something was written that no sync has covered yet."""
        self.said: list[tuple[int, str]] = []
        """The lines of those who were watched."""
        self.files: dict[str, list[File]] = {}
        """Those that had a name, one after the other."""
        self._syncs: list[tuple[int, int, str | None]] = []
        """When it was over, what it covers, and the file; None for the folder."""
        self._written: dict[str, int] = {}
        """Where each file was written to last, until that is synced."""
        at = 0
        while at < len(content):
            end = content.index(b"\n", at) + 1
            words = content[at:end].decode().rstrip("\n").split(" ", 3)
            size = int(words[2]) if len(words) == 4 else 0
            self._add(at, words, content[end : end + size])
            self.moments.append(at)
            if self._written:
                self.exposed.append(at)
            at = end + size

    def _add(self, at: int, words: list[str], data: bytes) -> None:
        if len(words) != 4:
            self.said.append((at, " ".join(words)))
            return
        kind, offset, _, name = words
        if name.endswith(" (deleted)"):
            return  # by somebody who still has it open
        if kind in "SD":
            self._syncs.append((at, int(offset), name if kind == "S" else None))
            if kind == "S" and self._written.get(name, at) < int(offset):
                del self._written[name]
        elif kind == "U":
            self.files[name][-1].deleted_at = at
            self._written.pop(name, None)
        else:
            self._written[name] = at
            files = self.files.setdefault(name, [])
            if not files or files[-1].deleted_at is not None:
                files.append(File(at, []))
            files[-1].writes.append(Write(at, int(offset), data if kind == "W" else None))

    def cut(self, moment: int, chance: random.Random, folder: Path, base: str) -> None:
        """Make the files as they may be if the power goes after ``moment``."""
        for name, files in self.files.items():
            found = self._survivor(files, moment, chance)
            if found is not None:
                content = self._content(found, name, moment, chance)
                (folder / f"{base}{name.removeprefix('.')}").write_bytes(content)

    def _safe(self, moment: int, name: str | None) -> int:
        """Up to where in the log everything of a file, or of the folder, is on the disk."""
        covered = (upto for at, upto, of in self._syncs if at <= moment and of == name)
        return max(covered, default=0)

    def _survivor(self, files: list[File], moment: int, chance: random.Random) -> File | None:
        """Which file of a name the folder has: that of the last sync, or of any change since."""
        safe = self._safe(moment, None)
        states: list[File | None] = [None]
        for file in files:
            for at, state in ((file.made_at, file), (file.deleted_at, None)):
                if at is None or at > moment:
                    continue
                if at < safe:
                    states.clear()
                states.append(state)
        return chance.choice(states)

    def _content(self, file: File, name: str, moment: int, chance: random.Random) -> bytes:
        safe = self._safe(moment, name)
        content = bytearray()
        likely, sector = chance.choice((0.0, 0.5, 0.9, 1.0)), chance.choice(SECTORS)
        for write in file.writes:
            if write.at > moment:
                break
            if write.at < safe:
                _apply(content, write.offset, write.data)
            elif write.data is None:
                if chance.random() < likely:
                    _apply(content, write.offset, None)
            else:
                for offset, part in _sectors(write.offset, write.data, sector):
                    if chance.random() < likely:
                        _apply(content, offset, part)
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    end = offset + len(data or b"")
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:end] = data


def _sectors(offset: int, data: bytes, size: int) -> list[tuple[int, bytes]]:
    """A write in the pieces that a disk writes one at a time."""
    bounds = [offset, *range(offset - offset % size + size, offset + len(data), size)]
    ends = [*bounds[1:], offset + len(data)]
    return [
        (start, data[start - offset : end - offset])
        for start, end in zip(bounds, ends, strict=True)
    ]
