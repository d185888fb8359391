"""Which peers there are, and which of them are installed here."""

from __future__ import annotations

from importlib import import_module

from .drivers import Aiosqlite, AiosqliteLocked, Sqlite3
from .limit import LimitCore, LimitOrm
from .peer import Peer
from .qsession_pool import OursPool
from .sqlalchemy_async import (
    OursCore,
    OursOrm,
    OursSession,
    RecipeCore,
    RecipeOrm,
    StockCore,
    StockOrm,
)
from .sqlalchemy_sync import SyncCore, SyncOrm

OURS: tuple[type[Peer], ...] = (OursSession, OursOrm, OursCore, OursPool)
SQLALCHEMY: tuple[type[Peer], ...] = (
    StockOrm, StockCore, RecipeOrm, RecipeCore, SyncOrm, SyncCore,
)  # fmt: skip
OPTIONAL = {
    "peewee": ("peewee_queue", "PeeweeQueue"),
    "tortoise-orm": ("tortoise_orm", "TortoiseOrm"),
    "piccolo": ("piccolo_orm", "PiccoloOrm"),
    "aiosqlitepool": ("pooled", "AiosqlitePool"),
}


def installed() -> tuple[list[type[Peer]], list[str]]:
    """The peers that can run here, and the packages of those that cannot."""
    found: list[type[Peer]] = [*OURS, *SQLALCHEMY]
    missing = []
    for package, (module, name) in OPTIONAL.items():
        try:
            found.append(getattr(import_module(f".{module}", __package__), name))
        except ModuleNotFoundError:
            missing.append(package)
    return [*found, LimitOrm, LimitCore, AiosqliteLocked, Aiosqlite, Sqlite3], missing
