"""Alembic's migrations: `run` for ``env.py``, `upgrade` for an application that starts."""

from qsession.migrate.migration import run, upgrade

__all__ = ["run", "upgrade"]
