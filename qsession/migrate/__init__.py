"""Alembic migrations: `run` for ``env.py``, `upgrade` for the start of an application."""

from qsession.migrate.migration import run, upgrade

__all__ = ["run", "upgrade"]
