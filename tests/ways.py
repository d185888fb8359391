"""The short ways of short statements, which QSESSION_TEST_WAYS=general turns off.

Whatever they promise, the general way has to keep as well. A test of a short way itself uses the
fixture ``short_ways``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qsession.sqlite.lone import Lane

GENERAL: dict[tuple[type, str], Callable[..., Any]] = {
    (Lane, "_is_simple"): lambda *_: False,
}
SHORT = {(owner, name): getattr(owner, name) for owner, name in GENERAL}

if os.environ.get("QSESSION_TEST_WAYS") == "general":
    for (_owner, _name), _function in GENERAL.items():
        setattr(_owner, _name, _function)
