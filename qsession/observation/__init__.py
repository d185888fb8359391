"""Observations: the result of a statement, again after each commit that may have changed it.

`Observation` reads and compares. A `Source` tells it of commits: `SQLiteSource` or
`PostgreSQLSource`. PostgreSQL needs triggers, which `install_triggers` makes.
"""

from qsession.observation.triggers import install_triggers, remove_triggers

__all__ = ["install_triggers", "remove_triggers"]
