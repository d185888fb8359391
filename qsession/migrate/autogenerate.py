"""Explains why ``alembic revision --autogenerate`` wrote an empty migration."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import MetaData

NO_TABLES = (
    "migrate.run() in migrations/env.py got no tables: import the modules of your models there."
)
AGAIN = "Then delete this file and run the command again."
NO_DIFFERENCE = "Empty: the database already matches the models."

logger = logging.getLogger("qsession")


def not_of_litestream(name: str | None, kind: str, _parents: object) -> bool:
    """Alembic's ``include_name``: a migration must not drop the tables that Litestream has made."""
    return kind != "table" or not (name or "").startswith("_litestream_")


def explained(
    metadata: MetaData | Sequence[MetaData] | None, process: Callable[..., None] | None
) -> Callable[..., None]:
    """A ``process_revision_directives`` that calls ``process`` and then gives the reason.

    The template gets the reason as ``why_empty``. Models without tables are also logged, because
    the migration would then drop all tables of the database.
    """
    every = [metadata] if isinstance(metadata, MetaData) else list(metadata or ())

    def explain(context: Any, revision: Any, directives: list[Any]) -> None:
        if process is not None:
            process(context, revision, directives)
        if not directives or not context.opts["revision_context"].command_args["autogenerate"]:
            return
        why = None
        if not any(each.tables for each in every):
            logger.warning(NO_TABLES)
            why = f"{NO_TABLES} {AGAIN}"
        elif all(ops.is_empty() for each in directives for ops in each.upgrade_ops_list):
            why = NO_DIFFERENCE
        if why is not None:
            context.opts["template_args"]["why_empty"] = textwrap.wrap(why, 90)

    return explain
