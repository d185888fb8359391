"""Runs SQLAlchemy's suite for dialects, in a directory of its own that is removed afterwards."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from sqlalchemy.dialects import registry

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")
sys.path.insert(0, str(Path(__file__).parent))  # requirements.py, suite_dialect.py

from sqlalchemy.testing.plugin import pytestplugin  # noqa: E402
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403

import qsession  # noqa: E402, F401  # it registers its own dialect, which this one replaces

registry.register("sqlite.qsession", "suite_dialect", "SuiteDialect")

_started_in = Path.cwd()
_scratch: Path | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """SQLAlchemy names its database files relative to the working directory."""
    global _scratch
    _scratch = Path(tempfile.mkdtemp(prefix="compliance-"))
    os.chdir(_scratch)
    pytestplugin.pytest_sessionstart(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    pytestplugin.pytest_unconfigure(config)
    os.chdir(_started_in)
    if _scratch is not None:
        shutil.rmtree(_scratch, ignore_errors=True)
