"""How the services are told to end."""

from __future__ import annotations

import signal


class Stop:
    """Whether SIGTERM or Ctrl-C has come. A loop that looks between two jobs breaks none off."""

    def __init__(self) -> None:
        self.asked = False
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
