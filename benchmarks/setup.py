"""How large a run is, and where it keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

console = Console(stderr=True)


@dataclass(frozen=True)
class Setup:
    """The sizes of a run."""

    directory: Path
    """Where the database files are made. It decides which disk is measured."""
    rounds: int = 3
    tasks: int = 50
    scale: float = 1.0
    """1 is meant for a quarter of an hour in all; tests use less."""

    def scaled(self, size: int) -> int:
        return max(1, round(size * self.scale))

    def say(self, text: str, *, passing: bool = False) -> None:
        """Tell how far it is; what is passing is shown only on a terminal."""
        if console.is_terminal:
            console.print(
                f"\r\x1b[2K{text}", end="" if passing else "\n", highlight=False, markup=False
            )
        elif not passing:
            console.print(text, highlight=False, markup=False)
